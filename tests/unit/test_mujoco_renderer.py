"""What a camera cannot see is not drawn, and no pixel tells."""

from typing import Any

import numpy as np
import pytest

from lightwam.sim.mujoco_renderer import MujocoRenderer, camera_view, mirrored_view, outside_view
from lightwam.sim.opengl import choose_gl

pytestmark = pytest.mark.sim
mujoco = pytest.importorskip("mujoco")

SIZE = (48, 80)
BOX = '<geom type="box" size=".5 .4 .25" pos="0 0 -.2" euler="20 10 0" material="shiny"/>'
FLOOR = '<geom type="plane" size="0 0 1" pos="0 0 -.4" material="shiny"/>'
MIRRORS = {
    "none": "",
    "box": BOX,
    "floor": FLOOR,
    "tile": '<geom type="plane" size=".4 .5 1" pos="0 0 -.1" euler="0 15 0" material="shiny"/>',
    "two": '<geom type="box" size=".3 .2 .05" pos=".2 0 .1" material="shiny"/>' + FLOOR,
    "out of sight": '<geom type="box" size=".3 .2 .05" pos="0 0 3" material="shiny"/>',
    "not shown": FLOOR.replace("/>", ' group="4"/>'),
}
SITE = '<site type="box" size=".3 .3 .05" material="shiny"/>'
KINDS = ("type='box'", "type='sphere'", "type='capsule'", "type='cylinder'", "type='ellipsoid'",
         "type='mesh' mesh='wedge'")  # fmt: skip
OFF_CENTRE = 'sensorsize=".01 .006" resolution="80 48" focal=".01 .01" principal=".003 0"'


@pytest.fixture(autouse=True)
def off_screen() -> None:
    choose_gl()


def world(seed: int, mirror: str, *, shadow: bool = False, camera: str = 'fovy="40"') -> Any:
    """Sixty things at random places around a camera that looks towards the middle of them; mirrors come first."""
    rng = np.random.default_rng(seed)

    def random(low: float, high: float) -> str:
        return " ".join(map(str, rng.uniform(low, high, 3)))

    things = "".join(
        f"<geom {kind} size='{random(0.02, 0.1)}' pos='{random(-1, 1)}' euler='{random(0, 360)}' "
        f"rgba='{random(0, 1)} 1'/>"
        for kind in KINDS * 10
    )
    eye = rng.uniform((-0.4, -0.4, 0.3), (0.4, 0.4, 1.1))
    right = np.cross(-eye, rng.normal(size=3))
    axes = " ".join(map(str, (*right, *np.cross(right, -eye))))
    return mujoco.MjModel.from_xml_string(
        f"""<mujoco><visual><quality offsamples="4"/></visual>
        <asset><mesh name="wedge" vertex="0 0 0  .5 0 0  .1 .2 0  0 0 .2"/>
        <material name="shiny" reflectance=".5" rgba=".5 .5 .5 1"/></asset>
        <worldbody><light pos="0 0 2" castshadow="{str(shadow).lower()}"/>
        <camera name="eye" pos="{" ".join(map(str, eye))}" xyaxes="{axes}" {camera}/>
        {MIRRORS.get(mirror, mirror)}{things}</worldbody></mujoco>"""
    )


def leave_out(pictures: MujocoRenderer, away: np.ndarray) -> None:
    """These things, whatever is in sight."""
    pictures._invisible = lambda data: away  # type: ignore[method-assign]


def out_of_view(model: Any) -> tuple[tuple[Any, Any], np.ndarray]:
    """The data, the view, and what is out of sight, whatever mirrors show."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    view = camera_view(model, data, 0, SIZE[1] / SIZE[0])
    assert view is not None
    return (data, view), outside_view(model, data, view)


def drawn(model: Any, mesh_detail: float | None = None) -> tuple[int, np.ndarray, np.ndarray]:
    """How many things were left out, the picture without them, and the one with them."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    pictures = MujocoRenderer(model, *SIZE, mesh_detail)
    left_out = pictures.draw(data, "eye")
    num_drawn = pictures._scene.ngeom
    leave_out(pictures, np.zeros(model.ngeom, bool))
    whole = pictures.draw(data, "eye")
    pictures.close()
    return pictures._scene.ngeom - num_drawn, left_out, whole


