"""What LIBERO's expert sees of fixtures that move or that are entered from the side: knobs, drawers, doors, cavities.

Lengths are metres, angles rad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from lightwam.sim.libero.expert_scene import DEPTH, Axis, Grasp, Point, Scene, rotated
from lightwam.sim.libero.simulator import COLLISION_GEOMS

FAR_OFF = 1.0
"""what a look sees that meets nothing"""
BEHIND = 0.015
"""between a thing that is inside and the wall behind it"""


@dataclass(frozen=True)
class Drawer:
    """The middle of its handle, which way it opens, and its corners, from above, once it is wholly open."""

    handle: Point
    out: Axis
    opened: Float64[np.ndarray, "n 2"]


@dataclass(frozen=True)
class Door:
    """A door that turns about a vertical line: where that is, and where the middle of its outer face is."""

    hinge: Axis
    face: Point
    top: float
    """how high its upper edge is"""
    shutting: Axis
    """the way of the face when it shuts, across it"""


@dataclass(frozen=True)
class Cavity:
    """A space under a roof that is entered from a side."""

    back: Point
    """the middle of the back wall, at the floor"""
    inward: Axis
    aside: Axis
    """away from the hinge of its door"""


class Fixtures:
    """Of one scene, always as it is now."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def knob(self, fixture: str) -> Grasp:
        """Across the fin of a fixture's knob."""
        scene = self._scene
        points = scene.corners(self._parts(self._hinge(fixture)[1]))
        top = points[:, 2].max()
        fin = points[points[:, 2] > top - DEPTH / 2][:, :2]
        axes = [rotated(scene.axis, angle) for angle in np.radians(np.arange(-90, 90, 15))]
        thin = min(axes, key=lambda axis: float(np.ptp(fin @ axis)))
        return Grasp(np.array([*(fin.min(0) + fin.max(0)) / 2, top - DEPTH]), thin)

    def angle(self, fixture: str) -> float:
        """How far its knob is turned; it is on from half a radian."""
        return float(self._scene.data.qpos[self._scene.model.jnt_qposadr[self._hinge(fixture)[0]]])

    def drawn(self, region: str) -> bool:
        """Whether a goal's word names the inside of a drawer."""
        return bool(getattr(self._scene.env.object_sites_dict.get(region), "joints", ()))

    def drawer(self, region: str) -> Drawer:
        """The one whose inside is a region."""
        scene = self._scene
        joint = scene.model.joint(scene.env.object_sites_dict[region].joints[0]).id
        end, axis = max(scene.model.jnt_range[joint], key=abs), scene.data.xaxis[joint][:2]
        out, way = axis * np.sign(end), end - scene.data.qpos[scene.model.jnt_qposadr[joint]]
        parts = self._parts(int(scene.model.jnt_bodyid[joint]))
        handle = max((scene.corners([part]) for part in parts), key=lambda points: float((points[:, :2] @ out).max()))
        return Drawer((handle.min(0) + handle.max(0)) / 2, out, scene.corners(parts)[:, :2] + way * axis)

    def hung(self, fixture: str) -> bool:
        """Whether a goal's word names something with a door: it can be shut, and turns."""
        import mujoco

        found = self._scene.env.fixtures_dict.get(fixture)
        if found is None or not found.object_properties.get("articulation", {}).get("default_close_ranges"):
            return False
        return bool(self._scene.model.jnt_type[self._hinge(fixture)[0]] == mujoco.mjtJoint.mjJNT_HINGE)

    def door(self, fixture: str) -> Door:
        """The door of a fixture, as its largest part has it."""
        scene = self._scene
        joint, body = self._hinge(fixture)
        panel = max(self._parts(body), key=lambda part: float(np.prod(scene.model.geom_size[part])))
        middle, hinge = scene.data.geom_xpos[panel], scene.data.xanchor[joint][:2]
        points = scene.corners([panel])
        turn = np.sign(scene.data.xaxis[joint][2] * -scene.data.qpos[scene.model.jnt_qposadr[joint]])
        frame = scene.data.geom_xmat[panel].reshape(3, 3)[:2, :2].T
        along = max((*frame, *-frame), key=lambda axis: float((middle[:2] - hinge) @ axis))
        shutting = rotated(along, turn * np.pi / 2)
        depth = np.ptp(points[:, :2] @ shutting) / 2
        face = middle - np.array([*depth * shutting, 0.0])
        return Door(hinge.copy(), face, float(points[:, 2].max()), shutting)

    def cavity(self, region: str) -> Cavity | None:
        """The space behind a door that a region is in; None where there is no door to it, or no roof over it."""
        scene = self._scene
        if (site := scene.env.object_sites_dict.get(region)) is None or not self.hung(site.parent_name):
            return None
        door, frame = self._hinge(site.parent_name)[1], scene.env.sim.data.get_site_xmat(region)[:2, :2].T
        middle = np.asarray(scene.env.sim.data.get_site_xpos(region), np.float64)

        def free(*way: float) -> float:
            """How far it is from the region's middle to the next wall."""
            return self._seen(middle, np.array(way), door)

        if free(0.0, 0.0, 1.0) == FAR_OFF:
            return None
        inward = -max((*frame, *-frame), key=lambda way: free(*way, 0.0))
        aside = rotated(inward, np.pi / 2)
        aside *= np.sign(aside @ (middle[:2] - self.door(site.parent_name).hinge))
        centre = middle[:2] + aside * (free(*aside, 0.0) - free(*-aside, 0.0)) / 2
        back = centre + (free(*inward, 0.0) - BEHIND) * inward
        return Cavity(np.array([*back, middle[2] - free(0.0, 0.0, -1.0)]), inward, aside)

    def _seen(self, point: Point, way: Point, door: int) -> float:
        """The distance from a point to the first solid thing on a way, the door left out."""
        import mujoco

        groups = np.arange(mujoco.mjNGROUP, dtype=np.int32) == COLLISION_GEOMS
        found = np.zeros(1, np.int32)
        scene = self._scene
        seen = mujoco.mj_ray(scene.model, scene.data, point, way, groups.astype(np.uint8), 1, door, found)
        return FAR_OFF if seen < 0 else float(min(seen, FAR_OFF))

    def _parts(self, body: int) -> Any:
        """The geoms of a body that things collide with."""
        return np.flatnonzero(self._scene.solid & (self._scene.model.geom_bodyid == body))

    def _hinge(self, fixture: str) -> tuple[int, int]:
        """The joint of a fixture's knob or door, and what hangs on it."""
        model = self._scene.model
        joint = model.joint(self._scene.env.get_object(fixture).joints[-1]).id
        return joint, int(model.jnt_bodyid[joint])
