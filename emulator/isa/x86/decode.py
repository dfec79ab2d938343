"""Finds sensitive instructions in x86 machine code: one linear sweep with iced-x86.

Room: `emulator/isa/x86`. Beside the table the only place that imports iced-x86 here, since an
import costs 35 ms. Knows bytes and addresses, nothing of images, pages' rights or patches. A linear sweep
is right as long as it starts at an instruction boundary and meets no data; what it found past
data is judged by the caller, with the boundaries that `Sweep` gives.
"""

from typing import Final, NamedTuple

from iced_x86 import Code, Decoder, DecoderError, Instruction

from emulator.isa.sensitive import SensitiveInstruction
from emulator.isa.x86.table import ROW_OF_CODE, SENSITIVE

PAGE: Final = 4096
"""The granule of `Sweep.page_starts`, bytes."""

LONGEST: Final = 15
"""Most bytes of an x86 instruction (SDM volume 2, section 2.3.11)."""

FILL: Final = b"\xcc" * PAGE
"""INT3, with which kernels fill the room behind functions."""

REPORTED: Final[frozenset[int]] = SENSITIVE - {int(Code.INT3)}
"""What a sweep reports: all of the table but INT3, which is fill by the million and reaches the
hypervisor by itself."""


class Found(NamedTuple):
    """A sensitive instruction in a piece of code."""

    offset: int
    """Its first byte, from the beginning of the piece."""
    length: int
    """Bytes, prefixes included."""
    code: int
    """Its encoding, an iced-x86 `Code`; `ROW_OF_CODE` gives the row."""


class Sweep(NamedTuple):
    """What a linear sweep saw."""

    found: list[Found]
    """Sensitive instructions by ascending offset, INT3 left out."""
    end_offset: int
    """First byte not consumed: the length of the code, or where an instruction begins that the end cut."""
    page_starts: list[int]
    """For every 4 KiB page that the code touches, by ascending address, the offset of the first
    instruction boundary at or after the page's start (the sweep's start, where that is later);
    the length of the code, when no instruction begins there."""


def sensitive_in(code: bytes, address: int, start: int = 0, bits: int = 64) -> list[Found]:
    """The sensitive instructions of `code`, which lies at `address`, swept from offset `start` on.

    `bits` is the mode's, 64 or 32. Raises ValueError when the code does not fit the mode's address space or `start` is
    outside it.
    """
    return sweep(code, address, start, bits).found


def sweep(code: bytes, address: int, start: int = 0, bits: int = 64) -> Sweep:
    """Sweep `code`, which lies at `address`, from offset `start` on; bytes that are no instruction are stepped over.

    `bits` is the mode's, 64 or 32. Raises ValueError when the code does not fit the mode's address space or `start` is
    outside it.
    """
    size = len(code)
    if not 0 <= address <= (1 << bits) - size:
        raise ValueError(f"code of {size} bytes at {address:#x} does not fit a {bits}-bit address space")
    if not 0 <= start <= size:
        raise ValueError(f"start {start:#x} is outside the {size} bytes of code")
    found: list[Found] = []
    page_starts: list[int] = []
    position = start
    for begin in range(-(address % PAGE), size, PAGE):
        end = min(begin + PAGE, size)
        if position < begin:  # the code's last instruction is cut, and began a page earlier
            page_starts.append(size)
            continue
        page_starts.append(position)
        if position < end and not FILL.startswith(code[position:end]):
            position = _sweep_window(code, address, position, end, found, bits)
        else:
            position = max(position, end)
    return Sweep(found, position, page_starts)


def _sweep_window(code: bytes, address: int, position: int, end: int, found: list[Found], bits: int) -> int:
    """Sweep the instructions that begin in [position, end); return the boundary behind the last one.

    The boundary is below `end` only when the end of the code cuts the last instruction.
    """
    reported = REPORTED
    decoder = Decoder(bits, code[position:end], ip=address + position)
    instruction = None
    for instruction in decoder:
        if instruction.code in reported:
            found.append(Found(instruction.ip - address, instruction.len, instruction.code))
    if instruction is None or decoder.last_error != DecoderError.NO_MORE_BYTES:
        return end
    cut = instruction.ip - address
    decoder = Decoder(bits, code[cut : cut + LONGEST], ip=address + cut)
    instruction = decoder.decode()
    if decoder.last_error == DecoderError.NO_MORE_BYTES:
        return cut
    if instruction.code in reported:
        found.append(Found(cut, instruction.len, instruction.code))
    return cut + instruction.len


def instruction_at(code: bytes, address: int, bits: int = 64) -> Instruction | None:
    """The instruction that `code` begins with, decoded for `address`; None when there is none."""
    instruction = Decoder(bits, code[:LONGEST], ip=address).decode()
    return None if instruction.code == Code.INVALID else instruction


def row_of(instruction: Instruction) -> SensitiveInstruction | None:
    """The table's row for a decoded instruction; None when it is innocuous."""
    return ROW_OF_CODE.get(instruction.code)
