"""Meta-World: its simulator and its scripted experts."""
