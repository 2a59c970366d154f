"""Speed around the plain model: folding, caches, graphs. Stands empty until something faster is tested against it."""
