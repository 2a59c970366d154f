"""Prompts to token states, each module one way behind the same small interface."""
