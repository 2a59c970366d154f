"""Any Gymnasium environment with pictures as a `Simulator`.

Gymnasium itself is not imported here: `from_gymnasium` uses only an environment's methods and spaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim.simulator import RobotUnits, Simulator, StepOutcome, check_known, check_seed, finite_action, not_reset
from lightwam.types import Observation


class GymnasiumStep(NamedTuple):
    """The result of `env.step`."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


Source = str | Callable[[Any], np.ndarray]


class GymnasiumSimulator(Simulator):
    """A Gymnasium environment, made by `make_env()` when it is first needed.

    `cameras` maps each camera to a path in the observation ("pixels/top") or to a function of the environment
    (`lambda env: env.render()`) that returns uint8 RGB [height, width, 3], upright; pictures are resized to the size of
    `config`. `state` is a path in the observation or a function of it. `success` is a key of `info` or a function of a
    `GymnasiumStep`. `units` gives names and the control rate; by default numbers are named state_0, action_0 and so on,
    and the rate is `env.metadata["render_fps"]`. Actions are clipped to the action space, a Box of any shape.

    The environment must keep what `Simulator` promises, above all that `reset(seed=...)` decides everything; run
    `check_simulator` on it. SimulatorError for a path, an action space or a rate that cannot be used.
    """

    def __init__(
        self,
        make_env: Callable[[], Any],
        config: SimConfig,
        task: str,
        *,
        instruction: str,
        robot: str,
        cameras: Mapping[str, Source],
        state: Source,
        success: str | Callable[[GymnasiumStep], bool] = "is_success",
        units: RobotUnits | None = None,
    ) -> None:
        for camera in config.cameras:
            check_known(camera, cameras, f"camera of task {task!r}")
        self.task, self.instruction, self.robot, self.cameras = task, instruction, robot, config.cameras
        self._size, self._repeat = (config.height, config.width), config.action_repeat
        self._pictures, self._read_state, self._success = cameras, state, success
        self._make_env, self._units = make_env, units
        self._env: Any = None
        self._raw: Any = None
        """the environment's last observation; None outside an episode"""
        self._observation: Observation | None = None

    @cached_property
    def units(self) -> RobotUnits:
        """Names and rate: as configured, else numbered, and the environment's."""
        if self._units is not None:
            return self._units
        env = self._opened()
        if not (rate := env.metadata.get("render_fps")):
            what = "the control rate is unknown: the environment's metadata has no render_fps"
            raise SimulatorError(what, next_step="give units=RobotUnits(state, action, steps_per_second)")
        num_state, num_action = self._sizes(env)
        state, action = {f"state_{i}": "" for i in range(num_state)}, {f"action_{i}": "" for i in range(num_action)}
        return RobotUnits(state, action, float(rate))

    @cached_property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `units`."""
        return tuple(self.units.state)

    @cached_property
    def action_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `units`."""
        return tuple(self.units.action)

    @cached_property
    def fps(self) -> float:  # type: ignore[override]
        """See `units`."""
        return self.units.steps_per_second / self._repeat

    def reset(self, seed: int) -> None:
        """Begin the episode of `seed`."""
        check_seed(seed, self.task)
        self._raw, _ = self._opened().reset(seed=seed)
        self._observation = None

    def observe(self) -> Observation:
        """Return pictures and state; a second call before the next step draws nothing."""
        if self._raw is None:
            raise not_reset(self.task)
        if self._observation is None:
            frames = {camera: self._picture(camera) for camera in self.cameras}
            self._observation = Observation(frames, self._state(self._raw), self.instruction)
        return self._observation

    def step(self, action: np.ndarray) -> StepOutcome:
        """Repeat the action, clipped to the action space, `action_repeat` times or until the environment ends."""
        if self._raw is None:
            raise not_reset(self.task)
        space = self._env.action_space
        shaped = finite_action(action, self.action_dim, self.task).reshape(space.shape)
        clipped = np.clip(shaped, space.low, space.high).astype(space.dtype)
        success = ended = False
        self._observation = None
        for _ in range(self._repeat):
            step = GymnasiumStep(*self._env.step(clipped.copy()))
            self._raw = step.observation
            success = success or self._succeeded(step)
            ended = bool(step.terminated or step.truncated)
            if ended:
                break
        return StepOutcome(success, ended)

    def close(self) -> None:
        """Close the environment."""
        if self._env is not None:
            self._env.close()
        self._env = self._raw = self._observation = None

    def _opened(self) -> Any:
        """Return the environment; the first call makes it and checks its sizes."""
        if self._env is None:
            env = self._make_env()
            space = env.action_space
            if space.shape is None or space.dtype is None or not np.issubdtype(space.dtype, np.floating):
                raise SimulatorError("the action space must be a Box of floats", got=space)
            if self._units is not None:
                names, sizes = (len(self._units.state), len(self._units.action)), self._sizes(env)
                if names != sizes:
                    what = "units must name every number of state and action"
                    raise SimulatorError(what, got=f"{names} names", expected=sizes)
            self._env = env
        return self._env

    def _sizes(self, env: Any) -> tuple[int, int]:
        return len(self._state(env.observation_space.sample())), int(np.prod(env.action_space.shape))

    def _picture(self, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        source = self._pictures[camera]
        picture = np.asarray(source(self._env) if callable(source) else _at(self._raw, source))
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            got = f"{picture.dtype} {list(picture.shape)}"
            raise SimulatorError("a picture must be uint8 [height, width, 3]", where=f"camera {camera!r}", got=got)
        return _resized(picture, *self._size)

    def _state(self, observation: Any) -> Float32[np.ndarray, " P"]:
        source = self._read_state
        value = source(observation) if callable(source) else _at(observation, source)
        return np.array(value, np.float32).reshape(-1)

    def _succeeded(self, step: GymnasiumStep) -> bool:
        if callable(self._success):
            return bool(self._success(step))
        if self._success not in step.info:
            what, next_step = (
                f"the environment's info must have {self._success!r}",
                "give another key or a function as `success`",
            )
            raise SimulatorError(what, where=self.task, got=sorted(step.info), next_step=next_step)
        return bool(step.info[self._success])


def _at(observation: Any, path: str) -> Any:
    """Return the entry at a path such as "pixels/top" of nested dicts."""
    value = observation
    for key in path.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise SimulatorError(f"the observation must have {path!r}", where=repr(key), got=got)
        value = value[key]
    return value


def _resized(picture: UInt8[np.ndarray, "_h _w 3"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Return a contiguous copy of another size, bilinear with antialiasing."""
    if picture.shape[:2] == (height, width):
        return np.array(picture, order="C")
    planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


from_gymnasium = GymnasiumSimulator
