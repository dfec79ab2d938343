"""Ways to damage a file: bytes, words, whole ranges; and ways to damage a value of JSON.

Room: tests. Small steps that hypothesis can shrink; headers are hit as often as all the rest.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

HEADER = 0x300
"""Bytes at the start of a file in which most of its structure stands."""
EXTREMES = (
    *(0, 1, 2, 3, 4, 7, 8, 0x7F, 0x80, 0xFF, 0x1000, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x1_0000),
    *(0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0, 0xFFFF_FFFF, 1 << 32, 10 << 30, 1 << 40, 1 << 62),
    *((1 << 63) - 1, 1 << 63, 0xFFFF_FFFF_8100_0000, (1 << 64) - 0x1000, (1 << 64) - 1),
)

Edit = tuple[str, int, int, int]
edits: st.SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.sampled_from(("byte", "byte", "word", "word", "word", "copy", "cut", "insert", "end", "zero")),
        st.integers(0, 1 << 24),
        st.integers(0, 1 << 24),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=8,
)
"""Edits as (kind, position, amount, value); positions are taken modulo what there is."""


def damage(data: bytes, changes: list[Edit]) -> bytes:
    """The file after its edits."""
    made = bytearray(data)
    for kind, position, amount, value in changes:
        if not made:
            break
        limit = min(len(made), HEADER) if value & 1 else len(made)
        at = position % limit
        if kind == "byte":
            made[at] = value
        elif kind == "word":
            size = (2, 4, 8, 8)[value >> 1 & 3]
            at = at // size * size
            word = EXTREMES[amount % len(EXTREMES)] & (1 << 8 * size) - 1
            made[at : at + size] = word.to_bytes(size, "big" if value & 8 else "little")[: len(made) - at]
        elif kind == "copy":
            # A table that stands upon itself, or a header twice.
            size = amount % 256 + 1
            source = bytes(made[amount % len(made) :][:size])
            made[at : at + len(source)] = source
        elif kind == "cut":
            del made[at : at + amount % 64 + 1]
        elif kind == "insert":
            made[at:at] = bytes((value,)) * (amount % 64 + 1)
        elif kind == "end":
            del made[position % len(made) :]
        else:
            size = amount % 512
            made[at : at + size] = bytes(len(made[at : at + size]))
    return bytes(made)


NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1 << 63, (1 << 64) - 1, 1 << 64, 10**30, 1.5, -0.0, float("inf"), float("nan")),
    *("", "0", "00", "zz", "é\ud800\0", "a" * 5000, "0x10", [], {}, [[]], [0], {"a": 0}, [None] * 100, [1] * 3),
)

steps: st.SearchStrategy[list[tuple[str, list[int], int]]] = st.lists(
    st.tuples(
        st.sampled_from(("set", "set", "set", "drop", "twice", "swap")),
        st.lists(st.integers(0, 1 << 20), min_size=1, max_size=6),
        st.integers(0, len(NASTY) - 1),
    ),
    min_size=1,
    max_size=5,
)
"""Changes as (kind, the way to a place, number of a nasty value)."""


def distort(value: Any, changes: list[tuple[str, list[int], int]]) -> Any:
    """A JSON value after its changes; it is changed in place."""
    for kind, way, number in changes:
        place = value
        for turn in way[:-1]:
            inner = _child(place, turn)
            if not isinstance(inner, (dict, list)) or not inner:
                break
            place = inner
        if not isinstance(place, (dict, list)) or not place:
            continue
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key, other = keys[way[-1] % len(keys)], keys[(way[-1] // 7) % len(keys)]
        if kind == "set":
            place[key] = deepcopy(NASTY[number])
        elif kind == "drop":
            del place[key]
        elif kind == "twice" and isinstance(place, list):
            place.insert(other, deepcopy(place[key]))
        else:
            place[key], place[other] = place[other], place[key]
    return value


def _child(place: Any, turn: int) -> Any:
    if isinstance(place, dict):
        return place[list(place)[turn % len(place)]]
    return place[turn % len(place)] if isinstance(place, list) else None
