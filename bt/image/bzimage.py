"""The bzImage container: its setup header, and where the compressed kernel lies in it.

Room: `bt/image`. Offsets and meanings from Linux's Documentation/x86/boot.rst (boot protocol 2.15).
What the payload holds (an ELF of either class) says which x86 it is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from bt.image import elf
from emulator.errors import BadImage

if TYPE_CHECKING:
    from bt.image.image import Image

SETUP_HEADER_START = 0x1F1
_SETUP_HEADER_LIMIT = 0x290
_SMALLEST = 0x268
_BOOT_FLAG = 0xAA55
_WITH_PAYLOAD, _WITH_INIT_SIZE = 0x0208, 0x020A


@dataclass(frozen=True, slots=True)
class BzImage:
    """What a bzImage's setup header says, validated."""

    version: int
    """Boot protocol, major in the high byte: 0x020f is 2.15."""
    setup_header: bytes
    """The file's bytes from 0x1f1 to the end of its setup header."""
    payload: memoryview
    """The compressed kernel."""
    kernel_alignment: int
    """Bytes; physical addresses of a relocatable kernel are multiples."""
    relocatable: bool
    preferred_address: int
    """Physical address the kernel wants to be at."""
    init_size: int
    """Bytes of memory needed from its run-time start on; 0 before protocol 2.10."""


def recognise(data: memoryview) -> bool:
    """Whether the file has the signature of Linux's x86 boot protocol."""
    return len(data) >= 0x206 and bytes(data[0x202:0x206]) == b"HdrS"


def read(data: memoryview, path: str, digest: str) -> Image:
    """The image of a bzImage. Raises `BadImage`."""
    from bt.image import image, payload

    header = parse(data, path)
    compression, kernel = payload.unpack(header.payload, path, digest, header.init_size or elf.MAXIMUM_SIZE)
    return image.from_elf(kernel, path, "bzimage", compression, digest, header)


def _bad(path: str, what: str) -> NoReturn:
    raise BadImage(f"{path}: {what}")


def parse(data: memoryview, path: str) -> BzImage:
    """Read and check the setup header of a bzImage. Raises `BadImage`."""
    if not recognise(data):
        _bad(path, "has no `HdrS` signature at 0x202, so it is no bzImage; give a kernel")
    if len(data) < _SMALLEST:
        _bad(path, f"is truncated: {len(data)} bytes cannot hold a bzImage's setup header; fetch or build it again")
    (boot_flag,) = struct.unpack_from("<H", data, 0x1FE)
    if boot_flag != _BOOT_FLAG:
        _bad(path, f"has boot flag {boot_flag:#06x} at 0x1fe, a bzImage has 0xaa55; fetch or build it again")
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < _WITH_PAYLOAD:
        _bad(
            path,
            f"speaks boot protocol {version >> 8}.{version & 255:02}, which does not say where the kernel lies; "
            "at least 2.08 (Linux 2.6.25) is needed, or give the vmlinux ELF",
        )
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = ((data[SETUP_HEADER_START] or 4) + 1) * 512 + offset
    if not length or start + length > len(data):
        _bad(
            path,
            f"says its payload lies at {start:#x}..{start + length:#x}, but the file ends at {len(data):#x}: "
            "it is truncated; fetch or build it again",
        )
    (alignment,) = struct.unpack_from("<I", data, 0x230)
    preferred, init_size = struct.unpack_from("<QI", data, 0x258) if version >= _WITH_INIT_SIZE else (0, 0)
    # The header ends where the jump over it goes, at 0x202 plus the jump's displacement.
    end = min(0x202 + data[0x201], _SETUP_HEADER_LIMIT, len(data))
    return BzImage(
        version=version,
        setup_header=bytes(data[SETUP_HEADER_START:end]),
        payload=data[start : start + length],
        kernel_alignment=alignment,
        relocatable=bool(data[0x234]),
        preferred_address=preferred,
        init_size=init_size,
    )
