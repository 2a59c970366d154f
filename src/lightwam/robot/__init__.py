"""The robot's side of serving: a client, players of chunks, and a rehearsal of them.

`client` and `player` need neither torch nor jaxtyping, so that a robot's computer can do without them.
"""
