"""Scripted experts that make demonstrations; each may read its simulator's full state, a policy never does."""
