"""Surprise: how far what comes is from what the model predicts, and what that is worth as an alarm."""
