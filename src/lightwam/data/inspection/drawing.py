"""A picture of what the model sees: canvases of a few moments, with the grid of tokens and the cameras' names."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from lightwam.config.schema import CodecConfig
from lightwam.data.codec import compose_canvas
from lightwam.data.inspection.pictures import Shown

MARGIN, GAP, LINE = 24, 12, 22
WIDTH = 1800
"""pixels, about, of the whole picture"""
GROUND, INK, FAINT = (250, 250, 248), (30, 30, 30), (110, 110, 110)
GRID = (255, 255, 255, 90)


def draw_canvases(codec: CodecConfig, token: int, shown: Sequence[Shown], title: str, say_of: Sequence[str]) -> bytes:
    """Draw a PNG: a row for each episode with its first, middle and last canvas, tokens of `token` pixels a side.

    `title` is above; `say_of` has the line above each episode's row.
    """
    height, width = codec.canvas
    columns = len(shown[0].rows)
    times = max(1, min(4, round((WIDTH - 2 * MARGIN - (columns - 1) * GAP) / (columns * width))))
    tile = times * height, times * width
    row = LINE + tile[0] + GAP
    size = 2 * MARGIN + columns * tile[1] + (columns - 1) * GAP, 2 * MARGIN + 2 * LINE + len(shown) * row
    sheet = Image.new("RGB", size, GROUND)
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(18), ImageFont.load_default(14)
    pen.text((MARGIN, MARGIN), title, INK, font)
    for number, (episode, line) in enumerate(zip(shown, say_of, strict=True)):
        top = MARGIN + 2 * LINE + number * row
        pen.text((MARGIN, top), line, FAINT, small)
        clip = compose_canvas(codec, {place.camera: episode.frames[place.camera] for place in codec.places}).numpy()
        for column, canvas in enumerate(clip):
            left = MARGIN + column * (tile[1] + GAP)
            sheet.paste(_tile(canvas, codec, token, times), (left, top + LINE))
    out = io.BytesIO()
    sheet.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _tile(canvas: UInt8[np.ndarray, "height width 3"], codec: CodecConfig, token: int, times: int) -> Image.Image:
    """Return one canvas, enlarged, under the grid of tokens and with the name of every camera."""
    height, width = codec.canvas
    tile = Image.fromarray(canvas).resize((width * times, height * times), Image.Resampling.NEAREST).convert("RGBA")
    over = Image.new("RGBA", tile.size, (0, 0, 0, 0))
    pen, font = ImageDraw.Draw(over), ImageFont.load_default(13)
    for x in range(token, width, token):
        pen.line((x * times, 0, x * times, height * times), GRID)
    for y in range(token, height, token):
        pen.line((0, y * times, width * times, y * times), GRID)
    for place in codec.places:
        corner = place.left * times, place.top * times
        pen.rectangle((*corner, corner[0] + place.width * times - 1, corner[1] + place.height * times - 1),
                      outline=(255, 200, 0, 220))  # fmt: skip
        words = f"{place.camera} {place.height}x{place.width}"
        box = pen.textbbox((corner[0] + 5, corner[1] + 4), words, font)
        pen.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), (0, 0, 0, 150))
        pen.text((corner[0] + 5, corner[1] + 4), words, (255, 255, 255, 255), font)
    return Image.alpha_composite(tile, over).convert("RGB")
