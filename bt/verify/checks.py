"""The comparisons themselves: functions that make a check, to be named in a table of rules.

Room: `bt/verify`. Every check takes a `Pair` and gives a `Result`; what it leaves out is given to it as data. It knows
no kernel by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

import numpy as np

from bt.verify.observation import PAGE, Event, Observation, Pages, Write
from bt.verify.rules import Check, Divergence, Pair, Result, Side
from bt.verify.show import event_side, instruction_length, memory_side, write_side
from bt.verify.views import PROCESSORS

ACCESSED = 0x20
"""The bit of a page-table entry that says that its translation was used (SDM 3A, 4.8)."""

Keep = Callable[[Pair, Event], bool]
Key = Callable[[Pair, Event], tuple[int, ...]]
_LONGEST = 16
_INT_80 = 0x80
"""The software interrupt of x86 that is a system call, its number in EAX."""
Excuse = Callable[[Pair, int, bytes, bytes], int]
Reduce = Callable[[Sequence[Write]], list[Write]]


def outcome(pair: Pair) -> Result:
    """How the run ended, and with which status."""
    left, right = pair.reference.outcome, pair.rewritten.outcome
    compared = f"both ended by {left.kind.value}, status {left.status}"
    if (left.kind, left.status) == (right.kind, right.status):
        return Result(compared)
    sides = [
        Side(f"{end.kind.value}, status {end.status}" + (f": {end.detail}" if end.detail else ""))
        for end in (left, right)
    ]
    return Result("the end of the run", Divergence("the runs end differently", None, *sides))


def console_bytes(pair: Pair) -> Result:
    """Every byte of the console."""
    left, right = pair.reference.console, pair.rewritten.console
    if left == right:
        return Result(f"{len(left)} bytes")
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    line = left.count(b"\n", 0, at) + 1
    start = left.rfind(b"\n", 0, at) + 1
    sides = [Side(repr(text[start : start + 160].split(b"\n")[0].decode(errors="replace"))) for text in (left, right)]
    what = f"the consoles differ from byte {at} on, in line {line}"
    return Result(f"{len(left)} bytes", Divergence(what, printed(pair.rewritten, at), *sides))


def printed(run: Observation, at: int) -> int | None:
    """About when a byte of the console was printed: at the write to a serial port's data register."""
    written = [write for write in run.writes if write.device == "com1" and write.offset == 0]
    return written[at].progress if at < len(written) else None


def device_writes(reductions: dict[str, Reduce]) -> Check:
    """Per device, the sequence of (offset, size, value); a reduction says which writes of a device count."""

    def check(pair: Pair) -> Result:
        names = list(dict.fromkeys(write.device for run in (pair.reference, pair.rewritten) for write in run.writes))
        found, counts = [], []
        for name in names:
            reduce = reductions.get(name, list)
            left, right = (
                reduce([write for write in run.writes if write.device == name])
                for run in (pair.reference, pair.rewritten)
            )
            if left or right:
                counts.append(f"{len(left)} of {name}")
            divergence = _first_write(pair, name, left, right)
            if divergence is not None:
                found.append(divergence)
        return Result(", ".join(counts), _earliest(found))

    return check


def _first_write(pair: Pair, name: str, left: Sequence[Write], right: Sequence[Write]) -> Divergence | None:
    for number, (a, b) in enumerate(zip_longest(left, right), start=1):
        if a is None or b is None or (a.offset, a.size, a.value) != (b.offset, b.size, b.value):
            sides = [write_side(pair, write) if write is not None else None for write in (a, b)]
            progress = b.progress if b is not None else pair.rewritten.blocks
            return Divergence(f"write {number} to {name} differs", progress, *sides)
    return None


def _earliest(found: Iterable[Divergence]) -> Divergence | None:
    return min(found, key=lambda one: float("inf") if one.progress is None else one.progress, default=None)


def exact(_pair: Pair, event: Event) -> tuple[int, ...]:
    """Number, error code, address, and of a page fault what CR2 holds."""
    return event.number, event.error, event.rip, event.address


def every(_pair: Pair, _event: Event) -> bool:
    """No event is left out."""
    return True


def never(_pair: Pair, _event: Event) -> bool:
    """No event ends an address space."""
    return False


def system_call(event: Event) -> int:
    """The number of a system call, by whichever instruction; -1 of another event."""
    if event.kind == "software interrupt" and event.number == _INT_80:
        return event.registers[0] & 0xFFFF_FFFF
    return event.number if event.kind == "system call" else -1


def exits(pair: Pair, event: Event) -> bool:
    """Whether a process ends, as far as the guest's manifest says by which call."""
    return system_call(event) in pair.exit_calls


def counts(pair: Pair, event: Event) -> bool:
    """Whether a system call is no mere waiting, as far as the guest's manifest says by which call."""
    return system_call(event) not in pair.waiting_calls


