"""How a place in a run is shown: what happened, where, the guest's own instructions there, and the registers.

Room: `bt/verify`. Instructions are disassembled from the guest's bytes, never from what the rewriter made of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt.disassembly import BAD
from bt.disassembly import disassemble as decode
from bt.verify.rules import Side
from bt.verify.views import PROCESSORS

if TYPE_CHECKING:
    from bt.verify.observation import Event, Observation, Write
    from bt.verify.rules import Pair

SHOWN: Final = 3
"""Instructions that are shown of a place."""
_AROUND: Final = 16
"""Bytes that are shown of memory."""
_ASCII: Final = range(0x20, 0x7F)


def disassemble(
    code: bytes, address: int, isa: str = "x86-64", bits: int = 0, order: str = "little"
) -> tuple[str, ...]:
    """The first instructions of `code`, each as address, bytes and text; `bits` as an event's, 0 for the kernel's."""
    states = PROCESSORS[isa].states
    name, state = states[bits] if bits in states else next(iter(states.values()))
    lines: list[str] = []
    for line in decode(code, address, SHOWN, isa=name, order=order, state=state):
        if line.text == BAD:
            break
        lines.append(f"{line.address:0{PROCESSORS[isa].digits}x}  {line.bytes.hex(' '):<30}  {line.text}")
    return tuple(lines)


def instruction_length(code: bytes, address: int, isa: str = "x86-64", order: str = "little") -> int:
    """Bytes of the first instruction of `code`; 0 where there is none."""
    name, state = next(iter(PROCESSORS[isa].states.values()))
    for line in decode(code, address, 1, isa=name, order=order, state=state):
        return 0 if line.text == BAD else len(line.bytes)
    return 0


def describe(event: Event, isa: str = "x86-64") -> str:
    """An event in one clause."""
    if event.kind == "system call":
        return f"system call {event.number}"
    name = PROCESSORS[isa].vectors.get(event.number, "")
    text = f"{event.kind} {event.number}" + (f" ({name})" if name and event.kind == "exception" else "")
    text += f", error {event.error:#x}" if event.error else ""
    text += f", accessing {event.address:#x}" if event.address else ""
    return text + f", at privilege level {event.level}"


def event_side(pair: Pair, event: Event) -> Side:
    """A run at an event."""
    return Side(
        f"{describe(event, pair.isa)}, after {event.progress} blocks",
        event.rip,
        pair.symbol(event.rip),
        disassemble(event.code, event.rip, pair.isa, event.bits, pair.order),
        dict(zip(PROCESSORS[pair.isa].noted, event.registers, strict=True)),
    )


def write_side(pair: Pair, write: Write) -> Side:
    """A run at a write to a device."""
    character = f" ({chr(write.value)!r})" if write.size == 1 and write.value in _ASCII else ""
    text = f"{write.device}+{write.offset:#x} <- {write.value:#x}{character}, {write.size} bytes"
    physical = pair.physical(write.rip)
    code = pair.reference.memory.read(physical, 48) if physical is not None else b""
    return Side(
        f"{text}, after {write.progress} blocks",
        write.rip,
        pair.symbol(write.rip),
        disassemble(code, write.rip, pair.isa, order=pair.order),
    )


def memory_side(pair: Pair, run: Observation, physical: int) -> Side:
    """What lies in memory at the end of a run."""
    here = run.memory.read(physical, _AROUND).hex(" ")
    address = pair.virtual(physical)
    if address is None:
        return Side(here)
    segment = pair.image.segment_at(address - pair.delta)
    code = run.memory.read(physical, 48) if segment is not None and segment.executable else b""
    return Side(here, address, pair.symbol(address), disassemble(code, address, pair.isa, order=pair.order))
