"""What a camera cannot see is not drawn, and no pixel tells."""

from typing import Any

import numpy as np
import pytest

from lightwam.sim.mujoco_pictures import MujocoPictures, choose_gl, seen_in

pytestmark = pytest.mark.sim
choose_gl()
mujoco = pytest.importorskip("mujoco")

SIZE = (48, 80)
MIRRORS = {
    "none": "",
    "box": '<geom type="box" size=".5 .4 .25" pos="0 0 -.2" euler="20 10 0" material="shiny"/>',
    "floor": '<geom type="plane" size="0 0 1" pos="0 0 -.4" material="shiny"/>',
    "tile": '<geom type="plane" size=".4 .5 1" pos="0 0 -.1" euler="0 15 0" material="shiny"/>',
    "two": '<geom type="box" size=".3 .2 .05" pos=".2 0 .1" material="shiny"/>'
    '<geom type="plane" size="0 0 1" pos="0 0 -.4" material="shiny"/>',
}


def world(seed: int, mirror: str, *, shadow: bool = False, camera: str = 'fovy="40"') -> Any:
    """Sixty things at random places around a camera that looks towards the middle of them."""
    rng = np.random.default_rng(seed)
    things = "".join(
        f'<geom type="{kind}" size="{" ".join(map(str, rng.uniform(0.02, 0.1, 3)))}" '
        f'pos="{" ".join(map(str, rng.uniform(-1, 1, 3)))}" euler="{" ".join(map(str, rng.uniform(0, 360, 3)))}" '
        f'rgba="{" ".join(map(str, rng.uniform(0, 1, 3)))} 1"/>'
        for kind in ("box", "sphere", "capsule", "cylinder", "ellipsoid", "box") * 10
    )
    eye = rng.uniform((-0.4, -0.4, 0.3), (0.4, 0.4, 1.1))
    right = np.cross(-eye, rng.normal(size=3))
    axes = " ".join(map(str, (*right, *np.cross(right, -eye))))
    return mujoco.MjModel.from_xml_string(
        f"""<mujoco><visual><quality offsamples="4"/></visual>
        <asset><material name="shiny" reflectance=".5" rgba=".5 .5 .5 1"/></asset>
        <worldbody><light pos="0 0 2" castshadow="{str(shadow).lower()}"/>
        <camera name="eye" pos="{" ".join(map(str, eye))}" xyaxes="{axes}" {camera}/>
        {MIRRORS[mirror]}{things}</worldbody></mujoco>"""
    )


def drawn(model: Any, grain: float | None = None) -> tuple[int, np.ndarray, np.ndarray]:
    """How many things were left out, the picture without them, and the one with them."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    pictures = MujocoPictures(model, *SIZE, grain)
    left_out = pictures.draw(data, "eye")
    num_left_out = model.ngeom - pictures._scene.ngeom
    pictures._needless = lambda data: np.zeros(model.ngeom, bool)  # type: ignore[method-assign]
    whole = pictures.draw(data, "eye")
    assert pictures._scene.ngeom == model.ngeom
    pictures.close()
    return num_left_out, left_out, whole


@pytest.mark.parametrize("mirror", MIRRORS)
def test_what_is_left_out_changes_no_pixel(mirror: str) -> None:
    most = 0
    for seed in range(12):
        model = world(seed, mirror)
        groups = model.geom_group.copy()
        num_left_out, left_out, whole = drawn(model)
        np.testing.assert_array_equal(left_out, whole, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(model.geom_group, groups)
        most = max(most, num_left_out)
    assert most >= 15


def test_a_mirror_shows_what_is_out_of_sight() -> None:
    """Else the test above would say nothing of mirrors: some thing is seen by its image alone."""
    model = world(0, "floor")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    pictures = MujocoPictures(model, *SIZE, None)
    whole = pictures.draw(data, "eye")
    pictures._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    away = pictures._needless(data)
    pictures._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 1
    pictures._needless = lambda data: away  # type: ignore[method-assign]
    assert (pictures.draw(data, "eye") != whole).any()
    pictures.close()


def test_a_mirror_is_looked_into_through_its_frame() -> None:
    """Rays from an eye to the upper face of a box go on within the view; those that pass it by would not."""
    model, rng = world(0, "box"), np.random.default_rng(0)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    turn, (width, length, height) = data.geom_xmat[0].reshape(3, 3), model.geom_size[0]
    for _ in range(50):
        eye = data.geom_xpos[0] + turn @ [*rng.uniform(-1, 1, 2), height + rng.uniform(0.05, 1)]
        image, sides = seen_in(model, data, 0, eye, np.zeros((4, 3)))
        for share, within in ((0.99, True), (1.01, False)):
            on = np.array([share * width, rng.uniform(-length, length), height])
            hit = data.geom_xpos[0] + turn @ (on * [rng.choice([-1, 1]), 1, 1])
            onward = turn @ ((turn.T @ (hit - eye)) * [1, 1, -1])
            assert ((hit + rng.uniform(0.01, 2) * onward - image) @ sides.T <= 0).all() == within


@pytest.mark.parametrize(("shadow", "camera"), [(True, 'fovy="40"'), (False, 'orthographic="true" fovy="1"')])
def test_all_is_drawn_where_sight_is_not_all(shadow: bool, camera: str) -> None:
    assert drawn(world(0, "none", shadow=shadow, camera=camera))[0] == 0


def test_plain_pictures_have_no_shadows_to_care_for() -> None:
    num_left_out, left_out, whole = drawn(world(0, "floor", shadow=True), 0.01)
    assert num_left_out > 0
    np.testing.assert_array_equal(left_out, whole)