def events(
    kind: str,
    keep: Keep = every,
    key: Key = exact,
    last: Callable[[Pair, Event], bool] = never,
    reduce: Callable[[list[Event]], list[Event]] = lambda events: events,
) -> Check:
    """The sequence of events of `kind` in each address space; which spaces take turns how does not count.

    `key` is what must be equal of an event; an address space ends with the event, of any kind, of which `last` is
    true, so that its page-table root can be another process's later. `reduce` says which of a space's events count.
    """

    def check(pair: Pair) -> Result:
        sides = [
            [
                reduce(space)
                for space in _spaces(
                    run.events,
                    lambda event: event.kind == kind and keep(pair, event),
                    lambda event: last(pair, event),
                )
            ]
            for run in (pair.reference, pair.rewritten)
        ]
        left, right = ([space for space in side if space] for side in sides)
        total = sum(map(len, left))
        compared = f"{total} in {len(left)} address spaces" if total else "none happened"
        return Result(compared, _first_event(pair, kind, left, right, key))

    return check


def _spaces(found: Iterable[Event], keep: Callable[[Event], bool], last: Callable[[Event], bool]) -> list[list[Event]]:
    spaces: list[list[Event]] = []
    current: dict[int, list[Event]] = {}
    for event in found:
        space = current.get(event.space)
        if space is None:
            space = current[event.space] = []
            spaces.append(space)
        if keep(event):
            space.append(event)
        if last(event):
            del current[event.space]
    return spaces


def _first_event(
    pair: Pair, kind: str, left: Sequence[list[Event]], right: Sequence[list[Event]], key: Key
) -> Divergence | None:
    """The earliest difference between address spaces that have no equal on the other side."""

    def keys(space: Sequence[Event]) -> tuple[tuple[int, ...], ...]:
        return tuple(key(pair, event) for event in space)

    keyed = [[(keys(space), space) for space in side] for side in (left, right)]
    lonely = [_without(mine, others) for mine, others in (keyed, keyed[::-1])]
    found = [
        _in_space(pair, kind, keyed[0], a or ((), []), b or ((), [])) for a, b in zip_longest(lonely[0], lonely[1])
    ]
    return _earliest(found)


_Space = tuple[tuple[tuple[int, ...], ...], Sequence[Event]]


def _without(mine: Sequence[_Space], others: Sequence[_Space]) -> list[_Space]:
    """Those of `mine` that have no equal among `others`, as often."""
    left_over = Counter(keys for keys, _ in others)
    kept = []
    for space in mine:
        left_over[space[0]] -= 1
        if left_over[space[0]] < 0:
            kept.append(space)
    return kept


def _in_space(pair: Pair, kind: str, all_left: Sequence[_Space], left: _Space, right: _Space) -> Divergence:
    at = next(
        (i for i, (a, b) in enumerate(zip(left[0], right[0], strict=False)) if a != b), min(len(left[0]), len(right[0]))
    )
    a, b = (space[1][at] if at < len(space[1]) else None for space in (left, right))
    where = next((i for i, space in enumerate(all_left, start=1) if space is left), len(all_left) + 1)
    what = f"{kind} {at + 1} of address space {where} differs"
    progress = b.progress if b is not None else (right[1][-1].progress if right[1] else pair.rewritten.blocks)
    sides = [event_side(pair, event) if event is not None else None for event in (a, b)]
    return Divergence(what, progress, *sides)


def vectors(pair: Pair) -> Result:
    """Which interrupts came at all; where lines are noted, which lines."""
    of = _lines if PROCESSORS[pair.isa].lines else _number
    left, right = (
        {one for event in run.of("interrupt") for one in of(event.number)} for run in (pair.reference, pair.rewritten)
    )
    compared = "vectors " + (", ".join(f"{vector:#x}" for vector in sorted(left)) or "none")
    if left == right:
        return Result(compared)
    vector = min(left ^ right)
    sides = []
    for run in (pair.reference, pair.rewritten):
        first = next((event for event in run.of("interrupt") if vector in of(event.number)), None)
        sides.append(event_side(pair, first) if first is not None else None)
    last = pair.rewritten.of("interrupt")
    progress = next((event.progress for event in last if vector in of(event.number)), pair.rewritten.blocks)
    return Result(compared, Divergence(f"interrupt {vector:#x} came in one run only", progress, *sides))


def _number(number: int) -> Sequence[int]:
    return (number,)


def _lines(number: int) -> Sequence[int]:
    return [line for line in range(number.bit_length()) if number >> line & 1]


