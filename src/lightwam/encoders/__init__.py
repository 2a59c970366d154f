"""Frozen encoders: pictures to latents, sentences to token states, and the files that their weights come from."""
