"""An iterator that a thread works ahead of its reader."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Iterates over `items` in a thread, which keeps up to `ready` of them ready; an error of theirs is raised here.

    `close`, or the end of a `with` block, stops the thread; a generator is then closed too.
    """

    def __init__(self, items: Iterable[T], ready: int, name: str) -> None:
        self._queue: queue.Queue[T | BaseException] = queue.Queue(ready)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(iter(items),), name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        result = self._queue.get()
        if isinstance(result, BaseException):
            self._queue.put(result)  # later calls end in the same way, instead of waiting for ever
            raise result
        return result

    def close(self) -> None:
        """Stop the thread."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _work(self, items: Iterator[T]) -> None:
        try:
            while not self._stopped.is_set():
                self._queue.put(next(items))
        except BaseException as error:
            self._queue.put(error)  # StopIteration too
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
