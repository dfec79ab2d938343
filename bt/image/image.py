"""`load`: a file becomes an `Image`, whatever its container.

Room: `bt/image`, the front door. An `Image` is a value that the scanner, the planner, the rewriter and the board read;
it knows nothing of them. What costs time (symbols, patch tables, relocations) is read when first asked for.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from bt.image import containers, elf, notes
from bt.image.elf import MAXIMUM_SIZE, SHF_ALLOC, SHF_EXECINSTR, Section, Segment
from emulator.errors import BadImage, UsageError
from emulator.isa.isas import X86_64, Isa

if TYPE_CHECKING:
    from bt.image.patch_tables import PatchTables
    from bt.image.relocate import Relocations
    from bt.image.symbols import Symbols

T = TypeVar("T")

_OTHER_FILES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", "is compressed with gzip; decompress it first"),
    (0, b"\xfd7zXZ\x00", "is compressed with xz; decompress it first"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd; decompress it first"),
    (0, b"070701", "is a cpio archive; give it as the initramfs and a kernel as the image"),
    (0, b"\x27\x05\x19\x56", "is a U-Boot image; give the kernel inside it"),
)
"""Offset, bytes and what to say of files that are often taken for a kernel."""


class Range(NamedTuple):
    """Guest-virtual addresses from `start` up to, not with, `end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A kernel, ready to be scanned, rewritten or booted."""

    path: str
    """Where it came from, for messages."""
    container: str
    """"elf64", "elf32", or the name of one of `containers.CONTAINERS`."""
    compression: str
    """Of the container's payload (`payload.COMPRESSIONS`); "none" where it has none."""
    sha256: str
    """Of the whole file, hexadecimal."""
    elf: memoryview
    """The uncompressed kernel, read-only, without what is appended to it: an ELF, or raw memory (see `raw`)."""
    appended: memoryview
    """What follows it in the file or payload: Linux's relocation table on x86, or nothing."""
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    """Empty where the ELF has no section headers."""
    entry: int
    """e_entry as the ELF has it: for vmlinux on x86-64 a *physical* address."""
    header: Any = None
    """What the container's own header says, decoded: a `bzimage.BzImage` for a bzImage; None where there is none."""
    isa: Isa = X86_64
    byte_order: str = "little"
    """"little" or "big"."""
    relocatable: bool = False
    """A relocatable object, such as a kernel module: its addresses are made up, and it cannot be booted by itself."""
    raw: bool = False
    """`elf` is no ELF but the kernel's memory, as its container has it; it has no sections."""
    _note_tables: tuple[memoryview, ...] = ()
    _lazy: dict[str, object] = field(default_factory=dict, repr=False)

    @property
    def setup_header(self) -> bytes:
        """A bzImage's bytes from 0x1f1 to the end of its setup header; empty for others."""
        return bytes(getattr(self.header, "setup_header", b""))

    @property
    def entry_physical(self) -> int:
        """Guest-physical address of the entry point."""
        return self._entry_segment()[0]

    @property
    def entry_virtual(self) -> int:
        """Guest-virtual address at which the entry point is linked."""
        return self._entry_segment()[1]

    @property
    def text_ranges(self) -> tuple[Range, ...]:
        """Executable guest-virtual ranges in ascending order: of sections, or of segments where there are none."""
        return self.once("text_ranges", self._find_text)

    @property
    def symbols(self) -> Symbols:
        """Names and addresses, from .symtab or from the kernel's own kallsyms."""
        from bt.image import symbols

        return self.once("symbols", lambda: symbols.read(self))

    @property
    def linux(self) -> PatchTables | None:
        """The kernel's own patch tables, or None where this is no Linux."""
        from bt.image import patch_tables

        return self.once("linux", lambda: patch_tables.read(self))

    @property
    def relocations(self) -> Relocations | None:
        """The appended relocation table, or None where there is none. Raises `BadImage` for a damaged one."""
        from bt.image import relocate

        if not self.appended:
            return None
        return self.once("relocations", lambda: relocate.parse(self.appended, self.segments, self.path))

    @property
    def notes(self) -> tuple[notes.Note, ...]:
        """All ELF notes. Raises `BadImage` for a damaged table."""
        return self.once("notes", lambda: notes.parse(self._note_tables, self.path, self.byte_order))

    @property
    def pvh_entry(self) -> int | None:
        """Guest-physical address of the 32-bit PVH entry point, or None."""
        return notes.pvh_entry(self.notes)

    @property
    def build_id(self) -> str | None:
        """The linker's build id in hexadecimal, or None."""
        return notes.build_id(self.notes)

    def section(self, name: str) -> Section | None:
        """The first section called `name`, or None."""
        return next((section for section in self.sections if section.name == name), None)

    def segment_at(self, vaddr: int) -> Segment | None:
        """The segment that occupies guest-virtual `vaddr`, or None."""
        return next((s for s in self.segments if s.vaddr <= vaddr < s.vaddr + s.memory_size), None)

    def view(self, vaddr: int, size: int) -> memoryview:
        """`size` bytes from guest-virtual `vaddr`, not copied. Raises `BadImage` where the file does not have them."""
        segment = self.segment_at(vaddr)
        at = vaddr - segment.vaddr if segment else 0
        if segment is None or size < 0 or at + size > len(segment.data):
            raise BadImage(
                f"{self.path}: {size} bytes at virtual {vaddr:#x} are not in the file; "
                "it is damaged, or the address is not the kernel's",
            )
        return segment.data[at : at + size]

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, made when `name` is first asked for and then kept with the image."""
        if name not in self._lazy:
            self._lazy[name] = make()
        return cast(T, self._lazy[name])

    def source_line(self, address: int) -> str:
        """`file.c:12` of the code at guest-virtual `address`, by DWARF; "" where nothing says."""
        from bt.image import source_lines

        return self.once("source_lines", lambda: source_lines.read(self)).at(address)

    def _entry_segment(self) -> tuple[int, int]:
        """Physical and virtual entry: by the ABI e_entry is virtual, but vmlinux holds the physical one."""
        if self.relocatable:
            raise BadImage(f"{self.path}: is a kernel module and cannot be booted; give a kernel")
        executable = [segment for segment in self.segments if segment.executable]
        for segment in executable:
            if segment.vaddr <= self.entry < segment.vaddr + len(segment.data):
                return self.entry - segment.vaddr + segment.paddr, self.entry
        segment = next(s for s in executable if s.paddr <= self.entry < s.paddr + len(s.data))
        return self.entry, self.entry - segment.paddr + segment.vaddr

    def _find_text(self) -> tuple[Range, ...]:
        own = getattr(self.header, "text_ranges", None)
        if own is not None:
            return cast("tuple[Range, ...]", own(self))
        wanted = SHF_ALLOC | SHF_EXECINSTR
        ranges = [Range(s.vaddr, s.vaddr + s.size) for s in self.sections if s.flags & wanted == wanted and s.data]
        if not ranges:
            ranges = [Range(s.vaddr, s.vaddr + len(s.data)) for s in self.segments if s.executable and s.data]
        ranges.sort()
        for (_, end), (start, _) in pairwise(ranges):
            if start < end:
                raise BadImage(f"{self.path}: two executable sections overlap at {start:#x}; fetch or build it again")
        for start, end in ranges:
            self.view(start, end - start)
        return tuple(ranges)


def load(path: str | os.PathLike[str]) -> Image:
    """Read a kernel, whatever its container.

    Raises `UsageError` where the file cannot be read, `BadImage` where it is no kernel of a supported instruction set.
    """
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadImage(f"{name}: is no regular file; give a kernel")
            if status.st_size > MAXIMUM_SIZE:
                raise BadImage(f"{name}: is {status.st_size} bytes large, at most 1 GiB is read; strip its debug data")
            data = file.read()
    except IsADirectoryError:
        raise BadImage(f"{name}: is a directory; give a kernel") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{name}: cannot be read ({reason}); name a file that can") from None
    return from_bytes(data, name)


def from_bytes(data: bytes | bytearray | memoryview, path: str) -> Image:
    """An `Image` of a file's contents; `path` is for messages. Raises `BadImage`."""
    contents = memoryview(data).toreadonly()
    if not contents:
        raise BadImage(f"{path}: is empty; give a kernel")
    digest = hashlib.sha256(contents).hexdigest()
    module = containers.find(contents)
    if module is not None:
        return module.read(contents, path, digest)
    if bytes(contents[:4]) == elf.MAGIC:
        return from_elf(
            contents, path, "elf32" if len(contents) > 4 and contents[4] == 1 else "elf64", "none", digest, None
        )
    raise BadImage(f"{path}: {_describe(contents)}")


def from_elf(
    contents: memoryview,
    path: str,
    container: str,
    compression: str,
    digest: str,
    header: Any,
) -> Image:
    """An `Image` of an unpacked ELF, whatever follows it, that came out of `container`. Raises `BadImage`."""
    parsed = elf.parse(contents, path)
    return Image(
        path=path,
        container=container,
        compression=compression,
        sha256=digest,
        elf=contents[: parsed.size],
        appended=contents[parsed.size :],
        segments=parsed.segments,
        sections=parsed.sections,
        entry=parsed.entry,
        header=header,
        isa=parsed.isa,
        byte_order=parsed.form.byte_order,
        relocatable=parsed.relocatable,
        _note_tables=parsed.notes,
    )


def _describe(contents: memoryview) -> str:
    for offset, magic, what in _OTHER_FILES:
        if bytes(contents[offset : offset + len(magic)]) == magic:
            return what
    known = ", ".join(containers.CONTAINERS)
    return f"is neither an ELF nor one of {known} (it begins with {bytes(contents[:4]).hex()}); give a kernel"
