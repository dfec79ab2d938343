"""Kernels that speak Xen's para-virtual interface: what their ELF notes say, as the domain builder wants it.

Room: `bt`. It reads an `Image` and knows no machine; `paravirt.xen.builder` puts what comes of it into memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import BadImage
from paravirt.xen.builder import Piece, XenKernel
from paravirt.xen.public import Note

if TYPE_CHECKING:
    from bt.image import Image

COMMAND_LINE = "console=hvc0 panic=-1"
"""For Debian's kernels, in place of the one for a PC."""
_OWNER = "Xen"
_ADDRESSES = (2, 4, 8)


def notes_of(image: Image) -> dict[int, bytes]:
    """The descriptions of Xen's notes, by number; the last of each counts. Raises `BadImage` for a damaged table."""
    return {note.type: note.description for note in image.notes if note.name == _OWNER}


def speaks_xen(image: Image) -> bool:
    """Whether an image says that it can be entered as a para-virtual guest."""
    return image.isa.name == "x86-64" and Note.ENTRY in notes_of(image)


def kernel_of(image: Image, initrd: bytes, command_line: str) -> XenKernel:
    """What the builder needs of an image. Raises `BadImage` for one that is no such guest."""
    if image.isa.name != "x86-64":
        raise BadImage(f"{image.path}: is a kernel for {image.isa.name}; Xen's para-virtual guests here are x86-64")
    notes = notes_of(image)

    def number(note: Note, default: int | None = None) -> int | None:
        description = notes.get(note)
        if description is None:
            return default
        if len(description) not in _ADDRESSES:
            raise BadImage(f"{image.path}: its Xen note {note.name} has {len(description)} bytes; build it again")
        return int.from_bytes(description, "little")

    entry = number(Note.ENTRY)
    if entry is None:
        raise BadImage(f"{image.path}: has no Xen note with an entry; run it with another --virt")
    line = command_line.encode("utf-8", "surrogateescape")
    return XenKernel(
        path=image.path,
        pieces=tuple(Piece(s.paddr, s.data, s.memory_size, s.executable) for s in image.segments),
        entry=entry,
        virtual_base=number(Note.VIRT_BASE) or 0,
        physical_offset=number(Note.PADDR_OFFSET) or 0,
        hypercall_page=number(Note.HYPERCALL_PAGE),
        frame_list=number(Note.INIT_P2M),
        module_by_frame=bool(number(Note.MOD_START_PFN)),
        initrd=initrd,
        command_line=line,
    )
