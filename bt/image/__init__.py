"""Image files: from an ELF or bzImage to an `Image`, and from there to a `BootImage`.

The first stage of the house. `load` and `from_bytes` read, `move` links at other addresses, `to_boot` hands over to a
board. What a file lacks or lies about is a `BadImage`.
"""

from bt.image.boot import to_boot
from bt.image.elf import Section, Segment
from bt.image.image import Image, Range, from_bytes, load
from bt.image.move import move

__all__ = ["Image", "Range", "Section", "Segment", "from_bytes", "load", "move", "to_boot"]
