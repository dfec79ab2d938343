"""What one run showed: console, events, device writes, final memory and processor, as plain values.

Room: `bt/verify`. Watches a `Session` from outside and changes nothing of it. What it sees is the same for every
instruction set; the processor is looked at by `bt.verify.views`. It knows neither the other run nor what may
differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bt import xen
from bt.session import Options, Session
from bt.verify.views import PROCESSORS, Processor
from emulator.errors import EngineMissing
from emulator.native import NativeCpu
from paravirt.hypervisor import Hypervisor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.verify.views.view import View
    from emulator.machine import Outcome

PAGE: Final = 4096
_AT_ONCE: Final = 4096


class Event(NamedTuple):
    """Something the guest could see happen to it."""

    kind: str
    """"exception", "interrupt", "software interrupt" or "system call"."""
    number: int
    """Vector or class of an exception, the lines of an interrupt, or the number of a system call."""
    error: int
    """Error code; 0 where there is none."""
    rip: int
    """Guest-virtual address of the instruction."""
    level: int
    """Privilege level it came from."""
    space: int
    """Which process: the guest-physical address of the page-table root, or where there is none, the ASID."""
    progress: int
    """Basic blocks the run had executed."""
    registers: tuple[int, ...]
    """Those that the instruction set's row of `bt.verify.views` names."""
    bits: int
    """Of the code it came from: 64, 32, or 16 for T32."""
    code: bytes
    """The guest's own bytes at `rip`, as far as they were mapped."""
    address: int = 0
    """What a memory fault is about; 0 for anything else."""
    isa: str = "x86-64"
    """Name of the guest's instruction set."""


class Write(NamedTuple):
    """A value that a device took."""

    device: str
    offset: int
    size: int
    """Bytes."""
    value: int
    rip: int
    """Guest-virtual address of the instruction, or the one behind it."""
    progress: int


