"""A policy behind a socket: openpi's websocket, XPolicyLab's, and HTTP, over one worker that thinks for all of them."""
