"""Linux's self-extracting kernel for MIPS: an ELF32 whose data holds a compressed, raw vmlinux.

Room: `bt/image`. As arch/mips/boot/compressed makes it: head.S clears its bss, calls the decompressor and jumps to
the kernel's entry; both addresses stand in its code as immediates, and nowhere else. The kernel inside is memory as
objcopy writes it, without headers. Nothing is trusted: every address is checked against what was unpacked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from bt.image import elf, payload
from bt.image.elf import PF_R, PF_W, PF_X, Segment
from emulator.errors import BadImage
from emulator.isa.isas import MIPS32
from emulator.isa.mips.registers import KSEG0, KSEG2, UNMAPPED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bt.image.image import Image, Range

_EM_MIPS = 8
_HEAD = 64
"""Words of head.S in which the call of the kernel stands."""
_SMALLEST = 1 << 16
_LARGEST = 256 << 20
_SECTIONS = 32
_LUI, _ORI, _ADDIU, _JR, _JALR = 0x0F, 0x0D, 0x09, 0x08, 0x09


@dataclass(frozen=True, slots=True)
class SelfExtractor:
    """What the wrapper says."""

    load_address: int
    """Guest-virtual address at which the kernel is unpacked."""
    entry: int
    """Guest-virtual address of its entry."""
    payload: memoryview
    """The compressed kernel and what follows it in the file."""

    def text_ranges(self, image: Image) -> tuple[Range, ...]:
        """Where the code is, by the names that the linker script gives; all of it where those are not there."""
        from bt.image.image import Range

        address = image.symbols.address_of
        pairs = ((address("_stext"), address("_etext")), (address("_sinittext"), address("_einittext")))
        end = self.load_address + len(image.elf)
        found = [
            Range(first & ~3, last & ~3)
            for first, last in pairs
            if first is not None and last is not None and self.load_address <= first < last <= end
        ]
        return tuple(sorted(found)) or (Range(self.load_address, end & ~3),)

    def moved(self, image: Image, delta: int, physical_delta: int) -> Image:
        """The kernel at other virtual addresses; see `mips_move.moved`."""
        from bt.image.mips_move import moved

        return moved(image, delta, physical_delta)


def recognise(contents: memoryview) -> bool:
    """Whether the file is an ELF32 for MIPS with a compressed payload and little else."""
    if len(contents) < 0x200 or bytes(contents[:5]) != elf.MAGIC + b"\x01":
        return False
    order = {1: "<", 2: ">"}.get(contents[5])
    if order is None or struct.unpack_from(order + "H", contents, 18)[0] != _EM_MIPS:
        return False
    sections = struct.unpack_from(order + "H", contents, 48)[0]
    return sections < _SECTIONS and _payload_at(contents) is not None and _head(contents, order) is not None


def read(contents: memoryview, path: str, digest: str) -> Image:
    """The image of the kernel inside. Raises `BadImage`."""
    from bt.image.image import Image

    header = parse(contents, path)
    compression, kernel = payload.unpack(header.payload, path, digest, _LARGEST, whole=False)
    end = header.load_address + len(kernel)
    if len(kernel) < _SMALLEST or not header.load_address <= header.entry < end:
        _bad(path, f"unpacks to {header.load_address:#x}..{end:#x}, where its entry {header.entry:#x} is not")
    kernel = kernel.toreadonly()
    segment = Segment(
        vaddr=header.load_address,
        paddr=header.load_address & UNMAPPED,
        memory_size=len(kernel),
        flags=PF_R | PF_W | PF_X,
        data=kernel,
        file_offset=0,
    )
    return Image(
        path=path,
        container="mips-self-extractor",
        compression=compression,
        sha256=digest,
        elf=kernel,
        appended=memoryview(b""),
        segments=(segment,),
        sections=(),
        entry=header.entry,
        header=header,
        isa=MIPS32,
        byte_order="little" if contents[5] == 1 else "big",
        raw=True,
    )


def parse(contents: memoryview, path: str) -> SelfExtractor:
    """What the wrapper says of its kernel. Raises `BadImage`."""
    order = "<" if contents[5] == 1 else ">"
    at, entry = _payload_at(contents), _head(contents, order)
    if at is None or entry is None:
        _bad(path, "is no self-extracting kernel for MIPS")
    loads = _load_addresses(contents[:at], order, entry)
    if not loads:
        _bad(path, f"does not say where it unpacks the kernel that it enters at {entry:#x}")
    return SelfExtractor(max(loads), entry, contents[at:])


def _bad(path: str, what: str) -> NoReturn:
    raise BadImage(f"{path}: {what}; fetch or build it again, or give the vmlinux ELF")


def _payload_at(contents: memoryview) -> int | None:
    """Where the compressed kernel begins: the first of the known beginnings that much data follows.

    The beginnings also occur as constants of the decompressor, in front of it.
    """
    data = bytes(contents)
    found = []
    for name, magic, decode in payload.COMPRESSIONS:
        if decode is None or name in ("none", "lzma"):
            continue
        at = data.find(magic)
        while at >= 0:
            if _plausible(name, data, at):
                found.append(at)
                break
            at = data.find(magic, at + 1)
    return min(found, default=None)


def _plausible(name: str, data: bytes, at: int) -> bool:
    """Whether a stream of this kind begins here: its header's check, or at least room and flags that exist."""
    import zlib

    if len(data) - at < _SMALLEST // 2:
        return False
    head = data[at : at + 12]
    if name == "xz":
        return zlib.crc32(head[6:8]) == int.from_bytes(head[8:12], "little")
    if name == "gzip":
        return head[2] == 8 and head[3] & 0xE0 == 0 and head[8] in (0, 2, 4)
    if name == "bzip2":
        return head[3] in b"123456789" and head[4:10] == b"1AY&SY"
    if name == "lz4":
        return 0 < int.from_bytes(head[4:8], "little") <= len(data) - at
    return True


