"""The sweep of an image that has T32 code, or that says itself which of its words are data; and pages of T32 code.

Room: `bt/tactics/arm`. What is A32 and what T32 is the image's to say (`bt.image.arm_states`), and where none speaks of
a page, the processor's that enters it; each state is matched by its own table. Offsets in bytes, as in `bt.textmap`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from bt.image import arm_states
from bt.pagescan import PAGE, Found, PageScan, mask_of
from bt.tactics.arm import thumb
from bt.tactics.arm.words import branch_targets, literal_words
from bt.textmap import Stretch, mark_common, packed, pieces
from emulator.isa.arm.table import A32_TABLE, T32_TABLE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.image.arm_states import States

_LEAD: Final = 4
"""Bytes before a page that are looked at."""
_WIDE: Final = 0xE800
"""Halfwords from here on begin an instruction of 32 bits."""
_ROUNDS: Final = 4
"""How often new instructions are asked where they lead."""
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


def _boundaries(
    code: NDArray[np.uint16], own: NDArray[np.bool_], entry: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """As `thumb.boundaries`, where an instruction begins at halfword `entry`, and where branches lead. An instruction
    in whose midst they seem to lead is left standing: either may be data."""
    before, behind = thumb.boundaries(code[:entry], own[:entry]), thumb.boundaries(code[entry:], own[entry:])
    if entry and before[1][-1]:  # it would reach over what is entered
        before[0][-1] = before[1][-1] = False
    begins, wide = np.concatenate((before[0], behind[0])), np.concatenate((before[1], behind[1]))
    for _ in range(_ROUNDS):
        leads = thumb.branch_targets(code, begins)
        leads = leads[(leads >= 0) & (leads < 2 * len(code))] >> 1
        leads = np.unique(leads[own[leads] & ~begins[leads]])
        if not len(leads):
            break
        for start, end in zip(leads.tolist(), [*leads[1:].tolist(), len(code)], strict=True):
            more, wider = thumb.boundaries(code[start:end], own[start:end])
            same = np.flatnonzero(more & begins[start:end])
            stop = start + int(same[0]) if len(same) else end  # from there on they agree
            begins[start:stop] |= more[: stop - start]
            wide[start:stop] |= wider[: stop - start]
    return begins, wide


def page_states(image: Image | None, linked: int | None, thumbs: bool) -> tuple[NDArray[np.uint8], bool] | None:
    """The state of every halfword of a page, and whether that is known so exactly that data is told from code; None
    where all is A32. A page of which no image speaks is of the state that it is entered in."""
    if image is not None and linked is not None:
        states = arm_states.of(image)
        if not states.plain:
            kinds = states.halfwords(linked, PAGE // 2)
            return (kinds, states.exact) if (kinds == arm_states.T32).any() else None
    return (np.full(PAGE // 2, arm_states.T32, np.uint8), False) if thumbs else None


def scan_page(code: bytes, before: bytes, after: bytes, kinds: NDArray[np.uint8], exact: bool, entry: int) -> PageScan:
    """The sites of a page that has T32 code, where an instruction begins at `entry`. What is `before` says whether the
    page begins within one."""
    lead = 2 if len(before) >= _LEAD else 0
    whole = np.frombuffer(before[len(before) - 2 * lead :] + code + after[:2].ljust(2, b"\0"), "<u2")
    own = np.concatenate((np.repeat(kinds[:1], lead), kinds, kinds[-1:]))
    place = lead + (entry >> 1)
    thumbs = own == arm_states.T32
    if not thumbs[place]:
        place = lead
    sites, begins = [], np.zeros(2 * len(whole), bool)
    for found, _leads, starts, _none in (
        _a32(whole[:-1], own[:-1] == arm_states.A32, 0, exact),
        _t32(whole, thumbs, 0, exact, place),
    ):
        sites.append(found - np.array([2 * lead, 0, 0]))
        begins[starts] = True
    every = np.concatenate(sites)
    every = every[(every[:, 0] >= 0) & (every[:, 0] < PAGE)]
    every = every[np.argsort(every[:, 0], kind="stable")]
    inside = begins[2 * lead : 2 * lead + PAGE]
    last = int(np.flatnonzero(inside)[-1]) if inside.any() else 0
    crosses = last == PAGE - 2 and bool(thumbs[lead + last // 2]) and int(whole[lead + last // 2]) >= _WIDE
    return PageScan(tuple(Found(*one) for one in every.tolist()), mask_of(inside), 2 if crosses else 0)


def _t32(code: NDArray[np.uint16], own: NDArray[np.bool_], phase: int, exact: bool, entry: int = 0) -> _Part:
    """`entry`: a halfword at which an instruction begins."""
    data = np.zeros(len(code), bool)
    begins, wide = _boundaries(code, own, entry)
    if not exact:
        data = thumb.literals(code, begins, phase) & own
        data[entry] = False
        begins, wide = _boundaries(code, own & ~data, entry)
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
