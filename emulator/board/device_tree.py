"""Flattened device trees: what a board tells a kernel about itself (Devicetree Specification 0.4, chapter 5).

Room: `emulator/board`. A tree is plain data; `flatten` makes its bytes. Values are big-endian 32-bit cells, strings or
bytes; the same tree gives the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

MAGIC = 0xD00D_FEED
_BEGIN, _END_NODE, _PROPERTY, _END = 1, 2, 3, 9
_VERSION, _COMPATIBLE = 17, 16
_HEADER = struct.Struct(">10I")

Value = bytes | str | int | tuple[int, ...] | tuple[str, ...] | None
"""Bytes as they are, a string, a cell, cells, strings, or nothing: a property that is just there."""


@dataclass(slots=True)
class Node:
    """One node: properties in order, then children in order."""

    name: str
    properties: dict[str, Value] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)


def cells(number: int, count: int = 2) -> tuple[int, ...]:
    """A number as `count` cells, high one first."""
    return tuple(number >> 32 * place & 0xFFFF_FFFF for place in reversed(range(count)))


def encode(value: Value) -> bytes:
    """A property's value as bytes."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode() + b"\0"
    if isinstance(value, int):
        return struct.pack(">I", value)
    return b"".join(encode(part) for part in value)


def flatten(root: Node) -> bytes:
    """The tree as a kernel reads it: header, no reserved memory, structure, strings."""
    names: dict[str, int] = {}
    strings = bytearray()
    structure = bytearray()

    def name_offset(name: str) -> int:
        if name not in names:
            names[name] = len(strings)
            strings.extend(name.encode() + b"\0")
        return names[name]

    def write(node: Node) -> None:
        structure.extend(struct.pack(">I", _BEGIN) + _padded(node.name.encode() + b"\0"))
        for name, value in node.properties.items():
            contents = encode(value)
            structure.extend(struct.pack(">III", _PROPERTY, len(contents), name_offset(name)) + _padded(contents))
        for child in node.children:
            write(child)
        structure.extend(struct.pack(">I", _END_NODE))

    write(root)
    structure.extend(struct.pack(">I", _END))
    reserved = _HEADER.size
    at = reserved + 16
    header = _HEADER.pack(
        MAGIC,
        at + len(structure) + len(strings),
        at,
        at + len(structure),
        reserved,
        _VERSION,
        _COMPATIBLE,
        0,
        len(strings),
        len(structure),
    )
    return header + bytes(16) + bytes(structure) + bytes(strings)


def _padded(contents: bytes) -> bytes:
    return contents + bytes(-len(contents) % 4)
