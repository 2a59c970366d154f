"""Settings: their schema, their checks, and the recipes."""

from lightwam.config.commands import ConvertConfig as ConvertConfig
from lightwam.config.schema import BackboneConfig as BackboneConfig
from lightwam.config.schema import CameraPlace as CameraPlace
from lightwam.config.schema import CodecConfig as CodecConfig
from lightwam.config.schema import CollectConfig as CollectConfig
from lightwam.config.schema import DctConfig as DctConfig
from lightwam.config.schema import EvalConfig as EvalConfig
from lightwam.config.schema import ExpertConfig as ExpertConfig
from lightwam.config.schema import FlowConfig as FlowConfig
from lightwam.config.schema import HashedTextConfig as HashedTextConfig
from lightwam.config.schema import ModelConfig as ModelConfig
from lightwam.config.schema import PcaConfig as PcaConfig
from lightwam.config.schema import Recipe as Recipe
from lightwam.config.schema import SimConfig as SimConfig
from lightwam.config.schema import TrainConfig as TrainConfig
from lightwam.config.schema import Umt5Config as Umt5Config
from lightwam.config.schema import WanVaeConfig as WanVaeConfig
from lightwam.config.schema import with_simulator as with_simulator
from lightwam.config.strict_json import added as added
from lightwam.config.strict_json import from_dict as from_dict
from lightwam.config.strict_json import to_dict as to_dict
