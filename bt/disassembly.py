"""Code as people read it, for every instruction set: what reports show beside the bytes.

Room: `bt`. x86 is printed by iced-x86 in Intel syntax, the other instruction sets by capstone in their vendors'. It is
for people alone: nothing is decided by a disassembly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

BAD: Final = "(bad)"
"""The text of bytes that are no instruction."""


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction."""

    address: int
    """Guest-virtual."""
    bytes: bytes
    text: str
    """In the syntax of the vendor; x86: Intel."""


def disassemble(
    code: bytes, address: int, most: int | None = None, *, isa: str = "x86-64", order: str = "little", state: str = ""
) -> tuple[Line, ...]:
    """The instructions of `code`, at most `most` of them; bytes that are none are "(bad)".

    `order` is the byte order of the image, `state` the instruction-set state ("t32") where the ISA has several.
    Raises `KeyError` for an instruction set that nothing here prints.
    """
    lines: list[Line] = []
    for line in _DECODERS[isa](code, address, order, state):
        if len(lines) == most:
            break
        lines.append(line)
    return tuple(lines)


def _iced(bits: int) -> Callable[[bytes, int, str, str], Iterator[Line]]:
    def decode(code: bytes, address: int, order: str, state: str) -> Iterator[Line]:
        from iced_x86 import Decoder

        formatter, mask = _formatter(), (1 << bits) - 1
        for instruction in Decoder(bits, code, ip=address):
            at = (instruction.ip - address) & mask
            yield Line(instruction.ip, code[at : at + instruction.len], formatter.format(instruction))

    return decode


@cache
def _formatter() -> Any:
    from iced_x86 import Formatter, FormatterSyntax

    formatter = Formatter(FormatterSyntax.INTEL)
    formatter.hex_prefix, formatter.hex_suffix, formatter.uppercase_hex = "0x", "", False
    formatter.space_after_operand_separator = True
    return formatter


def _capstone(arch: str, modes: dict[str, tuple[str, ...]], smallest: dict[str, int]) -> Any:
    """A decoder; `modes` are capstone's and `smallest` the size of its shortest instruction, by state."""

    def decode(code: bytes, address: int, order: str, state: str) -> Iterator[Line]:
        engine, step, at = _engine(arch, modes.get(state, modes[""]), order), smallest.get(state, 4), 0
        while at < len(code):
            for begin, length, name, operands in engine.disasm_lite(code[at:], address + at):
                yield Line(begin, code[at : at + length], f"{name} {operands}".rstrip())
                at += length
            if at < len(code):
                yield Line(address + at, code[at : at + step], BAD)
                at += step

    return decode


@cache
def _engine(arch: str, modes: tuple[str, ...], order: str) -> Any:
    import capstone

    mode = capstone.CS_MODE_BIG_ENDIAN if order == "big" else 0
    for name in modes:
        mode |= getattr(capstone, name)
    return capstone.Cs(getattr(capstone, arch), mode)


_DECODERS: Final[dict[str, Callable[[bytes, int, str, str], Iterator[Line]]]] = {
    "x86-64": _iced(64),
    "i386": _iced(32),
    "aarch64": _capstone("CS_ARCH_ARM64", {"": ("CS_MODE_ARM",)}, {}),
    "armv7": _capstone(
        "CS_ARCH_ARM",
        {"": ("CS_MODE_ARM", "CS_MODE_V8"), "t32": ("CS_MODE_THUMB", "CS_MODE_V8")},
        {"t32": 2},
    ),
    "mips32": _capstone("CS_ARCH_MIPS", {"": ("CS_MODE_MIPS32",)}, {}),
}
"""Name of an instruction set -> what prints it."""
