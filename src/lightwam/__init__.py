"""lightwam: lightweight World-Action Models.

`from lightwam import Policy` is the Python API (docs/python.md). Its names are imported when they are first asked for,
so that `lightwam --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightwam.system import moved

if TYPE_CHECKING:
    from lightwam.policy.policy import Policy as Policy
    from lightwam.report.publish import push as push
    from lightwam.types import Observation as Observation

__version__ = "0.1.0"
__all__ = ["Observation", "Policy", "__version__", "push"]

_PLACES = {"Observation": "lightwam.types", "Policy": "lightwam.policy.policy", "push": "lightwam.report.publish"}


moved.install()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'lightwam' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
