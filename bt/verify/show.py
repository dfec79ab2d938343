"""How a place in a run is shown: what happened, where, the guest's own instructions there, and the registers.

Room: `bt/verify`. Instructions are disassembled from the guest's bytes, never from what the rewriter made of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt.verify.observation import GENERAL
from bt.verify.rules import Side

if TYPE_CHECKING:
    from bt.verify.observation import Event, Observation, Write
    from bt.verify.rules import Pair

SHOWN: Final = 3
"""Instructions that are shown of a place."""
_AROUND: Final = 16
"""Bytes that are shown of memory."""
_ASCII: Final = range(0x20, 0x7F)
VECTORS: Final = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
    12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 21: "#CP",
}  # fmt: skip
"""The vendor's names of the exceptions (SDM 3A, table 6-1)."""


def disassemble(code: bytes, address: int, bits: int = 64) -> tuple[str, ...]:
    """The first instructions of `code`, each as address, bytes and text."""
    from iced_x86 import Code, Decoder, Formatter, FormatterSyntax

    formatter = Formatter(FormatterSyntax.INTEL)
    lines: list[str] = []
    for instruction in Decoder(bits, code, ip=address):
        if instruction.code == Code.INVALID or len(lines) == SHOWN:
            break
        at = instruction.ip - address
        text = formatter.format(instruction)
        lines.append(f"{instruction.ip:016x}  {code[at : at + instruction.len].hex(' '):<30}  {text}")
    return tuple(lines)


def instruction_length(code: bytes, address: int) -> int:
    """Bytes of the first instruction of `code`; 0 where there is none."""
    from iced_x86 import Code, Decoder

    instruction = Decoder(64, code, ip=address).decode()
    return 0 if instruction.code == Code.INVALID else int(instruction.len)


def describe(event: Event) -> str:
    """An event in one clause."""
    if event.kind == "system call":
        return f"system call {event.number}"
    name = VECTORS.get(event.number, "")
    text = f"{event.kind} {event.number}" + (f" ({name})" if name and event.kind == "exception" else "")
    text += f", error {event.error:#x}" if event.error else ""
    text += f", accessing {event.address:#x}" if event.address else ""
    return text + f", at privilege level {event.level}"


def event_side(pair: Pair, event: Event) -> Side:
    """A run at an event."""
    return Side(
        f"{describe(event)}, after {event.progress} blocks",
        event.rip,
        pair.symbol(event.rip),
        disassemble(event.code, event.rip, event.bits),
        dict(zip((*GENERAL, "RFLAGS"), event.registers, strict=True)),
    )


def write_side(pair: Pair, write: Write) -> Side:
    """A run at a write to a device."""
    character = f" ({chr(write.value)!r})" if write.size == 1 and write.value in _ASCII else ""
    text = f"{write.device}+{write.offset:#x} <- {write.value:#x}{character}, {write.size} bytes"
    physical = pair.physical(write.rip)
    code = pair.reference.memory.read(physical, 48) if physical is not None else b""
    return Side(
        f"{text}, after {write.progress} blocks", write.rip, pair.symbol(write.rip), disassemble(code, write.rip)
    )


def memory_side(pair: Pair, run: Observation, physical: int) -> Side:
    """What lies in memory at the end of a run."""
    here = run.memory.read(physical, _AROUND).hex(" ")
    address = pair.virtual(physical)
    if address is None:
        return Side(here)
    segment = pair.image.segment_at(address - pair.delta)
    code = run.memory.read(physical, 48) if segment is not None and segment.executable else b""
    return Side(here, address, pair.symbol(address), disassemble(code, address))
