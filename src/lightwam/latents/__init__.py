"""Pixels to latents and back, each module one way behind the same small interface."""
