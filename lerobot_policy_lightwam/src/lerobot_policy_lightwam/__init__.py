"""Light-WAM for LeRobot. Importing this makes `lightwam` a policy type; LeRobot's commands import it by its name."""

from lerobot_policy_lightwam.configuration_lightwam import LightWAMConfig
from lerobot_policy_lightwam.modeling_lightwam import LightWAMPolicy
from lerobot_policy_lightwam.processor_lightwam import make_lightwam_pre_post_processors

__all__ = ["LightWAMConfig", "LightWAMPolicy", "make_lightwam_pre_post_processors"]
