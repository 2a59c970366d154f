"""Simulators in this process, in place of worker processes: no second to wait for a new one."""

from collections.abc import Iterator
from typing import Any

from lightwam.system.workers import Answer, Job, Workers


class InHere(Workers[Job, Answer]):
    """What `lightwam.system.workers.Workers` is replaced by."""

    def __init__(self, count: int, run: Any) -> None:
        super().__init__(0, run)

    def answers(self, timeout_seconds: float) -> Iterator[Any]:
        return super().answers(0.0)
