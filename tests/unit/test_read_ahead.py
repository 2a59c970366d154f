"""system/read_ahead.py: order, errors, and a thread that ends."""

import threading
from collections.abc import Iterator

import pytest

from lightwam.system.read_ahead import ReadAhead


def test_items_come_in_order_and_it_ends_every_time_it_is_asked() -> None:
    with ReadAhead(iter(range(20)), 3, "numbers") as ahead:
        assert list(ahead) == list(range(20))
        assert list(ahead) == []


def test_no_more_than_a_few_are_made_before_they_are_needed() -> None:
    made: list[int] = []
    reached = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == 3:
                reached.set()
            yield number

    with ReadAhead(numbers(), 2, "numbers") as ahead:
        assert next(ahead) == 0
        assert reached.wait(10)
        assert len(made) == 4, "one used, two ready, one waiting for room"


def test_an_error_is_raised_after_the_items_before_it_and_again() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with ReadAhead(numbers(), 2, "numbers") as ahead:
        assert next(ahead) == 1
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                next(ahead)


def test_closing_stops_the_thread_and_closes_the_generator() -> None:
    closed = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = ReadAhead(numbers(), 2, "endless numbers")
    next(ahead)
    ahead.close()
    assert closed.wait(10)
    assert not any(thread.name == "endless numbers" for thread in threading.enumerate())
