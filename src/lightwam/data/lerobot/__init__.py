"""LeRobot datasets, read and written."""

from lightwam.data.lerobot.reader import LeRobotDataset as LeRobotDataset
