"""LIBERO's demonstrations, turned into LeRobot datasets."""
