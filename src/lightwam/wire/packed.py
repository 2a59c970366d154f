"""msgpack under limits: what openpi's and XPolicyLab's messages have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Any

import msgpack

from lightwam.errors import WireError
from lightwam.wire.limits import Counter, Limits, ReadArray, Reader, short


def packed(tree: Any, of_array: Callable[[Any], Any]) -> bytes:
    """One msgpack value; `of_array` says numpy's values as maps. WireError for what msgpack cannot say."""
    try:
        return msgpack.packb(tree, default=of_array, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:  # ValueError: too deep, a circle, half a character
        raise WireError("this cannot be sent", where="message", got=short(error),
                        expected="maps, lists, texts, numbers of 64 bits and arrays") from error  # fmt: skip


def unpacked(data: bytes, limits: Limits, marks: Collection[Hashable], read_array: ReadArray) -> Any:
    """The tree of one msgpack value. WireError whatever else the bytes are.

    msgpack makes a list of the announced length before it has read it, up to 1,024 of them inside one another: with
    `num_items` 4,096 that is 32 MiB for a moment, and no more.
    """
    limits.check_size(data)
    counter = Counter(limits)
    try:
        found = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            list_hook=counter.entries,
            object_pairs_hook=counter.pairs,
            max_str_len=4 * limits.text_chars,
            max_bin_len=limits.array_bytes,
            max_array_len=limits.num_items,
            max_map_len=limits.num_items,
            max_ext_len=16,
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise WireError("the message is not sound msgpack", where="message", got=f"{len(data)} bytes: {short(reason)}",
                        expected="one msgpack value within the limits") from error  # fmt: skip
    return Reader(limits, marks, read_array).tree(found)
