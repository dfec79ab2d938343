"""What one run showed: console, events, device writes, final memory and processor, as plain values.

Room: `bt/verify`. Watches a `Session` from outside and changes nothing of it: guest tables are walked without setting
an accessed bit. It knows neither the other run nor what may differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bt.session import Options, Session
from emulator.isa.x86.walk32 import PAE_ROOT, look_up
from emulator.native import NativeCpu
from emulator.native.x86 import X86NativeCpu
from paravirt.modes.x86.hypervisor import X86Hypervisor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from emulator.machine import Outcome

GENERAL: Final = (
    *("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"),
    *("R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"),
)
"""General registers in the order of their numbers."""
_SEGMENTS: Final = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")
_PARTS: Final = ("selector", "base", "limit", "attributes")
_FRAME: Final = 0x000F_FFFF_FFFF_F000
_PRESENT, _LARGE = 1, 1 << 7
_LONGEST: Final = 15
PAGE: Final = 4096
_AT_ONCE: Final = 4096
_LONG_CODE: Final = 1 << 21
"""Of a code segment's attributes: 64-bit code."""
_BUSY: Final = 1 << 9
"""Of a task register's attributes: whether the busy bit that LTR sets is in the cached copy, too."""


class Event(NamedTuple):
    """Something the guest could see happen to it."""

    kind: str
    """"exception", "interrupt", "software interrupt" or "system call"."""
    number: int
    """Vector, or RAX of a system call."""
    error: int
    """Error code; 0 where there is none."""
    rip: int
    """Guest-virtual address of the instruction."""
    level: int
    """Privilege level it came from."""
    space: int
    """Guest-physical address of the page-table root: which process."""
    progress: int
    """Basic blocks the run had executed."""
    registers: tuple[int, ...]
    """The general registers, then RFLAGS."""
    bits: int
    """Of the code it came from: 64 or 32."""
    code: bytes
    """The guest's own bytes at `rip`, as far as they were mapped."""
    address: int = 0
    """What CR2 holds for a page fault; 0 for anything else."""


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

    def read(self, physical: int, size: int) -> bytes:
        """`size` bytes from `physical`; what lies outside memory reads as nothing."""
        out = bytearray()
        end = min(physical + size, self.size)
        while physical < end:
            step = min(end - physical, PAGE - physical % PAGE)
            out += self.page(physical // PAGE)[physical % PAGE : physical % PAGE + step]
            physical += step
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


def pages_of(memory: memoryview) -> Pages:
    """A copy of what is in `memory`, whose length is whole pages."""
    rows = np.frombuffer(memory, np.uint8).reshape(-1, PAGE)
    words = rows.view(np.uint64)
    found = [
        np.flatnonzero(words[at : at + _AT_ONCE].any(axis=1)).astype(np.int64) + at
        for at in range(0, len(words), _AT_ONCE)
    ]
    numbers = np.concatenate(found) if found else np.empty(0, np.int64)
    return Pages(len(memory), numbers, rows[numbers])


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
    """The registers at the end, by name; a segment gives its selector, base, limit and attributes."""
    loader_tables: frozenset[int]
    """Page numbers of the page tables that the loader made, and that the guest began with."""
    exits: dict[str, int]
    """How often the engine or the guest exited, by what for."""
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

    def __init__(self, session: Session, console: bytearray) -> None:
        self.session = session
        self.console = console
        self.events: list[Event] = []
        self.writes: list[Write] = []
        driver = session.driver
        assert isinstance(driver, X86NativeCpu | X86Hypervisor)
        self.cpu = driver if isinstance(driver, X86NativeCpu) else driver.vcpu
        self._bits = session.image.isa.bits
        self._engine = session.machine.engine
        self._words = session.machine.memory.words
        self._bytes = session.machine.memory.view
        driver.observe = self._event
        session.machine.board.ports.trace = self._write
        session.machine.board.mmio.trace = self._write

    def root(self) -> int:
        """Guest-physical address of the page-table root."""
        return self._cr3() & (_FRAME if self._bits == 64 else PAE_ROOT)

    def _cr3(self) -> int:
        cpu = self.cpu
        return int(cpu.registers.control(3)) if isinstance(cpu, X86NativeCpu) else cpu.cr3

    def _code(self, rip: int) -> bytes:
        """The instruction bytes at a guest-virtual address."""
        if self._bits == 64:
            return peek(self._words, self._bytes, self.root(), rip)
        cpu = self.cpu
        physical = look_up(self._bytes, cpu.cr0, cpu.cr4, self._cr3(), rip + cpu.segment(1)[1])
        return up_to_the_page(self._bytes, physical)

    def _event(self, kind: str, number: int, error: int, rip: int, address: int) -> None:
        cpu, root = self.cpu, self.root()
        registers = (*map(int, cpu.gpr), cpu.rflags)
        bits = 64 if cpu.segment(1)[3] & _LONG_CODE else 32
        code = self._code(rip)
        progress = self._engine.progress
        self.events.append(Event(kind, number, error, rip, cpu.cpl, root, progress, registers, bits, code, address))

    def _write(self, _kind: str, device: str, offset: int, size: int, value: int) -> None:
        self.writes.append(Write(device, offset, size, value, self.cpu.rip, self._engine.progress))


def peek(words: memoryview, memory: memoryview, root: int, address: int) -> bytes:
    """Up to 15 bytes of the page at a guest-virtual address; nothing is marked as accessed. Empty where unmapped."""
    if (address + 0x8000_0000_0000) >> 48 & 0xFFFF:
        return b""
    entry, shift = root | _PRESENT, 48
    while shift > 12:
        table, shift = entry & _FRAME, shift - 9
        at = (table >> 3) + (address >> shift & 511)
        if not table + PAGE <= len(memory):
            return b""
        entry = words[at]
        if not entry & _PRESENT:
            return b""
        if entry & _LARGE and shift in (30, 21):
            break
    mask = (1 << shift) - 1
    return up_to_the_page(memory, entry & _FRAME & ~mask | address & mask)


def up_to_the_page(memory: memoryview, physical: int) -> bytes:
    """Up to 15 bytes from a guest-physical address, within its page; none outside of memory."""
    if physical < 0:
        return b""
    end = min(physical + _LONGEST, (physical | PAGE - 1) + 1)
    return bytes(memory[physical:end]) if end <= len(memory) else b""


def tables_from(words: memoryview, size: int, root: int) -> frozenset[int]:
    """Page numbers of all page tables that are reachable from `root`."""
    found: set[int] = set()

    def visit(table: int, level: int) -> None:
        if table + PAGE > size or table >> 12 in found:
            return
        found.add(table >> 12)
        if level == 1:
            return
        for at in range(table >> 3, (table >> 3) + 512):
            entry = words[at]
            if entry & _PRESENT and not (entry & _LARGE and level < 4):
                visit(entry & _FRAME, level - 1)

    visit(root & _FRAME, 4)
    return frozenset(found)


def observe(image: Image, options: Options) -> Observation:
    """Run `image` to its end, or to a limit of the options, and note everything. Raises as `Session` does."""
    console = bytearray()
    session = Session(image, options, console.extend)
    try:
        watch = _Watch(session, console)
        machine = session.machine
        tables: frozenset[int] = frozenset()
        if session.image.isa.bits == 64:  # a 32-bit guest begins without paging
            tables = tables_from(machine.memory.words, machine.memory.size, watch.root())
        outcome = session.run()
        return Observation(
            mode=options.mode,
            outcome=outcome,
            console=bytes(console),
            events=watch.events,
            writes=watch.writes,
            memory=pages_of(machine.memory.view),
            processor=dict(_processor(session)),
            loader_tables=tables,
            exits=dict(_exits(session)),
            blocks=machine.engine.progress,
            nanoseconds=machine.clock.now(),
            engine=machine.engine.capabilities.name,
            deterministic=machine.engine.capabilities.deterministic,
            reads_own_code=options.mode == "native" or machine.engine.capabilities.execute_only,
        )
    finally:
        session.close()


def _exits(session: Session) -> Iterator[tuple[str, int]]:
    driver = session.driver
    if isinstance(driver, NativeCpu):
        yield from sorted(driver.exits.items())
    else:
        for (operation, route), count in sorted(driver.exits.counts.items()):
            yield f"{operation} ({route})", count


def _processor(session: Session) -> Iterator[tuple[str, int]]:
    """What both drivers have, from their `state`."""
    driver = session.driver
    state = driver.state
    gpr, rip, rflags, level, controls, syscall, tables, segments = state[:8]
    yield from zip(GENERAL, gpr, strict=True)
    yield from (("RIP", rip), ("RFLAGS", rflags), ("CPL", level))
    yield from zip(("CR0", "CR2", "CR3", "CR4"), controls[:4], strict=True)
    yield "EFER", controls[-1]
    yield from zip(("STAR", "LSTAR", "CSTAR", "FMASK", "KERNEL_GS_BASE"), syscall, strict=True)
    yield from zip(("GDTR.base", "GDTR.limit", "IDTR.base", "IDTR.limit"), tables, strict=True)
    for name, (selector, base, limit, attributes) in zip(_SEGMENTS, segments, strict=True):
        kept = attributes & ~_BUSY if name == "TR" else attributes
        fields = (selector, base, limit, kept)
        yield from (
            (f"{name}.{part}", value)
            for part, value in zip(("selector", "base", "limit", "attributes"), fields, strict=True)
        )
