"""Speed around the plain model, which the tests compare it with: the packed training step and the folded model."""
