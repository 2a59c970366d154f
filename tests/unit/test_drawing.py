"""data/inspection/drawing.py: canvases under the grid of tokens, cameras outlined and named."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from lightwam.config.schema import CameraPlace, CodecConfig
from lightwam.data.inspection.drawing import GAP, LINE, MARGIN, draw_canvases
from lightwam.data.inspection.pictures import Shown

CODEC = CodecConfig((64, 160), (CameraPlace("front", 0, 0, 64, 64), CameraPlace("wrist", 0, 64, 64, 64)))
RED, BLUE = (np.full((3, 48, 48, 3), colour, np.uint8) for colour in ((200, 30, 30), (30, 30, 200)))
SHOWN = Shown(3, "pick", (0, 4, 9), {"front": RED, "wrist": BLUE})


def drawn(codec: CodecConfig = CODEC, count: int = 2) -> np.ndarray:
    data = draw_canvases(codec, 16, [SHOWN] * count, "what the model sees", ["episode 3"] * count)
    return np.asarray(Image.open(io.BytesIO(data)))


def test_each_episode_is_a_row_of_three_canvases() -> None:
    picture = drawn()
    times = 4
    assert picture.shape == (
        2 * MARGIN + 2 * LINE + 2 * (LINE + 64 * times + GAP),
        2 * MARGIN + 3 * 160 * times + 2 * GAP,
        3,
    )
    top, left = MARGIN + 3 * LINE, MARGIN
    tile = picture[top : top + 64 * times, left : left + 160 * times]
    inside = tile[26 * times :, :]  # below the names
    assert (inside[5, 5] == (200, 30, 30)).all() and (inside[5, 70 * times] == (30, 30, 200)).all()
    assert (inside[5, 150 * times] == 0).all(), "no camera has a place there"
    assert (inside[5, 16 * times] > inside[5, 5]).any(), "a line between tokens"
    assert inside[5, 64 * times, 0] > 200 and inside[5, 64 * times, 1] > 150, "the place's outline"
    second = picture[:, left + 160 * times + GAP :]
    assert (second[top + 30 * times, 5] == (200, 30, 30)).all()


def test_names_are_legible_and_only_of_cameras_with_a_place() -> None:
    one = replace(CODEC, places=CODEC.places[:1])
    both, alone = drawn(), drawn(one)
    top, wrist = MARGIN + 3 * LINE, MARGIN + 64 * 4
    name = both[top + 4 : top + 22, wrist + 4 : wrist + 80].reshape(-1, 3)
    assert (name.min(1) > 240).sum() > 20, "white letters"
    assert alone[top + 4 : top + 22, wrist + 4 : wrist + 60].max() < 100, "black: nothing there"
