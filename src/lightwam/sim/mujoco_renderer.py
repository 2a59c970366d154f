"""Rendering of a MuJoCo world, faster than MuJoCo's own renderer on a CPU.

With Mesa's llvmpipe the time of a picture depends on the number of triangles, hardly on its size. Geoms outside the
camera's view are left out, which changes no pixel. Where pictures may differ from MuJoCo's own, three more things can
be left out, if the policy is trained on the same pictures: shadows and reflections, which draw the world again;
antialiasing; and detail of large meshes that is finer than `mesh_detail` metres.
"""

from __future__ import annotations

import atexit
import copy
import weakref
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from lightwam.sim.opengl import gl_context

FINE_MESH_FACES = 1000
"""meshes of fewer triangles keep their detail"""
HIDDEN_GROUP = 5
"""a group of geoms that MuJoCo does not draw by default"""
PLANE = 0
"""MuJoCo's type of infinite geoms"""
MARGIN = 1e-3
"""metres by which a geom must be outside the view to be left out: far more than rounding"""

View = tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "4 3"]]
"""an eye's position (metres), and the outward unit normals of the four sides of what it sees"""

_open: weakref.WeakSet[MujocoRenderer] = weakref.WeakSet()


class MujocoRenderer:
    """Renderer of a model's named cameras; it does not change the physics of model or data."""

    def __init__(
        self, model: Any, height: int, width: int, mesh_detail: float | None, hidden: tuple[int, ...] = ()
    ) -> None:
        """`mesh_detail` in metres, 0 for full meshes; None gives MuJoCo's own pixels.

        `hidden` are groups of geoms that are not drawn, in addition to MuJoCo's own.
        """
        import mujoco

        drawn = simplify_meshes(model, mesh_detail) if mesh_detail else copy.copy(model)
        if mesh_detail is not None:
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
            self._scene.flags[flag] *= mesh_detail is None
        for group in hidden:
            self._option.geomgroup[group] = 0
        self._camera, self._perturb = mujoco.MjvCamera(), mujoco.MjvPerturb()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        _open.add(self)
        # registered after mujoco's own exit function, so run before it: that one terminates EGL under open contexts
        atexit.unregister(_close_all)
        atexit.register(_close_all)

    def draw(self, data: Any, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        """Draw the picture of `camera`, first row on top.

        `self.model` may have been replaced by another model with the same meshes and textures.
        """
        mujoco, groups = self._mujoco, self.model.geom_group.copy()
        self._camera.fixedcamid = self.model.camera(camera).id
        self.model.geom_group[self._invisible(data)] = HIDDEN_GROUP
        try:
            objects = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(self.model, data, self._option, self._perturb, self._camera, objects, self._scene)
        finally:
            self.model.geom_group[:] = groups
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        picture = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._rect, self._context)
        return picture[::-1]

    def _invisible(self, data: Any) -> Bool[np.ndarray, " geoms"]:
        """Return the geoms that change no pixel: outside the view and every mirror's view; none if there are shadows.

        Mirrors are MuJoCo's: planes and the upper faces of boxes, if their material reflects.
        """
        mujoco, model, flags = self._mujoco, self.model, self._scene.flags
        view = camera_view(model, data, self._camera.fixedcamid, self._rect.width / self._rect.height)
        if view is None or (flags[mujoco.mjtRndFlag.mjRND_SHADOW] and model.light_castshadow.any()):
            return np.zeros(model.ngeom, bool)
        away = outside_view(model, data, view)
        if not flags[mujoco.mjtRndFlag.mjRND_REFLECTION] or not model.nmat:
            return away
        shiny = np.append(model.mat_reflectance > 0, False)  # the last for geoms without a material, -1
        if shiny[model.site_matid].any():  # boxes that are sites are mirrors too
            return np.zeros(model.ngeom, bool)
        shown = np.asarray(self._option.geomgroup)[np.clip(model.geom_group, 0, mujoco.mjNGROUP - 1)] > 0
        flat = (model.geom_type == PLANE) | (model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)
        for mirror in np.flatnonzero(shown & flat & shiny[model.geom_matid] & ~away):
            away &= outside_view(model, data, mirrored_view(model, data, int(mirror), view))
        return away

    def close(self) -> None:
        """Free the drawing context; otherwise the process's exit does."""
        _open.discard(self)
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def camera_view(model: Any, data: Any, camera: int, aspect: float) -> View | None:
    """Return a camera's view; None where a field of view does not define it (orthographic, or a sensor's).

    `aspect` is width / height.
    """
    if model.cam_orthographic[camera] or model.cam_sensorsize[camera].any():
        return None
    up = np.tan(np.radians(model.cam_fovy[camera]) / 2)
    sides = np.array([[1, 0, up * aspect], [-1, 0, up * aspect], [0, 1, up], [0, -1, up]])  # the camera looks along -z
    sides /= np.linalg.norm(sides, axis=1, keepdims=True)
    return data.cam_xpos[camera], sides @ data.cam_xmat[camera].reshape(3, 3).T


def mirrored_view(model: Any, data: Any, mirror: int, view: View) -> View:
    """Return the view of an eye's mirror image through the mirror's frame.

    `mirror` is a geom, a box or a plane; planes count as infinite, so that the sides are the mirrored ones.
    """
    eye, sides = view
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


def outside_view(model: Any, data: Any, view: View) -> Bool[np.ndarray, " geoms"]:
    """Return which geoms have their compiled bounding box beyond a side of the view."""
    eye, sides = view
    turn = data.geom_xmat.reshape(-1, 3, 3)
    middle = data.geom_xpos + (turn @ model.geom_aabb[:, :3, None])[:, :, 0]
    reach = (np.abs(sides @ turn) @ model.geom_aabb[:, 3:, None])[:, :, 0]
    beyond = (middle - eye) @ sides.T - reach > MARGIN
    return np.asarray(beyond.any(axis=1) & (model.geom_type != PLANE))


def simplify_meshes(model: Any, mesh_detail: float) -> Any:
    """Return a copy of the model, for drawing only, with large meshes simplified to a grid of `mesh_detail` metres.

    Vertices within one cell become their mean, and triangles that collapse are left out. The others keep their normals,
    so that round objects still look round.
    """
    drawn = copy.copy(model)
    for mesh in np.flatnonzero(model.mesh_facenum > FINE_MESH_FACES):
        rows = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
        vertices = model.mesh_vert[rows]
        grid = np.floor(vertices / mesh_detail).astype(np.int64)
        _, cell, counts = np.unique(grid, axis=0, return_inverse=True, return_counts=True)
        cell = cell.reshape(-1)
        means = np.stack([np.bincount(cell, vertices[:, axis]) / counts for axis in range(3)], axis=1)
        drawn.mesh_vert[rows] = means[cell]
        start = int(model.mesh_faceadr[mesh])
        faces = slice(start, start + int(model.mesh_facenum[mesh]))
        a, b, c = cell[model.mesh_face[faces]].T
        kept = np.flatnonzero((a != b) & (b != c) & (c != a))
        for name in ("mesh_face", "mesh_facenormal", "mesh_facetexcoord"):
            getattr(drawn, name)[start : start + len(kept)] = getattr(model, name)[faces][kept]
        drawn.mesh_facenum[mesh] = len(kept)
    return drawn


def _close_all() -> None:
    for renderer in list(_open):
        renderer.close()
