"""Closed-loop evaluation: rollouts, comparisons, statistics, and policies of other servers."""
