"""Which offsets of some x86 code begin an instruction: blocks walked side by side, then joined.

Room: `bt/tactics/x86`. A linear sweep goes from one instruction to the next; here it starts at every block of the code
at once, with numpy, and where a block's true entry is not where it was started, the few instructions until both fall
into step are walked one by one. What comes of it is what one linear sweep gives. Lengths are `lengths`', or iced-x86's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
from iced_x86 import Code, Decoder, Instruction

from bt.tactics.x86.lengths import BEHIND, lengths
from bt.tactics.x86.pagescan import MAY_BRANCH, targets_of
from emulator.isa.x86.decode import REPORTED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Places = NDArray[np.int64]

_BLOCK: Final = 1024
_CHUNK: Final = 1 << 20
_NOTED: Final = REPORTED | {int(Code.INVALID)}


class Chain:
    """The sweep of one range of code."""

    def __init__(self, data: bytes, bits: int) -> None:
        self._data = data
        self._bits = bits
        self._code = np.frombuffer(data, np.uint8)
        self._lengths = lengths(self._code, bits)
        self._decoder = Decoder(bits, data, ip=0)
        self._instruction = Instruction()
        self._seen: dict[int, tuple[int, int]] = {}
        """Length and `Code` of what is sensitive or invalid, at any offset that was looked at."""
        self._marks = np.zeros(len(data), np.uint8)

    @property
    def begins(self) -> NDArray[np.bool_]:
        """Where instructions begin, in the parts that were swept."""
        return self._marks.view(np.bool_)

    def noted(self) -> Iterable[tuple[int, int, int]]:
        """Offset, length and `Code` of sensitive instructions, and of those that are none, ascending."""
        return ((at, *self._seen[at]) for at in sorted(self._seen) if self._marks[at])

    def targets(self) -> Places:
        """Offsets to which direct branches lead; they may lie outside, and repeat."""
        found = [np.empty(0, np.int64)]
        for start in range(0, len(self._marks), _CHUNK):
            begins = np.flatnonzero(self.begins[start : start + _CHUNK]) + start
            may = begins[MAY_BRANCH[self._code[begins]]]
            found.append(targets_of(self._code, may, may + self._lengths[may]))
        return np.concatenate(found)

    def sweep(self, parts: Iterable[tuple[int, int]]) -> None:
        """Sweep the parts (start, end) of the code, which are apart; each begins with an instruction."""
        starts, ends, first = [], [], []
        tails = []
        for start, end in parts:
            limit = end - BEHIND
            blocks = np.arange(start, limit, _BLOCK, dtype=np.int64)
            starts.append(blocks)
            ends.append(np.minimum(blocks + _BLOCK, limit))
            first.append(blocks == start)
            tails.append((start, end, len(blocks)))
        if not tails:
            return
        begin, stop = np.concatenate(starts), np.concatenate(ends)
        leave = self._join(begin, stop, np.concatenate(first), self._walk(begin, stop))
        number = 0
        for start, end, count in tails:
            number += count
            self._finish(leave[number - 1] if count else start, end)

    def _walk(self, begin: Places, stop: Places) -> Places:
        """Walk every block from its first byte; where each is left."""
        leave = begin.copy()
        at, number, end = begin.copy(), np.arange(len(begin)), stop
        while len(at):
            self._marks[at] = 1
            step = self._lengths[at]
            unknown = np.flatnonzero(step == 0)
            if len(unknown):
                step[unknown] = [self._length(place) for place in at[unknown].tolist()]
            at = at + step
            inside = at < end
            if not inside.all():
                done = ~inside
                leave[number[done]] = at[done]
                at, number, end = at[inside], number[inside], end[inside]
        return leave

    def _join(self, begin: Places, stop: Places, first: NDArray[np.bool_], leave: Places) -> list[int]:
        """Correct the blocks that are entered elsewhere than they were walked from; where each is left in truth."""
        marks, known = self._marks.data, self._lengths.data
        left: list[int] = leave.tolist()
        at = 0
        for number, (start, end, starts) in enumerate(zip(begin.tolist(), stop.tolist(), first.tolist(), strict=True)):
            at = start if starts else at
            if at != start:
                path = []
                while at < end and not marks[at]:
                    path.append(at)
                    at += known[at] or self._length(at)
                marks[start : min(at, end)] = bytes(min(at, end) - start)
                for place in path:
                    marks[place] = 1
                if at >= end:
                    left[number] = at
            at = left[number]
        return left

    def _finish(self, at: int, end: int) -> None:
        """The last instructions of a part, of which one may be cut by its end."""
        tail = Decoder(self._bits, self._data[at:end], ip=at)
        for instruction in tail:
            self._marks[at] = 1
            self._lengths[at] = instruction.len
            if instruction.code in _NOTED:
                self._seen[at] = instruction.len, int(instruction.code)
            else:
                self._seen.pop(at, None)
            at += instruction.len

    def _length(self, at: int) -> int:
        """The length of what is no plain instruction; kept."""
        decoder, instruction = self._decoder, self._instruction
        decoder.position = at
        decoder.decode_out(instruction)
        length = instruction.len
        self._lengths[at] = length
        code = instruction.code
        if code in _NOTED:
            self._seen[at] = length, code
        return length
