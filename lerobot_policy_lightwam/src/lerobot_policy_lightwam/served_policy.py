"""Any policy of LeRobot as a function from observations to chunks, which lightwam's server can call."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy, get_policy_class, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGES, OBS_PREFIX, OBS_STATE
from torch import Tensor

from lightwam import CheckpointError, ConfigError, WireError
from lightwam.system.devices import resolve_device
from lightwam.system.files import file_fingerprint
from lightwam.types import Observation

MAX_EPISODES = 256
"""episodes whose ensembles are kept; the one that was asked for longest ago is dropped"""
REFUSED = ("tdmpc", "lingbot_va", "gaussian_actor")
"""types of policies whose chunks depend on more than the last observations, or that have no chunks"""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
LAST = Path("checkpoints", "last", "pretrained_model")
"""the newest checkpoint in the output folder of lerobot-train"""


class ServedPolicy:
    """A policy with its processors: observations in, chunks of robot actions out, as LeRobot's own loop has them.

    One observation is computed at a time: LeRobot's policies draw one noise for a whole batch, so an answer would
    depend on who else asks.
    """

    def __init__(self, policy: PreTrainedPolicy, before: Any, after: Any, seed: int = 0, weights: str = "") -> None:
        """`before` and `after` are its processors, `seed` is of the noise that some draw, `weights` names its weights.

        Acts once, on grey pictures: ConfigError for a policy that cannot be served.
        """
        self.policy: Any = policy.eval()
        self.config, self._before, self._after = policy.config, before, after
        self.seed, self.weights = seed, weights
        self.device = torch.device(self.config.device or "cpu")
        self.cameras = camera_features(self.config)
        """camera -> its feature"""
        self.state_dim, self.action_dim = _length(self.config, OBS_STATE), _length(self.config, ACTION)
        self.num_observations = max(1, int(self.config.n_obs_steps))
        """control steps that the policy acts on"""
        self.ensembles = getattr(self.config, "temporal_ensemble_coeff", None) is not None
        """whether it averages the chunks of an episode's steps, for which it must be asked at every step"""
        self._ensembles: OrderedDict[int, tuple[int, Any]] = OrderedDict()
        try:
            self.horizon = len(self.act(self._grey()))
        except Exception as error:
            what, step = "this policy cannot be served", "docs/lerobot.md names the policies that can"
            raise ConfigError(what, where=self.config.type, got=f"{error!r}"[:300], next_step=step) from error
        self.replan = min(int(getattr(self.config, "n_action_steps", None) or self.horizon), self.horizon)
        """steps of a chunk that LeRobot executes"""
        self._ensembles.clear()
        torch.manual_seed(seed)

    @property
    def n_obs_steps(self) -> int:
        """`RobotSchema.n_obs_steps` of messages for this policy: 0 if it acts on the present observation alone."""
        return self.num_observations if self.num_observations > 1 or self.ensembles else 0

    @classmethod
    def load(
        cls, path: str, device: str = "auto", overrides: Mapping[str, str] | None = None, seed: int = 0
    ) -> ServedPolicy:
        """Load a checkpoint: a folder with config.json, lerobot-train's output folder, or a Hub id.

        `overrides` are fields of the policy's config, such as {"n_action_steps": "8"}. CheckpointError if there is no
        checkpoint, ConfigError for a field that the policy lacks.
        """
        found = find_checkpoint(path)
        try:
            changes = [f"--{name}={value}" for name, value in (overrides or {}).items()]
            config = PreTrainedConfig.from_pretrained(found, cli_overrides=changes)
        except (Exception, SystemExit) as error:  # draccus exits for an unknown field
            what, got = "the policy's config cannot be read with these overrides", f"{error}"[:300] or "see above"
            raise ConfigError(what, where=Path(found) / CONFIG, got=got, expected=dict(overrides or {})) from error
        config.device = str(resolve_device(device))
        policy = get_policy_class(config.type).from_pretrained(found, config=config)
        on_device = {"device_processor": {"device": config.device}}
        before, after = make_pre_post_processors(config, found, preprocessor_overrides=on_device)
        file = Path(found) / WEIGHTS
        return cls(policy, before, after, seed, file_fingerprint(file) if file.is_file() else found)

    def identity(self) -> dict[str, Any]:
        """Return what the server's greeting says of the policy, and a result records."""
        return {
            "policy": self.config.type,
            "weights": self.weights,
            "cameras": list(self.cameras),
            "state_dim": self.state_dim,
            "action_dim": self.action_dim,
            "horizon": self.horizon,
            "replan": self.replan,
        }

    def act_batch(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
        """Return a chunk of actions, in robot units, for each of several robots."""
        return np.stack([self.act(observation) for observation in observations])

    @torch.inference_mode()
    def act(self, observation: Observation) -> Float32[np.ndarray, "H A"]:
        """Return the chunk of actions for an observation with its history.

        Where messages have the step, noise depends on the seed and the observation alone; else it is the next of the
        stream that the seed began. WireError if the policy needs the episode's every step, and one is missing.
        """
        if observation.step is not None:
            torch.manual_seed(noise_seed(self.seed, observation))
        for part in (self.policy, self._before, self._after):
            part.reset()
        with self._autocast():
            if self.ensembles:
                actions = self._ensembled(observation)
            elif self.num_observations == 1:
                actions = self.policy.predict_action_chunk(self._batch(observation))
            else:
                seen = [*observation.history, observation][-self.num_observations :]
                actions = self._selected([self._batch(one) for one in seen])
        return self._after(actions)[0].float().cpu().numpy()

    def _selected(self, batches: Sequence[Mapping[str, Any]]) -> Float[Tensor, "1 H A"]:
        """Return the actions of one chunk as `select_action` gives them, which remembers the observations itself.

        The earlier ones are put into its queues by the same calls, with a chunk of one step that is not computed.
        """
        actions: list[Tensor] = []
        with self._computing_by(lambda batch, **_: torch.zeros(1, 1, self.action_dim, device=self.device)):
            for batch in batches[:-1]:
                self.policy.select_action(dict(batch))
        with self._computing_by(_Once(self.policy.predict_action_chunk)):
            while True:
                try:
                    actions.append(self.policy.select_action(dict(batches[-1])))
                except _ChunkEnds:
                    return torch.stack(actions, dim=1)

    def _ensembled(self, observation: Observation) -> Float[Tensor, "1 1 A"]:
        """Return the average of what the chunks of an episode's steps have for this one; each episode has its own."""
        episode, step, policy = observation.episode, observation.step, self.policy
        if episode is None or step is None:
            raise WireError("temporal ensembling needs episode and step", where="the message")
        last, ensembler = self._ensembles.pop(episode, (-1, None)) if step else (-1, None)
        if step != last + 1:
            what, got = "temporal ensembling needs every step of an episode", f"step {step} after {last}"
            raise WireError(what, where="step", got=got, expected="a request at every step: replan 1")
        if ensembler is not None:
            policy.temporal_ensembler = ensembler
        action = policy.select_action(self._batch(observation))
        self._ensembles[episode] = step, deepcopy(policy.temporal_ensembler)
        while len(self._ensembles) > MAX_EPISODES:
            self._ensembles.popitem(last=False)
        return action[:, None]

    def _batch(self, observation: Observation) -> dict[str, Any]:
        """Convert an observation as LeRobot's loop on a robot does."""
        arrays = {feature: observation.frames[camera] for camera, feature in self.cameras.items()}
        if self.state_dim:
            arrays[OBS_STATE] = np.asarray(observation.state, np.float32)
        copies = {name: np.array(array) for name, array in arrays.items()}  # torch wants to write to them
        batch: dict[str, Any] = self._before(
            prepare_observation_for_inference(copies, self.device, observation.instruction)
        )
        return batch

    def _autocast(self) -> AbstractContextManager[Any]:
        is_mixed = self.device.type == "cuda" and self.config.use_amp
        return torch.autocast(self.device.type) if is_mixed else nullcontext()

    @contextmanager
    def _computing_by(self, compute: Callable[..., Tensor]) -> Iterator[None]:
        """Let `select_action` take its chunks from `compute`."""
        self.policy.predict_action_chunk = compute
        try:
            yield
        finally:
            del self.policy.predict_action_chunk

    def _grey(self) -> Observation:
        shapes = {camera: self.config.input_features[feature].shape for camera, feature in self.cameras.items()}
        frames = {camera: np.full((*shape[1:], 3), 128, np.uint8) for camera, shape in shapes.items()}
        return Observation(frames, np.zeros(self.state_dim, np.float32), "do nothing", episode=0, step=0)


class _ChunkEnds(Exception):
    """The policy would compute another chunk."""


class _Once:
    """A function that may be called once."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function, self._was_called = function, False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._was_called:
            raise _ChunkEnds
        self._was_called = True
        return self._function(*args, **kwargs)


def noise_seed(seed: int, observation: Observation) -> int:
    """Return the seed of an observation's noise, which does not depend on other episodes and what came before."""
    digest = hashlib.blake2b(f"{seed} {observation.step} {observation.instruction}".encode(), digest_size=8)
    for _, frame in sorted(observation.frames.items()):
        digest.update(np.ascontiguousarray(frame))
    digest.update(np.ascontiguousarray(observation.state))
    return int.from_bytes(digest.digest()) >> 1


def find_checkpoint(path: str) -> str:
    """Return the folder with a checkpoint's config.json, or the Hub id; CheckpointError if there is neither."""
    for folder in (Path(path), Path(path) / "pretrained_model", Path(path) / LAST):
        if (folder / CONFIG).is_file():
            return str(folder)
    is_hub_id = path.count("/") == 1 and not Path(path).exists() and path[0] not in "./~"
    if is_hub_id and not Path(path).parent.is_dir():
        return path
    expected = f"{CONFIG} and {WEIGHTS} in it, or lerobot-train's output folder"
    raise CheckpointError("there is no policy of LeRobot", where=path, expected=expected)


def camera_features(config: PreTrainedConfig) -> dict[str, str]:
    """Return camera -> feature; ConfigError for a policy that needs more than pictures, state and sentence."""
    features, step = list(config.image_features), "docs/lerobot.md names the policies that can be served"
    cameras = {name.removeprefix(f"{OBS_IMAGES}.").removeprefix(OBS_PREFIX): name for name in features}
    if config.type in REFUSED:
        what = "a policy must act on its last observations alone"
        raise ConfigError(what, where="the policy's type", got=config.type, next_step=step)
    if not features or len(cameras) != len(features) or OBS_ENV_STATE in config.input_features:
        what, got = "a policy's inputs must be pictures, and observation.state or none", sorted(config.input_features)
        raise ConfigError(what, where=config.type, got=got, next_step=step)
    return cameras


def _length(config: PreTrainedConfig, name: str) -> int:
    feature = {**config.input_features, **config.output_features}.get(name)
    return 0 if feature is None else int(feature.shape[0])
