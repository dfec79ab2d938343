"""`to_boot`: an `Image` becomes the `BootImage` that a board places in memory.

Room: `bt/image`. Nothing is copied unless the kernel is moved on the way (`move`).
"""

from __future__ import annotations

from bt.image.image import Image
from bt.image.move import move
from emulator.board.boot import BootImage, LoadSegment


def to_boot(
    image: Image,
    *,
    initrd: bytes = b"",
    command_line: str = "",
    delta: int = 0,
    physical_delta: int = 0,
) -> BootImage:
    """What the board needs to boot `image`, moved by `delta` bytes virtually and `physical_delta` bytes physically.

    For symbols and tables of a moved kernel call `move` first and boot what it returns. Raises what `move` raises.
    """
    image = move(image, delta=delta, physical_delta=physical_delta)
    return BootImage(
        segments=tuple(LoadSegment(s.paddr, s.data, s.memory_size, s.vaddr) for s in image.segments),
        entry=image.entry_physical,
        initrd=initrd,
        command_line=command_line,
        setup_header=image.setup_header,
        byte_order=image.byte_order,
    )