def _words(contents: memoryview, order: str) -> NDArray[np.uint32]:
    import numpy as np

    return np.frombuffer(contents[: len(contents) & ~3], dtype=order + "u4").astype(np.uint32)


def _head(contents: memoryview, order: str) -> int | None:
    """The kernel's entry: what head.S loads into a register and jumps to, and is not the wrapper's own."""
    entry, table = struct.unpack_from(order + "II", contents, 24)
    count = struct.unpack_from(order + "H", contents, 44)[0]
    for index in range(min(count, _SECTIONS)):
        if table + 32 * (index + 1) > len(contents):
            return None
        kind, offset, vaddr, _paddr, size, memory = struct.unpack_from(order + "6I", contents, table + 32 * index)
        if kind == 1 and vaddr <= entry < vaddr + size and offset + size <= len(contents):
            start = offset + entry - vaddr
            own = range(vaddr, vaddr + memory)
            return next(
                (target for target in _jumps(contents[start : offset + size], order) if target not in own), None
            )
    return None


def _jumps(code: memoryview, order: str) -> list[int]:
    """Addresses that the first words of `code` load (LUI, then ORI or ADDIU) and jump to (JR or JALR)."""
    held: dict[int, int] = {}
    targets = []
    count = min(_HEAD, len(code) // 4)
    for word in struct.unpack_from(f"{order}{count}I", code):
        major, source, target, value = word >> 26, word >> 21 & 31, word >> 16 & 31, word & 0xFFFF
        if major == _LUI:
            held[target] = value << 16
        elif major == _ORI and source in held:
            held[target] = held[source] | value
        elif major == _ADDIU and source in held:
            held[target] = held[source] + value - (value >> 15 << 16) & 0xFFFF_FFFF
        elif major == 0 and word & 0x3F in (_JR, _JALR) and source in held:
            targets.append(held[source])
    return targets


def _load_addresses(code: memoryview, order: str, entry: int) -> list[int]:
    """Multiples of 64 KiB in KSEG0 or KSEG1, not behind the entry, that the wrapper's code loads by LUI alone."""
    import numpy as np

    words = _words(code, order)
    paired = np.zeros(len(words), dtype=bool)  # LUI whose lower half the next instruction adds
    major = words >> np.uint32(26)
    same = (words[:-1] >> np.uint32(16) & np.uint32(31)) == (words[1:] >> np.uint32(21) & np.uint32(31))
    paired[:-1] = same & ((major[1:] == _ORI) | (major[1:] == _ADDIU))
    lui = np.unique(words[(major == _LUI) & ~paired & (words >> np.uint32(21) & np.uint32(31) == 0)] & 0xFFFF)
    low, high = max(KSEG0, entry - _LARGEST), min(entry, KSEG2)
    return [address for value in lui.tolist() if low <= (address := int(value) << 16) <= high]