@dataclass(frozen=True, slots=True)
class Pages:
    """Guest-physical memory, without pages that are zero throughout."""

    size: int
    """Bytes of memory."""
    numbers: NDArray[np.int64]
    """Page numbers, ascending."""
    contents: NDArray[np.uint8]
    """One row of 4096 bytes a page."""
    base: int = 0
    """Guest-physical address of page 0."""

    def read(self, physical: int, size: int) -> bytes:
        """`size` bytes from `physical`; what lies outside memory reads as nothing."""
        out = bytearray()
        at = physical - self.base
        end = min(at + size, self.size)
        while 0 <= at < end:
            step = min(end - at, PAGE - at % PAGE)
            out += self.page(at // PAGE)[at % PAGE : at % PAGE + step]
            at += step
        return bytes(out)

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of memory's size, and of the number and contents of each page in use."""
        sha = hashlib.sha256(self.size.to_bytes(8, "little"))
        sha.update(self.numbers.tobytes())
        sha.update(self.contents.tobytes())
        return sha.hexdigest()

    def page(self, number: int) -> bytes:
        """The page's 4096 bytes."""
        at = int(np.searchsorted(self.numbers, number))
        if at < len(self.numbers) and self.numbers[at] == number:
            return bytes(self.contents[at])
        return bytes(PAGE)


def pages_of(memory: memoryview, base: int = 0) -> Pages:
    """A copy of what is in `memory`, whose length is whole pages, and which begins at guest-physical `base`."""
    rows = np.frombuffer(memory, np.uint8).reshape(-1, PAGE)
    words = rows.view(np.uint64)
    found = [
        np.flatnonzero(words[at : at + _AT_ONCE].any(axis=1)).astype(np.int64) + at
        for at in range(0, len(words), _AT_ONCE)
    ]
    numbers = np.concatenate(found) if found else np.empty(0, np.int64)
    return Pages(len(memory), numbers, rows[numbers], base)


@dataclass(slots=True)
class Observation:
    """One run, from beginning to end."""

    mode: str
    outcome: Outcome
    console: bytes
    events: list[Event]
    writes: list[Write]
    memory: Pages
    processor: dict[str, int]
    """The registers at the end, by name; x86's segments give selector, base, limit and attributes."""
    loader_tables: frozenset[int]
    """Page numbers of the page tables that the loader made, and that the guest began with."""
    exits: dict[str, int]
    """How often what was done for the guest, by operation and route; some came with another exit, and was none."""
    left: int
    """How often the guest was left: all exits."""
    blocks: int
    """Basic blocks executed."""
    nanoseconds: int
    """Virtual time at the end."""
    engine: str = ""
    """Name of the CPU engine."""
    deterministic: bool = True
    """The engine counts guest execution, not the host's time."""
    reads_own_code: bool = True
    """A kernel that read its own code saw the guest's bytes, and nothing that was rewritten."""
    _streams: dict[str, list[Event]] = field(default_factory=dict)

    def of(self, kind: str) -> list[Event]:
        """The events of a kind, in order."""
        if kind not in self._streams:
            self._streams[kind] = [event for event in self.events if event.kind == kind]
        return self._streams[kind]


class _Watch:
    """Notes what happens in a session."""

    def __init__(self, session: Session) -> None:
        self.events: list[Event] = []
        self.writes: list[Write] = []
        self._isa = name = session.image.isa.name
        processor = PROCESSORS.get(name)
        if processor is None:
            raise EngineMissing(f"{name} guests cannot be verified; those of {', '.join(PROCESSORS)} can")
        self.view = _view_of(session, processor)
        self._engine = session.machine.engine
        session.driver.observe = self._event
        board = session.machine.board
        board.mmio.trace = self._write
        if (ports := getattr(board, "ports", None)) is not None:
            ports.trace = self._write

    def _event(self, kind: str, number: int, error: int, pc: int, address: int) -> None:
        view = self.view
        progress = self._engine.progress
        self.events.append(
            Event(
                *view.named(kind, number),
                error,
                pc,
                view.level,
                view.space(),
                progress,
                view.registers(),
                view.bits,
                view.code(pc),
                address,
                self._isa,
            )
        )

    def _write(self, _kind: str, device: str, offset: int, size: int, value: int) -> None:
        self.writes.append(Write(device, offset, size, value, self.view.pc, self._engine.progress))


def _view_of(session: Session, processor: Processor) -> View:
    if session.options.mode != xen.MODE:
        return processor.load()(session)
    from bt.verify.views.xen import XenView

    return XenView(session)


_OF_X86: Final = "RIP"


def _processor_of(session: Session, view: View) -> dict[str, int]:
    """The registers at the end, by name; the program counter as the guest, which sees no fixup, has it. That of x86 is
    the one when the run ended: of an OUT, the engine does the rest of the block (`emulator.engine.unicorn.quirks`)."""
    registers, driver = dict(view.final()), session.driver
    name = PROCESSORS[session.image.isa.name].pc
    if name == _OF_X86:
        registers[name] = driver.ended_at
    if isinstance(driver, Hypervisor):
        registers[name] = driver.own_address(registers[name])
    return registers


def _memory_of(session: Session) -> Pages:
    """Memory as the guest numbers it."""
    memory = session.machine.memory
    if session.options.mode != xen.MODE:
        return pages_of(memory.view, memory.base)
    from bt.verify.views.xen import frames_of

    frames = frames_of(session)
    assert frames is not None
    rows = np.frombuffer(memory.view, np.uint8).reshape(-1, PAGE)
    numbers = np.flatnonzero(frames >= 0)
    numbers = numbers[rows.view(np.uint64)[frames[numbers]].any(axis=1)]
    return Pages(len(frames) * PAGE, numbers, rows[frames[numbers]])


def observe(image: Image, options: Options) -> Observation:
    """Run `image` to its end, or to a limit of the options, and note everything. Raises as `Session` does."""
    console = bytearray()
    session = Session(image, options, console.extend)
    try:
        watch = _Watch(session)
        machine = session.machine
        tables = watch.view.loader_tables()
        outcome = session.run()
        return Observation(
            mode=options.mode,
            outcome=outcome,
            console=bytes(console),
            events=watch.events,
            writes=watch.writes,
            memory=_memory_of(session),
            processor=_processor_of(session, watch.view),
            loader_tables=tables,
            exits=dict(_exits(session)),
            left=_left(session),
            blocks=machine.engine.progress,
            nanoseconds=machine.clock.now(),
            engine=machine.engine.capabilities.name,
            deterministic=machine.engine.capabilities.deterministic,
            reads_own_code=options.mode == "native" or machine.engine.capabilities.execute_only,
        )
    finally:
        session.close()


def _left(session: Session) -> int:
    driver = session.driver
    return sum(driver.exits.values()) if isinstance(driver, NativeCpu) else driver.exits.total


def _exits(session: Session) -> Iterator[tuple[str, int]]:
    driver = session.driver
    if isinstance(driver, NativeCpu):
        yield from sorted(driver.exits.items())
    else:
        for (operation, route), count in sorted(driver.exits.counts.items()):
            yield f"{operation} ({route})", count
