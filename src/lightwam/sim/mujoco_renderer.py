"""Pictures of a MuJoCo world: for every adapter whose simulator is MuJoCo.

On a CPU (Mesa's llvmpipe) a picture costs what its triangles cost, whatever its size. What lies outside of the camera's
view is left out, where that changes no pixel. Where a picture need not be MuJoCo's own, three more things can be left
out, and each of them is a part of what a policy is trained on: shadows and reflections, which draw the world again;
smoothed edges (multisampling); and detail of meshes of many triangles that is finer than `grain` metres.
"""

from __future__ import annotations

import atexit
import copy
import weakref
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from lightwam.sim.opengl import gl_context

FINE_MESH_FACES = 1000
"""meshes of fewer triangles are drawn as they are"""
UNDRAWN = 5
"""a group of geoms that MuJoCo does not draw unless told to"""
PLANE = 0
"""MuJoCo's type of geoms that have no end"""
MARGIN = 1e-3
"""metres by which a thing must lie beyond a side of the view to be left out: far more than rounding"""

_open: weakref.WeakSet[MujocoRenderer] = weakref.WeakSet()


class MujocoRenderer:
    """Draws from named cameras. Reads the model and the data, changes neither's physics."""

    def __init__(self, model: Any, height: int, width: int, grain: float | None, hidden: tuple[int, ...] = ()) -> None:
        """`grain` in metres, 0 for all meshes as they are; None gives MuJoCo's own pixels.

        `hidden` are groups of geoms that are not drawn besides MuJoCo's own.
        """
        import mujoco

        drawn = coarse(model, grain) if grain else copy.copy(model)
        if grain is not None:
            drawn.vis.quality.shadowsize, drawn.vis.quality.offsamples = 0, 0
        drawn.vis.global_.offheight, drawn.vis.global_.offwidth = height, width
        self._mujoco, self.model = mujoco, model
        self._gl: Any = gl_context(height, width)
        self._gl.make_current()
        self._context = mujoco.MjrContext(drawn, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._scene, self._option = mujoco.MjvScene(model, maxgeom=2000), mujoco.MjvOption()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] *= grain is None
        for group in hidden:
            self._option.geomgroup[group] = 0
        self._camera, self._perturb = mujoco.MjvCamera(), mujoco.MjvPerturb()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        _open.add(self)
        # registered after mujoco's own exit step, so run before it: that one pulls EGL away from open contexts
        atexit.unregister(_close_open)
        atexit.register(_close_open)

    def draw(self, data: Any, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        """The picture that `camera` sees, first row on top.

        `self.model` may meanwhile be another of the same meshes and textures.
        """
        mujoco, groups = self._mujoco, self.model.geom_group.copy()
        self._camera.fixedcamid = self.model.camera(camera).id
        self.model.geom_group[self._needless(data)] = UNDRAWN
        try:
            mujoco.mjv_updateScene(self.model, data, self._option, self._perturb, self._camera,
                                   mujoco.mjtCatBit.mjCAT_ALL, self._scene)  # fmt: skip
        finally:
            self.model.geom_group[:] = groups
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        picture = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._rect, self._context)
        return picture[::-1]

    def _needless(self, data: Any) -> Bool[np.ndarray, " geoms"]:
        """Which geoms the picture does not need: those out of sight, also in mirrors; none where things have shadows.

        Mirrors are MuJoCo's: planes and the upper faces of boxes, if their material reflects.
        """
        mujoco, model, flags = self._mujoco, self.model, self._scene.flags
        view = view_of(model, data, self._camera.fixedcamid, self._rect.width / self._rect.height)
        if view is None or (flags[mujoco.mjtRndFlag.mjRND_SHADOW] and model.light_castshadow.any()):
            return np.zeros(model.ngeom, bool)
        eye, sides = view
        away = out_of_sight(model, data, eye, sides)
        if not flags[mujoco.mjtRndFlag.mjRND_REFLECTION] or not model.nmat:
            return away
        shiny = np.append(model.mat_reflectance > 0, False)  # the last for things without a material, which have -1
        if shiny[model.site_matid].any():  # boxes that are sites are mirrors too
            return np.zeros(model.ngeom, bool)
        shown = np.asarray(self._option.geomgroup)[np.clip(model.geom_group, 0, mujoco.mjNGROUP - 1)] > 0
        flat = (model.geom_type == PLANE) | (model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)
        for mirror in np.flatnonzero(shown & flat & shiny[model.geom_matid] & ~away):
            away &= out_of_sight(model, data, *seen_in(model, data, int(mirror), eye, sides))
        return away

    def close(self) -> None:
        """Frees the drawing context; left alone, that is done at the process's exit."""
        _open.discard(self)
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def view_of(
    model: Any, data: Any, camera: int, aspect: float
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "4 3"]] | None:
    """Where a camera is (metres), and outward unit normals of the four sides of its view; `aspect` is width / height.

    None where its view is not given by a field of view (orthographic, or a sensor's).
    """
    if model.cam_orthographic[camera] or model.cam_sensorsize[camera].any():
        return None
    up = np.tan(np.radians(model.cam_fovy[camera]) / 2)
    sides = np.array([[1, 0, up * aspect], [-1, 0, up * aspect], [0, 1, up], [0, -1, up]])  # it looks along -z
    sides /= np.linalg.norm(sides, axis=1, keepdims=True)
    return data.cam_xpos[camera], sides @ data.cam_xmat[camera].reshape(3, 3).T


