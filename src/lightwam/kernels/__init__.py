"""Triton kernels for a GPU's steps between products, forward and backward, and the same in plain torch."""
