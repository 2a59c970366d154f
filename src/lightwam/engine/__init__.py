"""Faster versions of the plain model: the packed training step and the folded model. Tests compare each with it."""
