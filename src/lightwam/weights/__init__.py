"""Weights that others made, read and written strictly, key by key."""
