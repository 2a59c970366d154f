"""The features that info.json declares: state, action and cameras, under LeRobot's names or those of --names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightwam.errors import ConfigError, DatasetError, did_you_mean

STATE, ACTION, CAMERA_PREFIX = "observation.state", "action", "observation.images."
LEROBOT_FEATURES = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""features that LeRobot adds itself"""


class FeatureNameError(DatasetError):
    """A feature that a dataset lacks under LeRobot's name.

    `names` are pairs FEATURE=NAME that may give it, as `--names` takes them; () without a guess.
    """

    def __init__(
        self,
        what: str,
        names: Sequence[str] = (),
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        next_step: str = "",
    ) -> None:
        super().__init__(what, where=where, got=got, expected=expected, next_step=next_step)
        self.names = tuple(names)


@dataclass(frozen=True)
class FeatureNames:
    """The dataset's names of state, action and cameras; the defaults are LeRobot's."""

    state: str = STATE
    action: str = ACTION
    cameras: Mapping[str, str] | None = None
    """camera -> feature; None: every feature whose name begins with "observation.images." """
    renamed: Mapping[str, str] = field(default_factory=dict)
    """camera -> feature, in addition to `cameras`"""

    def pairs(self) -> tuple[str, ...]:
        """Return the pairs for `parse_names`, without those that are LeRobot's own names."""
        names = {self.state: STATE, self.action: ACTION}
        names |= {feature: camera for camera, feature in {**(self.cameras or {}), **self.renamed}.items()}
        return tuple(f"{feature}={name}" for feature, name in sorted(names.items()) if feature not in (STATE, ACTION))


def parse_names(pairs: Sequence[str]) -> FeatureNames:
    """Parse the pairs of `--names FEATURE=NAME ...`; NAME is a camera, observation.state or action.

    ConfigError when a pair has another form, or a feature or name occurs twice.
    """
    features: dict[str, str] = {}
    for pair in pairs:
        feature, _, name = pair.partition("=")
        name = name.removeprefix(CAMERA_PREFIX)
        step = "for example --names image=front state=observation.state actions=action"
        if not feature or not re.fullmatch(r"[\w.-]+", name):
            expected = f"NAME: a camera, {STATE} or {ACTION}"
            raise ConfigError("--names takes pairs FEATURE=NAME", got=pair, expected=expected, next_step=step)
        if name in features or feature in features.values():
            raise ConfigError("--names gives a feature or a name twice", got=" ".join(pairs), next_step=step)
        features[name] = feature
    return FeatureNames(features.pop(STATE, STATE), features.pop(ACTION, ACTION), renamed=features)


@dataclass(frozen=True)
class Camera:
    """The feature of one camera."""

    key: str
    size: tuple[int, int]
    """height, width"""
    stored: Literal["video", "image"]
    """in mp4 files, or as PNG or JPEG bytes in the table"""


@dataclass(frozen=True)
class UnusableCamera:
    """A camera that cannot be used, which is an error only for recipes that need it."""

    reason: DatasetError
    broken: bool
    """False for a depth camera, which is valid but not used"""


def vector_feature(
    features: Mapping[str, Any], key: str, names: FeatureNames, where: str, optional: Collection[str] = (STATE,)
) -> tuple[int, tuple[str, ...]]:
    """Read the width and the dimension names of a vector feature; unnamed dimensions get their number.

    A dataset that lacks one of the `optional` features has 0 dimensions of it.
    """
    if key in optional and key not in features:
        return 0, ()
    if key not in features:
        raise _missing_feature(key, features, where, guessed_names(features, names))
    feature, where = features[key], f"{where} {key}"
    shape = feature.get("shape") if isinstance(feature, dict) else None
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
        step = 'correct it in meta/info.json: "shape": [dims]'
        raise DatasetError("a feature must be a vector", where=where, got=feature, next_step=step)
    dtype, step = feature.get("dtype"), "write the feature as float32"
    if not re.fullmatch(r"float(16|32|64)|u?int(8|16|32|64)", str(dtype)):
        raise DatasetError("a feature's dtype must be a number's", where=where, got=dtype, next_step=step)
    return shape[0], _dim_names(feature.get("names"), shape[0])


def _missing_feature(
    key: str, features: Mapping[str, Any], where: str, guessed: Sequence[str] = ()
) -> FeatureNameError:
    got, step = ", ".join(sorted(features)), names_step(guessed) or did_you_mean(key, features)
    return FeatureNameError("a feature is missing", guessed, where=where, got=got, expected=key, next_step=step)


def _dim_names(names: Any, dims: int) -> tuple[str, ...]:
    """Read LeRobot's forms ["x", "y"], {"motors": ["x", "y"]} and {"x": 0, "y": 1}; number the dimensions of others."""
    while isinstance(names, dict) and len(names) == 1 and isinstance(next(iter(names.values())), list | dict):
        names = next(iter(names.values()))
    if isinstance(names, dict) and sorted(names.values(), key=str) == sorted(range(dims), key=str):
        names = sorted(names, key=names.__getitem__)
    complete = isinstance(names, list) and len(names) == dims
    return tuple(map(str, names if complete else range(dims)))


