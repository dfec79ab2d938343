"""`to_boot`: an `Image` becomes the `BootImage` that a board places in memory.

Room: `bt/image`. Here a kernel is moved, as Linux's decompressor would: virtually by its relocation table, physically
by other load addresses. The two offsets are independent (see `relocate`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.image.image import Image
from emulator.board.boot import BootImage, LoadSegment
from emulator.errors import UsageError

if TYPE_CHECKING:
    from bt.image.relocate import Relocations


def to_boot(
    image: Image,
    *,
    initrd: bytes = b"",
    command_line: str = "",
    delta: int = 0,
    physical_delta: int = 0,
) -> BootImage:
    """What the board needs to boot `image`, moved by `delta` bytes virtually and `physical_delta` bytes physically.

    Offsets are multiples of 2 MiB. Raises `UsageError` for offsets the kernel does not stand, `BadImage` for a damaged
    relocation table.
    """
    relocations = _relocations(image, delta, physical_delta)
    segments = []
    for segment in image.segments:
        data: bytes | memoryview = segment.data
        if delta and relocations is not None and data:
            moved = bytearray(data)
            relocations.apply(segment.paddr, moved, delta)
            data = memoryview(moved).toreadonly()
        segments.append(LoadSegment(segment.paddr + physical_delta, data, segment.memory_size))
    return BootImage(
        segments=tuple(segments),
        entry=image.entry_physical + physical_delta,
        initrd=initrd,
        command_line=command_line,
        setup_header=image.setup_header,
    )


def _relocations(image: Image, delta: int, physical_delta: int) -> Relocations | None:
    """Check the offsets; the table when there is something to relocate."""
    if not delta and not physical_delta:
        return None
    from bt.image import relocate

    relocations = image.relocations if delta or image.header is None else None
    if delta and relocations is None:
        raise UsageError(
            f"{image.path}: has no relocation table, so it runs only where it is linked; "
            "give offset 0, or a bzImage built with CONFIG_RANDOMIZE_BASE",
        )
    if relocations is None and not (image.header and image.header.relocatable):
        raise UsageError(f"{image.path}: is not relocatable; give physical offset 0, or a bzImage that is")
    start = min(segment.paddr for segment in image.segments)
    end = max(segment.paddr + segment.memory_size for segment in image.segments)
    relocate.check_offsets(delta, physical_delta, start, max(end - start, len(image.elf) + len(image.appended)))
    return relocations
