"""LIBERO: its simulator, and a scripted expert for every task."""
