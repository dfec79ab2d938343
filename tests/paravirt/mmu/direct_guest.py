"""Two domains of one machine, and the tables of the first: what its tests share, and the counts counted anew.

Room: tests. Nothing here claims anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emulator.isa.entries import MALFORMED, MEMORY, TABLE, EntryFormat, format_of
from paravirt.mmu.direct_audit import count
from paravirt.mmu.direct_tables import DirectTables
from paravirt.mmu.frame_types import (
    DESCRIPTORS,
    WRITABLE,
    FrameTable,
    Refusal,
    Refused,
)

FIRST = 0x2000
"""The machine's first frame: guest frame numbers are far below."""
COUNT = 1024
P, W, U, A, D, LARGE, G, NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
RW = P | W
L1, L2, L3, L4 = 1, 2, 3, 4


class Made:
    """Two domains of one machine, and the first one's tables."""

    def __init__(
        self, form: EntryFormat | None = None, translates: bool = True, order: list[int] | None = None
    ) -> None:
        self.form = form or format_of("x86-64")
        self.frames = FrameTable(FIRST, 4 * COUNT)
        self.frames.claim(FIRST, 16)
        memory = memoryview(bytearray(COUNT << 12))
        self.domain = self.frames.add_domain(memory, FIRST + COUNT, order)
        self.other = self.frames.add_domain(memoryview(bytearray(COUNT << 12)), FIRST + 2 * COUNT)
        self.tables = DirectTables(self.frames, self.domain, self.form, translates=translates)
        self.roots: list[int] = []

    def machine(self, number: int) -> int:
        return self.domain.machine[number]

    def at(self, number: int) -> int:
        return self.machine(number) - FIRST

    def put(self, number: int, index: int, entry: int) -> None:
        """As the guest writes its own memory."""
        self.tables.words[(self.machine(number) - self.domain.first) * self.form.words + index] = entry

    def get(self, number: int, index: int) -> int:
        return self.tables.words[(self.machine(number) - self.domain.first) * self.form.words + index]

    def store(self, number: int, index: int, entry: int) -> None:
        self.tables.store(self.machine(number), index, entry)

    def pin(self, number: int, level: int) -> None:
        self.tables.pin(self.machine(number), level)

    def kind(self, number: int) -> int:
        return self.frames.kind[self.at(number)]

    def counts(self, number: int) -> tuple[int, int]:
        at = self.at(number)
        return self.frames.uses[at], self.frames.refs[at]

    def check(self) -> None:
        """What is counted is what the tables in use amount to, and nothing maps a table writable or another's frame."""
        uses, refs = recount(self.tables)
        for root in self.roots:
            for frame in range(root, root + self.form.root_frames):
                uses[frame - FIRST] += 1
                refs[frame - FIRST] += 1
        assert (uses == self.frames.uses_array).all()
        assert (refs == self.frames.refs_array).all()
        if not (self.frames.kind_array == DESCRIPTORS).any():
            self.check_count()

    def claims(self) -> tuple[Any, Any]:
        """Which of the domain's frames are tables, and which are pinned, as a saved machine has it."""
        own = slice(self.domain_at, self.domain_at + COUNT)
        used = (self.frames.uses_array[own] != 0) & (self.frames.kind_array[own] < DESCRIPTORS)
        levels = np.where(used, self.frames.kind_array[own], np.uint8(0))
        return levels, np.frombuffer(self.frames.pinned, dtype=np.uint8)[own].copy()

    @property
    def domain_at(self) -> int:
        """Place of the domain's first frame."""
        return self.domain.first - FIRST

    def check_count(self) -> None:
        """The same counts are made of the tables alone, when a machine is put back."""
        levels, pinned = self.claims()
        counted, first = count(self.tables, levels, pinned, self.roots), self.domain_at
        assert (counted.uses == self.frames.uses_array[first : first + COUNT]).all()
        assert (counted.refs == self.frames.refs_array[first : first + COUNT]).all()
        assert {number + first: uses for number, uses in counted.linear.items()} == self.tables._linear_in


def recount(tables: DirectTables) -> tuple[Any, Any]:
    """Uses and references that tables in use and pins amount to, each entry looked at by itself."""
    frames, form = tables.frames, tables.form
    uses, refs = (np.zeros(frames.count, dtype=np.uint32) for _ in range(2))
    for at in np.flatnonzero(frames.uses_array != 0).tolist():
        level = frames.kind[at]
        if frames.pinned[at]:
            uses[at] += 1
            refs[at] += 1
        if not 1 <= level <= form.top:
            continue
        assert frames.owner[at] == tables.domain.number
        assert frames.valid[at]
        first = (at + frames.first - tables.domain.first) * form.words
        for index in range(form.levels[level - 1].entries):
            if level == form.top and index in form.reserved:
                continue
            entry = tables.words[first + index]
            kind = form.levels[level - 1].decode(entry)
            assert kind != MALFORMED
            if kind == TABLE:
                below = ((entry & form.levels[level - 1].table_address) >> 12) - frames.first
                linear = frames.kind[below] == level
                assert frames.kind[below] == level - 1 or linear
                if below != at:
                    uses[below] += 1
                    refs[below] += 1
            elif kind == MEMORY:
                here = form.levels[level - 1]
                low = ((entry & here.memory_address) >> 12) - frames.first
                pages = range(low, low + (1 << here.shift - 12 if level > 1 else 1))
                mask, value = here.write
                for page in pages:
                    assert frames.owner[page] == tables.domain.number
                    refs[page] += 1
                    if entry & mask == value:
                        assert frames.kind[page] == WRITABLE
                        uses[page] += 1
    return uses, refs


def chain(made: Made, last: int = 1, bits: int = RW) -> None:
    """Guest frames 4, 3, 2, 1 as tables of four levels; the last one maps frames from 100 on."""
    for level in (4, 3, 2):
        made.put(level, 0, (level - 1) << 12 | RW)
    for index in range(20):
        made.put(1, index, (100 + index) << 12 | bits)


def refused(reason: Refusal, act: Any, *arguments: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        act(*arguments)
    assert caught.value.reason is reason, caught.value
    return caught.value


def leaf(form: EntryFormat, number: int, writable: bool) -> int:
    """An entry of a table of pages."""
    level = form.levels[0]
    mask, value = level.write
    bits = value if writable else ~value & mask
    return number << 12 | level.memory | bits


def pointer(form: EntryFormat, level: int, number: int) -> int:
    return number << 12 | form.levels[level - 1].table
