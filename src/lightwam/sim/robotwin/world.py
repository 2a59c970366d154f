"""One episode's world: RoboTwin's task object, its random stream, and what is left out while nobody looks."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from lightwam.config.robotwin_protocols import FIRST_EVALUATION_SEED, RobotwinProtocol
from lightwam.config.robotwin_tasks import STEPS_A_FRAME
from lightwam.sim.robotwin import runtime
from lightwam.sim.robotwin.progress import Progress

NO_LIMIT = 10**9


class World:
    """A task set up by a seed. RoboTwin's own code moves it, so that its states are the benchmark's, bit for bit.

    Left out, because it changes nothing else: updates of the renderer at every physics step, and the picture that
    RoboTwin takes at a success. Updates stay where the light changes at each, which draws random numbers.
    """

    def __init__(self, task: str, seed: int, protocol: RobotwinProtocol, height: int, width: int) -> None:
        self._stream, self.stable = runtime.RandomStream(), True
        self.env: Any = runtime.task_class(task)()
        settle = self.env.check_stable
        self.env.check_stable = lambda: self._note_stability(settle)
        arguments = runtime.arguments(protocol.scene, task, eval_mode=seed >= FIRST_EVALUATION_SEED)
        with self._stream(), runtime.making(protocol.pictures, height, width):
            self.env.setup_demo(now_ep_num=0, seed=seed, **arguments)
        self.env.step_lim = NO_LIMIT
        if not self.env.crazy_random_light:
            self.env._update_render = lambda: None
        self.env.get_obs = lambda: self.env._update_render()
        self.progress = Progress(self.env)

    def _note_stability(self, settle: Any) -> tuple[bool, list[str]]:
        """Let objects settle; RoboTwin would raise an error in a world whose objects fall over."""
        self.stable, _ = settle()
        return True, []

    def take_action(self, target: Float64[np.ndarray, " A"]) -> bool:
        """Move both arms to `target` by RoboTwin's `take_action`; return whether the task was solved on the way."""
        self.env.eval_success = False  # after a success it would not move
        with self._stream(), runtime.quiet():
            self.env.take_action(target)
        self.progress.update()
        return bool(self.env.eval_success)

    def perform(self) -> tuple[list[Float64[np.ndarray, " A"]], bool]:
        """Let RoboTwin's script solve the task; return the command at every frame, and whether it is solved.

        A script whose plan fails stops moving; one that does not expect that ends with an error of its own.
        """
        frames: list[Float64[np.ndarray, " A"]] = []
        self.env.save_freq, self.env._take_picture = STEPS_A_FRAME, lambda *_: frames.append(self.command())
        with self._stream(), runtime.quiet():
            try:
                self.env.play_once()
            except (TypeError, ValueError, AttributeError, IndexError, AssertionError):
                return frames, False
            return frames, bool(self.env.plan_success and self.env.check_success())

    def command(self) -> Float64[np.ndarray, " A"]:
        """Return RoboTwin's joint_action/vector: the drives' targets and grippers' commands, not measured joints."""
        robot = self.env.robot
        return np.array(robot.get_left_arm_jointState() + robot.get_right_arm_jointState())

    def words(self) -> Mapping[str, str]:
        """Return what RoboTwin's sentences call the objects and arms of this episode."""
        with self._stream(), runtime.quiet():
            return {key: str(value) for key, value in self.env.get_info().items()}

    def draw(self, cameras: tuple[str, ...]) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        """Draw these cameras; the light stays as it is."""
        rig, robot = self.env.cameras, self.env.robot
        with runtime.quiet():
            rig.update_wrist_camera(robot.left_camera.get_pose(), robot.right_camera.get_pose())
            self.env.scene.update_render()
            return {name: self._picture(rig, name) for name in cameras}

    def _picture(self, rig: Any, name: str) -> UInt8[np.ndarray, "height width 3"]:
        camera = rig.static_camera_list[rig.head_camera_id] if name == "head_camera" else getattr(rig, name)
        camera.take_picture()
        rgb: Float32[np.ndarray, "height width 3"] = camera.get_picture("Color")[..., :3]
        return np.ascontiguousarray((rgb * 255).clip(0, 255).astype(np.uint8))

    def close(self) -> None:
        """Free SAPIEN's scene, which the task's objects keep alive through circles of references."""
        if self.env is not None:
            with runtime.quiet():
                self.env.close_env()
            self.env = None
            gc.collect()
