"""Columns of numbers and bytes by name: what Python keeps of a machine, written to a file and read back unharmed.

Room: `paravirt/services`. Nothing that is read is trusted: a column that is missing, or not of the length that others
ask for, is a `ValueError`. Values of small records go through `plain` and `typed`, by their fields' types.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import accumulate
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

_MOST_BITS = 256


class Columns:
    """Some columns."""

    def __init__(self, contents: Mapping[str, bytes | memoryview] | None = None) -> None:
        self.contents: dict[str, bytes | memoryview] = dict(contents or {})

    # -- writing --------------------------------------------------------------------------------

    def put(self, name: str, numbers: Iterable[int], *, signed: bool = True) -> None:
        """A column of 64-bit numbers."""
        kind = "<i8" if signed else "<u8"
        self.contents[name] = np.fromiter(numbers, dtype=kind).tobytes()

    def put_groups(self, name: str, groups: Collection[Collection[int]], *, signed: bool = True) -> None:
        """Several numbers a row."""
        self.put(f"{name}.count", map(len, groups))
        self.put(f"{name}.flat", (number for group in groups for number in group), signed=signed)

    def put_mapping(self, name: str, mapping: Mapping[int, Collection[int]], *, signed: bool = True) -> None:
        """Several numbers a key."""
        self.put(f"{name}.key", mapping, signed=False)
        self.put_groups(name, mapping.values(), signed=signed)

    def put_pieces(self, name: str, pieces: Collection[bytes], *, contents: str = "") -> None:
        """Byte strings one behind the other, in the column `contents` (`name` without it), and their sizes."""
        self.put(f"{name}.size", map(len, pieces))
        self.contents[contents or name] = b"".join(pieces)

    # -- reading --------------------------------------------------------------------------------

    def raw(self, name: str) -> bytes | memoryview:
        """A column as it is. Raises `ValueError` where there is none."""
        try:
            return self.contents[name]
        except KeyError:
            raise ValueError(f"the column {name} is missing") from None

    def take(self, name: str, *, signed: bool = True, length: int | None = None) -> list[int]:
        """A column of numbers, of a length where that is known."""
        data = self.raw(name)
        if len(data) % 8 or (length is not None and len(data) != 8 * length):
            raise ValueError(f"the column {name} has {len(data)} bytes")
        numbers: list[int] = np.frombuffer(data, dtype="<i8" if signed else "<u8").tolist()
        return numbers

    def rows(self, name: str, width: int) -> list[tuple[int, ...]]:
        """A column of rows of so many numbers."""
        numbers = self.take(name)
        if len(numbers) % width:
            raise ValueError(f"the column {name} has {len(numbers)} numbers, in rows of {width}")
        return list(zip(*(numbers[place::width] for place in range(width)), strict=True))

    def take_groups(self, name: str, *, signed: bool = True, length: int | None = None) -> list[list[int]]:
        """Several numbers a row."""
        counts, flat = self.take(f"{name}.count", length=length), self.take(f"{name}.flat", signed=signed)
        if min(counts, default=0) < 0 or sum(counts) != len(flat):
            raise ValueError(f"the rows of the column {name} are not of the lengths that it says")
        return [flat[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]

    def take_pieces(self, name: str, count: int, *, contents: str = "") -> list[bytes]:
        """What `put_pieces` put: so many byte strings. Raises `ValueError` where the sizes are not those."""
        data, sizes = bytes(self.raw(contents or name)), self.take(f"{name}.size", length=count)
        if min(sizes, default=0) < 0 or sum(sizes) != len(data):
            raise ValueError(f"the pieces of {name} are not of the sizes that it says")
        return [data[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]

    def take_mapping(self, name: str, *, signed: bool = True) -> dict[int, list[int]]:
        """Several numbers a key."""
        keys = self.take(f"{name}.key", signed=False)
        return dict(zip(keys, self.take_groups(name, signed=signed, length=len(keys)), strict=True))


def plain(value: Any) -> Any:
    """A record, or a value of one, as JSON has it."""
    if value is None or isinstance(value, bool | str | int):
        return value if not isinstance(value, Enum) else value.name
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return [[plain(key), plain(one)] for key, one in value.items()]
    if is_dataclass(value):
        return [plain(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Sequence | frozenset):
        return [plain(one) for one in value]
    raise TypeError(f"{type(value).__name__} cannot be written")


@cache
def _hints(kind: Any) -> list[Any]:
    hints = get_type_hints(kind)
    if is_dataclass(kind):
        return [hints[field.name] for field in fields(kind)]
    return [hints[name] for name in kind._fields]


def typed(kind: Any, value: Any) -> Any:
    """What `plain` gave, as a value of a type again. Raises `ValueError` where it is none."""
    if kind is Any or kind is object:
        return value
    if kind is None or kind is types.NoneType:
        return _want(value is None, value, kind) or None
    if kind is bytes:
        return bytes.fromhex(_want(isinstance(value, str), value, kind))
    if kind is bool:
        return _want(value in (0, 1) and isinstance(value, int), value, kind)
    if kind is int:
        return _want(isinstance(value, int) and value.bit_length() <= _MOST_BITS, value, kind)
    if kind is str:
        return _want(isinstance(value, str), value, kind)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), value)
    if origin is tuple:
        return _tuple(get_args(kind), _want(isinstance(value, list), value, kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[_want(isinstance(value, str) and value in kind.__members__, value, kind)]
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        hints = _hints(kind)
        _want(isinstance(value, list) and len(value) == len(hints), value, kind)
        return kind(*map(typed, hints, value))
    raise ValueError(f"a {kind} cannot be read")


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        try:
            return typed(kind, value)
        except ValueError:
            continue
    raise ValueError(f"{str(value)[:40]!r} is none of {kinds}")


def _tuple(kinds: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(typed(kinds[0], value) for value in values)
    if len(kinds) != len(values):
        raise ValueError(f"{len(values)} values, not {len(kinds)}")
    return tuple(map(typed, kinds, values))


def _want(holds: bool, value: Any, kind: Any) -> Any:
    if not holds:
        raise ValueError(f"{str(value)[:40]!r} is no {getattr(kind, '__name__', kind)}")
    return value


__all__ = ["Columns", "plain", "typed"]