@pytest.mark.parametrize("mirror", MIRRORS)
def test_leaving_out_geoms_changes_no_pixel(mirror: str) -> None:
    most = 0
    for seed in range(12):
        model = world(seed, mirror)
        groups = model.geom_group.copy()
        num_left_out, left_out, whole = drawn(model)
        np.testing.assert_array_equal(left_out, whole, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(model.geom_group, groups)
        if mirror in ("none", "out of sight", "not shown"):
            assert num_left_out == (out_of_view(model)[1] & (model.geom_group == 0)).sum()
        most = max(most, num_left_out)
    assert most >= 15


def test_meshes_outside_the_view_have_all_corners_beyond_one_side() -> None:
    """Which is not where the geom is: what is left out has all its corners beyond one side."""
    num_away = 0
    for seed in range(40):
        model = world(seed, "none")
        (data, (eye, sides)), away = out_of_view(model)
        for geom in np.flatnonzero(away & (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH)):
            corners = data.geom_xpos[geom] + model.mesh_vert @ data.geom_xmat[geom].reshape(3, 3).T
            assert ((corners - eye) @ sides.T > 0).all(axis=0).any()
            num_away += 1
    assert num_away > 100


@pytest.mark.parametrize("mirror", ["box", "floor", "tile"])
def test_a_mirror_shows_geoms_outside_the_view(mirror: str) -> None:
    """Else the test above would say nothing of mirrors: some thing is seen by its image alone."""
    seen = False
    for seed in range(12):
        model = world(seed, mirror)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        pictures = MujocoRenderer(model, *SIZE, None)
        whole = pictures.draw(data, "eye")
        leave_out(pictures, out_of_view(model)[1])
        seen = seen or bool((pictures.draw(data, "eye") != whole).any())
        pictures.close()
    assert seen


def test_the_view_in_a_mirror_is_bounded_by_its_frame() -> None:
    """Rays from an eye to the upper face of a box go on within the view; those that pass it by would not."""
    model, rng = world(0, "box"), np.random.default_rng(0)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    turn, (width, length, height) = data.geom_xmat[0].reshape(3, 3), model.geom_size[0]
    for _ in range(50):
        eye = data.geom_xpos[0] + turn @ [*rng.uniform(-1, 1, 2), height + rng.uniform(0.05, 1)]
        image, sides = mirrored_view(model, data, 0, (eye, np.zeros((4, 3))))
        for share, within in ((0.99, True), (1.01, False)):
            on = np.array([*rng.uniform(-1, 1, 2), 1]) * (width, length, height)
            axis = rng.integers(2)
            on[axis] = rng.choice([-share, share]) * (width, length)[axis]
            hit = data.geom_xpos[0] + turn @ on
            onward = turn @ ((turn.T @ (hit - eye)) * [1, 1, -1])
            assert ((hit + rng.uniform(0.01, 2) * onward - image) @ sides.T <= 0).all() == within


@pytest.mark.parametrize(
    "settings",
    [
        {"shadow": True},
        {"camera": 'orthographic="true" fovy="1"'},
        {"camera": OFF_CENTRE},
        {"mirror": SITE},
    ],
    ids=["shadow", "orthographic", "off centre", "a site as mirror"],
)
def test_everything_is_drawn_with_shadows_or_unusual_cameras(settings: dict[str, Any]) -> None:
    assert drawn(world(0, **({"mirror": "none"} | settings)))[0] == 0


def test_an_error_while_drawing_leaves_the_model_unchanged() -> None:
    model = world(0, "none")
    groups = model.geom_group.copy()
    pictures = MujocoRenderer(model, *SIZE, None)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    pictures._perturb = 0
    with pytest.raises(TypeError):
        pictures.draw(data, "eye")
    np.testing.assert_array_equal(model.geom_group, groups)
    pictures.close()


def test_plain_pictures_leave_out_geoms_despite_shadows() -> None:
    num_left_out, left_out, whole = drawn(world(0, "floor", shadow=True), 0.01)
    assert num_left_out > 0
    np.testing.assert_array_equal(left_out, whole)