def seen_in(
    model: Any, data: Any, mirror: int, eye: Float[np.ndarray, " 3"], sides: Float[np.ndarray, "4 3"]
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "4 3"]]:
    """The view that an eye has in a mirror: the eye's image (metres), outward normals of the mirror's frame from it.

    `mirror` is a geom, a box or a plane, and planes are taken as if without end: theirs are the mirrored `sides`.
    """
    right, ahead, normal = data.geom_xmat[mirror].reshape(3, 3).T
    plane = model.geom_type[mirror] == PLANE
    width, length, height = (0, 0, 0) if plane else model.geom_size[mirror]
    middle = data.geom_xpos[mirror] + height * normal
    image = eye - 2 * ((eye - middle) @ normal) * normal
    if plane:
        return image, sides - 2 * np.outer(sides @ normal, normal)
    edges = [(ahead, width * right), (ahead, -width * right), (right, length * ahead), (right, -length * ahead)]
    frame = [(np.cross(along, middle + out - image), out) for along, out in edges]
    return image, np.array([side * np.sign(side @ out) / (np.linalg.norm(side) + 1e-12) for side, out in frame])


def out_of_sight(
    model: Any, data: Any, eye: Float[np.ndarray, " 3"], sides: Float[np.ndarray, "4 3"]
) -> Bool[np.ndarray, " geoms"]:
    """Which geoms lie with their whole box, as it was compiled, beyond a side of the view from `eye` (metres).

    `sides` are outward normals of length 1.
    """
    turn = data.geom_xmat.reshape(-1, 3, 3)
    middle = data.geom_xpos + (turn @ model.geom_aabb[:, :3, None])[:, :, 0]
    reach = (np.abs(sides @ turn) @ model.geom_aabb[:, 3:, None])[:, :, 0]
    beyond = (middle - eye) @ sides.T - reach > MARGIN
    return np.asarray(beyond.any(axis=1) & (model.geom_type != PLANE))


def coarse(model: Any, grain: float) -> Any:
    """A copy of the model, for drawing only, whose fine meshes are simplified to cells of `grain` metres.

    Vertices of a mesh within one cell of a grid become their mean, and triangles that this folds up are left out. What
    remains keeps its own normals, so that round things stay round to the eye.
    """
    drawn = copy.copy(model)
    for mesh in np.flatnonzero(model.mesh_facenum > FINE_MESH_FACES):
        vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
        merged, cell = _cluster(model.mesh_vert[vertices], grain)
        drawn.mesh_vert[vertices] = merged
        start = int(model.mesh_faceadr[mesh])
        faces = slice(start, start + int(model.mesh_facenum[mesh]))
        corners = cell[model.mesh_face[faces]]
        a, b, c = corners.T
        kept = np.flatnonzero((a != b) & (b != c) & (c != a))
        for name in ("mesh_face", "mesh_facenormal", "mesh_facetexcoord"):
            getattr(drawn, name)[start : start + len(kept)] = getattr(model, name)[faces][kept]
        drawn.mesh_facenum[mesh] = len(kept)
    return drawn


def _cluster(
    vertices: Float[np.ndarray, "V 3"], grain: float
) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, " V"]]:
    """Each vertex moved to the mean of its grid cell, and the number of that cell."""
    grid = np.floor(vertices / grain).astype(np.int64)
    _, cell = np.unique(grid, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    counts = np.bincount(cell)
    means = np.stack([np.bincount(cell, vertices[:, axis]) / counts for axis in range(3)], axis=1)
    return means[cell].astype(vertices.dtype), cell


def _close_open() -> None:
    for pictures in list(_open):
        pictures.close()