def read_cameras(
    features: Mapping[str, Any], names: FeatureNames, where: str
) -> tuple[dict[str, Camera], dict[str, UnusableCamera]]:
    """Return the cameras by name, and those that cannot be used; DatasetError when no camera can be used."""
    keys = names.cameras
    if keys is None:
        renamed = set(names.renamed.values())
        keys = {key.removeprefix(CAMERA_PREFIX): key for key in features if key.startswith(CAMERA_PREFIX)}
        keys = {name: key for name, key in keys.items() if key not in renamed}
        if twice := sorted(keys.keys() & names.renamed.keys()):
            other, got = keys[twice[0]], f"{names.renamed[twice[0]]} and {keys[twice[0]]} are both {twice[0]}"
            what = "--names gives two cameras the same name"
            raise DatasetError(what, where=where, got=got, next_step=f"--names {other}=NAME too")
        keys |= names.renamed
    for key in keys.values():
        if key not in features:
            raise _missing_feature(key, features, where)
    declared = {name: _camera(key, features[key], f"{where} {key}") for name, key in keys.items()}
    cameras = {name: camera for name, camera in declared.items() if isinstance(camera, Camera)}
    left = {name: camera for name, camera in declared.items() if isinstance(camera, UnusableCamera)}
    if not cameras:
        got = "; ".join(f"{name}: {camera.reason.what}" for name, camera in left.items()) or ", ".join(sorted(features))
        guessed = guessed_names(features, names)
        what, step = "a dataset without a camera", names_step(guessed) or "record pictures, or declare them there"
        raise FeatureNameError(what, guessed, where=where, got=got, expected=CAMERA_PREFIX + "NAME", next_step=step)
    return cameras, left


def _camera(key: str, feature: Any, where: str) -> Camera | UnusableCamera:
    def unusable(what: str, got: object, expected: str, step: str, broken: bool = True) -> UnusableCamera:
        return UnusableCamera(DatasetError(what, where=where, got=got, expected=expected, next_step=step), broken)

    if not isinstance(feature, dict) or feature.get("dtype") not in ("video", "image"):
        expected, step = '"dtype": "video" or "image"', "correct its dtype in meta/info.json"
        return unusable("a camera must be stored as video or images", feature, expected, step)
    shape, expected = feature.get("shape"), "[height, width, 3]"
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
        return unusable("a camera has no shape", shape, expected, "correct its shape in meta/info.json")
    if len(shape) != 3 or 3 not in (shape[0], shape[2]) or _is_depth(feature):
        got = "depth" if _is_depth(feature) else shape
        return unusable("a camera is not RGB", got, expected, "use another camera", broken=False)
    height, width = shape[:2] if shape[2] == 3 else shape[1:]
    return Camera(key, (height, width), feature["dtype"])


def _is_depth(feature: Mapping[str, Any]) -> bool:
    about = feature.get("info") or feature.get("video_info") or {}
    return any(about.get(key) is True for key in ("is_depth_map", "video.is_depth_map"))


def guessed_names(features: Mapping[str, Any], names: FeatureNames) -> tuple[str, ...]:
    """Guess pairs FEATURE=NAME, those of `names` first, for features that it does not cover; () without a guess."""
    guessed = {feature: name for feature, _, name in (pair.partition("=") for pair in names.pairs())}
    guessed = {feature: name for feature, name in guessed.items() if feature in features}
    known = len(guessed)
    vectors = [key for key, about in features.items() if key not in LEROBOT_FEATURES and _looks_like_vector(about)]
    for name, words in ((STATE, ("state", "proprio", "qpos", "joint")), (ACTION, ("action",))):
        likely = [key for word in words for key in vectors if word in key.lower()]
        if name not in features and name not in guessed.values() and likely:
            guessed[min(likely, key=lambda key: len(key) if words[0] in key.lower() else 1000 + len(key))] = name
    cameras = [key for key, about in features.items() if isinstance(_camera(key, about, ""), Camera)]
    for key in [key for key in cameras if not key.startswith(CAMERA_PREFIX) and key not in guessed]:
        distinctive = re.sub(r"(observation|images?|rgb)(?=[\W_]|$)", "", key)
        camera = re.sub(r"[\W_]+", "_", distinctive).strip("_") or "front"
        guessed[key] = f"{camera}_{len(guessed)}" if camera in guessed.values() else camera
    return tuple(f"{key}={name}" for key, name in guessed.items()) if len(guessed) > known else ()


def names_step(pairs: Sequence[str]) -> str:
    """Return the next step that gives features their names by `--names`; "" without pairs."""
    return f"name the features, for example --names {' '.join(pairs)}" if pairs else ""


def _looks_like_vector(feature: Any) -> bool:
    shape = feature.get("shape") if isinstance(feature, dict) else None
    return isinstance(shape, list) and len(shape) == 1 and str(feature.get("dtype")).startswith("float")