def memory(pair: Pair) -> Result:
    """Every page of guest memory, without the volatile ranges and the accessed bits of the loader's tables."""
    left, right = pair.reference.memory, pair.rewritten.memory
    numbers = np.union1d(left.numbers, right.numbers)
    compared = f"{len(numbers)} pages in use, of {left.size // PAGE}"
    differing = [int(number) for number in numbers if left.page(int(number)) != right.page(int(number))]
    addresses = [at for number in differing for at in _differing(pair, number)]
    if not addresses:
        return Result(compared)
    pages = len({at // PAGE for at in addresses})
    return Result(compared, _memory_divergence(pair, addresses[0], len(addresses), pages))


def _memory_divergence(pair: Pair, at: int, count: int, pages: int) -> Divergence:
    sides = [memory_side(pair, run, at) for run in (pair.reference, pair.rewritten)]
    plural = "bytes differ" if count != 1 else "byte differs"
    return Divergence(f"{count} {plural} in {pages} pages; the first at guest-physical {at:#x}", None, *sides)


def _differing(pair: Pair, number: int) -> list[int]:
    """Guest-physical addresses of the bytes of a page that differ and may not."""
    a, b = (np.frombuffer(run.memory.page(number), np.uint64) for run in (pair.reference, pair.rewritten))
    wrong = a ^ b
    if number in pair.reference.loader_tables:
        wrong = wrong & np.uint64(0xFFFF_FFFF_FFFF_FFFF ^ ACCESSED)
    flags = wrong.view(np.uint8) != 0
    start = pair.reference.memory.base + number * PAGE
    for physical, size in pair.volatile:
        flags[max(physical - start, 0) : max(physical + size - start, 0)] = False
    return [start + int(at) for at in np.flatnonzero(flags)]


def nothing(_pair: Pair, _at: int, _reference: bytes, _rewritten: bytes) -> int:
    """No difference is excused."""
    return 0


def ranges(find: Callable[[Pair], list[tuple[int, int]]], excuse: Excuse = nothing) -> Check:
    """Guest-virtual ranges (start, end) of the image, byte for byte; none found is nothing to compare.

    `excuse` is given up to 16 bytes of both runs from a difference on, and says how many of them may differ.
    """

    def check(pair: Pair) -> Result:
        found = find(pair)
        if not found:
            return Result("", skipped="the image has no symbols that say where it lies")
        size = sum(end - start for start, end in found)
        wrong = [at for start, end in found for at in _differing_range(pair, start, end, excuse)]
        compared = f"{size} bytes"
        if not wrong:
            return Result(compared)
        return Result(compared, _memory_divergence(pair, wrong[0], len(wrong), len({at // PAGE for at in wrong})))

    return check


def _differing_range(pair: Pair, start: int, end: int, excuse: Excuse) -> list[int]:
    physical = pair.physical(start)
    if physical is None:
        return []
    left, right = (run.memory.read(physical, end - start) for run in (pair.reference, pair.rewritten))
    wrong, excused = [], 0
    for at in map(int, np.flatnonzero(np.frombuffer(left, np.uint8) != np.frombuffer(right, np.uint8))):
        if at >= excused:
            excused = at + excuse(pair, start + at, left[at : at + _LONGEST], right[at : at + _LONGEST])
        if at >= excused:
            wrong.append(physical + at)
    return wrong


def holds(memory: Pages, wanted: Sequence[bytes]) -> list[int]:
    """Indices of the pages of `wanted` (of 4096 bytes each) that are nowhere in `memory`."""
    there = {row.tobytes() for row in memory.contents}
    empty = bytes(PAGE)
    return [index for index, page in enumerate(wanted) if page != empty and page not in there]


def processor(names: Callable[[str], bool] = lambda _: True) -> Check:
    """The registers at the end, of which `names` is true."""

    def check(pair: Pair) -> Result:
        left, right = pair.reference.processor, pair.rewritten.processor
        # Banks are named by the mode that they are not of, so that each run may have some of its own.
        after = PROCESSORS[pair.isa].saved if pair.reference.of("interrupt") else frozenset()
        compared = [name for name in {**left, **right} if names(name) and name not in after]
        wrong = [name for name in compared if left.get(name) != right.get(name) and not _same_instruction(pair, name)]
        text = f"{len(compared)} registers and fields"
        if not wrong:
            return Result(text)
        pc = PROCESSORS[pair.isa].pc
        sides = [
            Side(
                ", ".join(f"{name} {run.processor[name]:#x}" for name in wrong[:6] if name in run.processor),
                address=run.processor[pc],
                symbol=pair.symbol(run.processor[pc]),
                registers={name: run.processor[name] for name in wrong if name in run.processor},
            )
            for run in (pair.reference, pair.rewritten)
        ]
        return Result(
            text, Divergence(f"{len(wrong)} registers differ at the end: {', '.join(wrong[:6])}", None, *sides)
        )

    return check


def _same_instruction(pair: Pair, name: str) -> bool:
    """The program counter may be on the instruction that ended the run, or behind it."""
    if name != PROCESSORS[pair.isa].pc:
        return False
    low, high = sorted((pair.reference.processor[name], pair.rewritten.processor[name]))
    physical = pair.physical(low)
    if physical is None:
        return False
    return low + instruction_length(pair.reference.memory.read(physical, 15), low, pair.isa, pair.order) == high
