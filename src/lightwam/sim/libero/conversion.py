"""Conversions between LIBERO and a policy: pictures, rotations, the gripper."""

from __future__ import annotations

import io
import math

import numpy as np
from jaxtyping import Float64, UInt8

from lightwam.config.libero_protocols import GripperRule, Treatment


def apply_treatment(
    picture: UInt8[np.ndarray, "_h _w 3"], treatment: Treatment
) -> UInt8[np.ndarray, "_height _width 3"]:
    """Return a picture as a protocol's policy expects it: unchanged for "as drawn", else 224x224.

    "resized" is Pillow's bilinear resizing, as in openpi's client. OpenVLA-OFT, which was trained on JPEGs, compresses
    the picture (quality 95), resizes it with Lanczos' filter, and enlarges its middle, 0.9 of the area.
    """
    if treatment == "as drawn":
        return picture
    from PIL import Image

    image = Image.fromarray(picture)
    if treatment == "resized":
        return np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    small = np.asarray(Image.open(file).resize((224, 224), Image.Resampling.LANCZOS))
    return crop_middle(small, math.sqrt(0.9))


def crop_middle(picture: UInt8[np.ndarray, "n n 3"], share: float) -> UInt8[np.ndarray, "n n 3"]:
    """Return the middle `share` of each side, enlarged to the old size (bilinear, corners aligned)."""
    n = len(picture)
    at = np.linspace((1 - share) / 2 * (n - 1), (1 + share) / 2 * (n - 1), n)
    low = np.minimum(at.astype(int), n - 2)
    part = at - low
    rows = picture[low] * (1 - part)[:, None, None] + picture[low + 1] * part[:, None, None]
    both = rows[:, low] * (1 - part)[:, None] + rows[:, low + 1] * part[:, None]
    return both.round().astype(np.uint8)


def axis_angle(quaternion: Float64[np.ndarray, " 4"]) -> Float64[np.ndarray, " 3"]:
    """Return a rotation as axis times angle (0 to 2 pi); `quaternion` is x, y, z, w, as robosuite has it."""
    w = float(np.clip(quaternion[3], -1, 1))
    sine = math.sqrt(1 - w * w)
    return np.zeros(3) if math.isclose(sine, 0) else quaternion[:3] * (2 * math.acos(w) / sine)


def to_libero_gripper(gripper: float, rule: GripperRule) -> float:
    """Convert the policy's gripper, 1 open and 0 closed, to LIBERO's, -1 open and 1 closed."""
    value = 1 - 2 * gripper
    return float(np.sign(value)) if rule == "sign" else value
