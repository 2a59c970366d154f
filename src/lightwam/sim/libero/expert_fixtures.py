"""Geometry of LIBERO's fixtures for its expert: knobs, drawers, doors and cavities.

Lengths are metres, angles rad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from lightwam.sim.libero.expert_scene import GRASP_DEPTH, Axis, Grasp, Point, Scene, rotated
from lightwam.sim.libero.simulator import COLLISION_GEOMS

MAX_RAY = 1.0
"""distance along a ray that hits nothing"""
BACK_GAP = 0.015
"""between an object inside and the wall behind it"""


@dataclass(frozen=True)
class Drawer:
    """The middle of a drawer's handle, the direction in which it opens, and its corners, seen from above, when open."""

    handle: Point
    out: Axis
    opened: Float64[np.ndarray, "n 2"]


@dataclass(frozen=True)
class Door:
    """A door with a vertical hinge: the hinge's position and the middle of the outer face."""

    hinge: Axis
    face: Point
    top: float
    """height of the upper edge"""
    closing: Axis
    """direction of the face's motion when the door closes"""


@dataclass(frozen=True)
class Cavity:
    """A space under a roof that is entered from a side."""

    back: Point
    """the middle of the back wall, at the bottom"""
    inward: Axis
    aside: Axis
    """away from the hinge of its door"""


class Fixtures:
    """The fixtures of one scene in its present state."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def knob(self, fixture: str) -> Grasp:
        """Return the grasp across the fin of a fixture's knob."""
        scene = self._scene
        points = scene.corners(self._parts(self._hinge(fixture)[1]))
        top = points[:, 2].max()
        fin = points[points[:, 2] > top - GRASP_DEPTH / 2][:, :2]
        axes = [rotated(scene.axis, angle) for angle in np.radians(np.arange(-90, 90, 15))]
        thin = min(axes, key=lambda axis: float(np.ptp(fin @ axis)))
        return Grasp(np.array([*(fin.min(0) + fin.max(0)) / 2, top - GRASP_DEPTH]), thin)

    def angle(self, fixture: str) -> float:
        """Return the angle of a fixture's knob or door, rad; a knob is on from half a radian."""
        return float(self._scene.data.qpos[self._scene.model.jnt_qposadr[self._hinge(fixture)[0]]])

    def is_drawer(self, region: str) -> bool:
        """Return whether the region is the inside of a drawer."""
        return bool(getattr(self._scene.env.object_sites_dict.get(region), "joints", ()))

    def drawer(self, region: str) -> Drawer:
        """Return the drawer whose inside is the region."""
        scene = self._scene
        joint = scene.model.joint(scene.env.object_sites_dict[region].joints[0]).id
        end, axis = max(scene.model.jnt_range[joint], key=abs), scene.data.xaxis[joint][:2]
        out, way = axis * np.sign(end), end - scene.data.qpos[scene.model.jnt_qposadr[joint]]
        parts = self._parts(int(scene.model.jnt_bodyid[joint]))
        handle = max((scene.corners([part]) for part in parts), key=lambda points: float((points[:, :2] @ out).max()))
        return Drawer((handle.min(0) + handle.max(0)) / 2, out, scene.corners(parts)[:, :2] + way * axis)

    def has_door(self, fixture: str) -> bool:
        """Return whether the fixture has a door: it can be closed, and turns."""
        import mujoco

        known = self._scene.env.fixtures_dict.get(fixture)
        if known is None or not known.object_properties.get("articulation", {}).get("default_close_ranges"):
            return False
        return bool(self._scene.model.jnt_type[self._hinge(fixture)[0]] == mujoco.mjtJoint.mjJNT_HINGE)

    def door(self, fixture: str) -> Door:
        """Return the door of a fixture, from its largest part."""
        scene = self._scene
        joint, body = self._hinge(fixture)
        panel = max(self._parts(body), key=lambda part: float(np.prod(scene.model.geom_size[part])))
        middle, hinge = scene.data.geom_xpos[panel], scene.data.xanchor[joint][:2]
        points = scene.corners([panel])
        turn = np.sign(scene.data.xaxis[joint][2] * -scene.data.qpos[scene.model.jnt_qposadr[joint]])
        frame = scene.data.geom_xmat[panel].reshape(3, 3)[:2, :2].T
        along = max((*frame, *-frame), key=lambda axis: float((middle[:2] - hinge) @ axis))
        closing = rotated(along, turn * np.pi / 2)
        depth = np.ptp(points[:, :2] @ closing) / 2
        face = middle - np.array([*depth * closing, 0.0])
        return Door(hinge.copy(), face, float(points[:, 2].max()), closing)

    def cavity(self, region: str) -> Cavity | None:
        """Return the space behind a door that contains the region; None without a door or a roof."""
        import mujoco

        scene = self._scene
        if (site := scene.env.object_sites_dict.get(region)) is None or not self.has_door(site.parent_name):
            return None
        door, frame = self._hinge(site.parent_name)[1], scene.env.sim.data.get_site_xmat(region)[:2, :2].T
        middle = np.asarray(scene.env.sim.data.get_site_xpos(region), np.float64)
        groups, geom = (np.arange(mujoco.mjNGROUP) == COLLISION_GEOMS).astype(np.uint8), np.zeros(1, np.int32)

        def free(*way: float) -> float:
            """Return the distance from the region's middle to the next solid part that is not the door."""
            distance = mujoco.mj_ray(scene.model, scene.data, middle, np.array(way), groups, 1, door, geom)
            return MAX_RAY if distance < 0 else float(min(distance, MAX_RAY))

        if free(0.0, 0.0, 1.0) == MAX_RAY:
            return None
        inward = -max((*frame, *-frame), key=lambda way: free(*way, 0.0))
        aside = rotated(inward, np.pi / 2)
        aside *= np.sign(aside @ (middle[:2] - self.door(site.parent_name).hinge))
        centre = middle[:2] + aside * (free(*aside, 0.0) - free(*-aside, 0.0)) / 2
        back = centre + (free(*inward, 0.0) - BACK_GAP) * inward
        return Cavity(np.array([*back, middle[2] - free(0.0, 0.0, -1.0)]), inward, aside)

    def _parts(self, body: int) -> Any:
        """Return a body's geoms that collide."""
        return np.flatnonzero(self._scene.solid & (self._scene.model.geom_bodyid == body))

    def _hinge(self, fixture: str) -> tuple[int, int]:
        """Return the joint of a fixture's knob or door, and the body that it moves."""
        model = self._scene.model
        joint = model.joint(self._scene.env.get_object(fixture).joints[-1]).id
        return joint, int(model.jnt_bodyid[joint])
