"""Datasets on disk: LeRobot layouts, exact video frames, the decoded cache, the window loader."""
