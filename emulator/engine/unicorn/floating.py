"""The x87 and SSE state of Unicorn's x86 as one value: the 512 bytes that FXSAVE stores in 64-bit mode (SDM 1, 10.5.1).

Room: `emulator/engine/unicorn`. The image is the architecture's, so it goes from one engine to another.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Final

from emulator.engine.unicorn import library as lib

SIZE: Final = 512
_HEAD: Final = struct.Struct("<HHBxHQQII")
_FP, _XMM = 32, 160
_MXCSR_MASK: Final = 0xFFFF
_EMPTY: Final = 3


def read(library: Any, handle: int) -> bytes:
    """The image of what the engine has."""

    def number(register: int, size: int) -> int:
        raw = (ctypes.c_ubyte * 16)()
        library.uc_reg_read(handle, register, raw)
        return int.from_bytes(bytes(raw[:size]), "little")

    status, tags = number(lib.REG_FPSW, 2), number(lib.REG_FPTAG, 2)
    valid = sum(1 << place for place in range(8) if tags >> 2 * place & 3 != _EMPTY)
    image = bytearray(SIZE)
    _HEAD.pack_into(
        image,
        0,
        number(lib.REG_FPCW, 2),
        status,
        valid,
        number(lib.REG_FOP, 2),
        number(lib.REG_FIP, 8),
        number(lib.REG_FDP, 8),
        number(lib.REG_MXCSR, 4),
        _MXCSR_MASK,
    )
    top = status >> 11 & 7
    for place in range(8):
        at = _FP + 16 * place
        image[at : at + 10] = number(lib.REG_FP0 + (top + place & 7), 10).to_bytes(10, "little")
    for place in range(16):
        at = _XMM + 16 * place
        image[at : at + 16] = number(lib.REG_XMM0 + place, 16).to_bytes(16, "little")
    return bytes(image)


def write(library: Any, handle: int, image: bytes) -> None:
    """Put an image back. Raises `ValueError` for one of another size."""
    if len(image) != SIZE:
        raise ValueError(f"a floating-point state of {len(image)} bytes: FXSAVE's has {SIZE}")

    def put(register: int, data: bytes) -> None:
        library.uc_reg_write(handle, register, (ctypes.c_ubyte * 16)(*data))

    control, status, valid, opcode, instruction, operand, mxcsr, _mask = _HEAD.unpack_from(image)
    tags = sum((0 if valid >> place & 1 else _EMPTY) << 2 * place for place in range(8))
    top = status >> 11 & 7
    for place in range(8):
        at = _FP + 16 * place
        put(lib.REG_FP0 + (top + place & 7), image[at : at + 10])
    for place in range(16):
        at = _XMM + 16 * place
        put(lib.REG_XMM0 + place, image[at : at + 16])
    for register, value, size in (
        (lib.REG_FPCW, control, 2),
        (lib.REG_FPSW, status, 2),
        (lib.REG_FPTAG, tags, 2),
        (lib.REG_FOP, opcode, 2),
        (lib.REG_FIP, instruction, 8),
        (lib.REG_FDP, operand, 8),
        (lib.REG_MXCSR, mxcsr, 4),
    ):
        put(register, value.to_bytes(size, "little"))
