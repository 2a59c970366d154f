"""Training: the loop, the optimizer, processes that share the work, and what goes into a run directory first."""
