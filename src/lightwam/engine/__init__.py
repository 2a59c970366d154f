"""Speed around the plain model, which stays the oracle: the packed training step."""
