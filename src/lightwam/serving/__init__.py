"""A policy served to robots: one process, a module for each protocol."""
