"""Light-WAM for LeRobot, whose commands import this by its name.

Importing it makes `lightwam` a type of policy and a type of environment.
"""

from lerobot_policy_lightwam.configuration_lightwam import LightWAMConfig
from lerobot_policy_lightwam.environment import LightWAMEnvConfig
from lerobot_policy_lightwam.modeling_lightwam import LightWAMPolicy
from lerobot_policy_lightwam.processor_lightwam import make_lightwam_pre_post_processors

__all__ = ["LightWAMConfig", "LightWAMEnvConfig", "LightWAMPolicy", "make_lightwam_pre_post_processors"]
