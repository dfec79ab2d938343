"""The sweep of an image that has T32 code, or that says itself which of its words are data.

Room: `bt/tactics/arm`. What is A32 and what T32 is the image's to say (`bt.image.arm_states`); each state is matched by
its own table. Offsets in bytes, as in `bt.textmap`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from bt.image import arm_states
from bt.tactics.arm import thumb
from bt.tactics.arm.words import branch_targets, literal_words
from bt.textmap import Stretch, mark_common, packed, pieces
from emulator.isa.arm.table import A32_TABLE, T32_TABLE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.image.arm_states import States

FIRST_T32: Final = len(A32_TABLE.rows)
"""Index of T32's first row in the rows of the instruction set."""


def sweep(image: Image, states: States) -> tuple[Stretch, ...]:
    """The stretches of an image. Data that the image itself tells casts no doubt on what is beside it."""
    stretches = tuple(_stretch(states, start, end, parts) for start, end, parts in pieces(image))
    mark_common(image, stretches)
    return stretches


def _stretch(states: States, start: int, end: int, parts: list[tuple[int, bytes]]) -> Stretch:
    begins, targets = np.zeros(end - start, bool), np.zeros(end - start, bool)
    sites: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
    invalid: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for address, data in parts:
        skip = address & 1
        base = address + skip - start
        code = np.frombuffer(data[skip : skip + (len(data) - skip & -2)], "<u2")
        kinds = states.halfwords(address + skip, len(code))
        phase = (address + skip) >> 1 & 1
        for found, leads, starts, none in (
            _a32(code, kinds == arm_states.A32, phase, states.exact),
            _t32(code, kinds == arm_states.T32, phase, states.exact),
        ):
            begins[base + starts] = True
            leads = leads + base
            targets[leads[(leads >= 0) & (leads < end - start)]] = True
            sites.append(found + np.array([base, 0, 0]))
            invalid.append(none + base)
    every = np.concatenate(sites)
    return Stretch(
        start,
        packed(begins),
        packed(targets),
        packed(np.zeros_like(begins)),
        every[np.argsort(every[:, 0], kind="stable")],
        np.sort(np.concatenate(invalid)),
    )


_Part = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]"]
"""Sites, targets, where instructions begin, and where there is data."""


def _a32(code: NDArray[np.uint16], own: NDArray[np.bool_], phase: int, exact: bool) -> _Part:
    count = (len(code) - phase) // 2
    words = np.frombuffer(code[phase : phase + 2 * count].tobytes(), "<u4")
    mine = own[phase : phase + 2 * count].reshape(-1, 2).all(axis=1)
    words = np.where(mine, words, np.uint32(0))
    data = np.zeros(count, bool) if exact else literal_words(words) & mine
    good = mine & ~data
    positions, rows = A32_TABLE.find(words)
    kept = good[positions]
    at = positions[kept] * 4 + 2 * phase
    found = np.stack((at, np.full(len(at), 4), rows[kept].astype(np.int64)), axis=1).astype(np.int64)
    leads = branch_targets(np.where(good, words, np.uint32(0))) + 2 * phase
    return found, leads, np.flatnonzero(good) * 4 + 2 * phase, np.flatnonzero(data) * 4 + 2 * phase


def _t32(code: NDArray[np.uint16], own: NDArray[np.bool_], phase: int, exact: bool) -> _Part:
    data = np.zeros(len(code), bool)
    begins, wide = thumb.boundaries(code, own)
    if not exact:
        data = thumb.literals(code, begins, phase) & own
        begins, wide = thumb.boundaries(code, own & ~data)
    second = np.append(code[1:], np.uint16(0))
    sites = []
    for size, values, which in (
        (2, code.astype(np.uint32), begins & ~wide),
        (4, code.astype(np.uint32) << np.uint32(16) | second, begins & wide),
    ):
        at = np.flatnonzero(which)
        positions, rows = T32_TABLE.find(values[at], size)
        place = 2 * at[positions]
        sites.append(np.stack((place, np.full(len(place), size), rows.astype(np.int64) + FIRST_T32), axis=1))
    found = np.concatenate(sites).astype(np.int64)
    return found, thumb.branch_targets(code, begins), 2 * np.flatnonzero(begins), 2 * np.flatnonzero(data)
