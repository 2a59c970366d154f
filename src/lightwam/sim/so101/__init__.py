"""SO-101, LeRobot's low-cost arm, in simulation: its world, its simulator and a scripted expert."""
