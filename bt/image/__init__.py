"""Image files: from an ELF or bzImage to an `Image`, and from there to a `BootImage`.

The first stage of the house. `load` and `from_bytes` read, `to_boot` hands over to a board; errors are `BadImage`.
"""

from bt.image.boot import to_boot
from bt.image.elf import Section, Segment
from bt.image.image import Image, Range, from_bytes, load

__all__ = ["Image", "Range", "Section", "Segment", "from_bytes", "load", "to_boot"]
