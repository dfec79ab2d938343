"""The image's code as a guest that has just been loaded holds it: bytes, boundaries and sites of every page.

Room: `bt`. Where a page's bytes still are these, nothing need be decoded. Knows how the loader changes an image
(relocation, the kernel-specific patches of inline mode), and finds a page by its virtual or its physical address.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from bt import textmap
from bt.pagescan import PAGE, PageScan
from bt.tactics.registry import tactics_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.tactics.tactics import ImagePatch
    from bt.textmap import PristinePage, TextMap

_MASK = (1 << 64) - 1


class Pristine:
    """The loaded image's code, `delta` bytes above where it is linked."""

    def __init__(self, image: Image, delta: int, patches: Sequence[ImagePatch], cache: PageCache | None) -> None:
        """`patches`: what the loader applies, at addresses moved by `delta`."""
        self._image = image
        self._cache = cache
        self._longest = tactics_of(image.isa.name, image.byte_order).longest
        self._delta = delta
        self._segments: list[tuple[int, int, int, bytes | memoryview]] = []
        for segment in image.segments:
            # Linux on i386 has code of its beginning in a segment for data, since it uses no NX so early.
            end = segment.vaddr + segment.memory_size
            if not any(segment.vaddr <= text.start < end for text in image.text_ranges):
                continue
            data: bytes | memoryview = segment.data
            if delta and image.relocations is not None:
                moved = bytearray(data)
                image.relocations.apply(segment.paddr, moved, delta)
                data = bytes(moved)
            self._segments.append((segment.vaddr, segment.paddr, segment.memory_size, data))
        self._changes: dict[int, list[tuple[int, bytes]]] = {}
        for patch in patches:
            at = patch.address - delta
            self._changes.setdefault(at & -PAGE, []).append((at, patch.new))

    @cached_property
    def map(self) -> TextMap:
        """The image's code, swept when it is first asked for."""
        return textmap.of(self._image, self._cache)

    def linked(self, address: int) -> int | None:
        """The link-time address of the page at guest-virtual `address`, or None where no code of the image is.

        Besides the image's own mapping, the one of physical memory at its own address counts: a kernel starts there.
        """
        for vaddr, _, size, _ in self._segments:
            if vaddr <= (address - self._delta) & _MASK < vaddr + size:
                return (address - self._delta) & _MASK
        for vaddr, paddr, size, _ in self._segments:
            if paddr <= address < paddr + size:
                return address - paddr + vaddr
        return None

    def moved(self, linked: int) -> int:
        """Where the guest has loaded what is linked at `linked`, guest-virtual."""
        return (linked + self._delta) & _MASK

    def page(self, linked: int) -> PristinePage | None:
        """What the image says about the page at its link-time address."""
        return self.map.page(linked)

    def contents(self, linked: int) -> bytes:
        """The bytes of a page and up to `longest` that follow it, as loaded. May be short at the image's end."""
        for vaddr, _, size, data in self._segments:
            if vaddr <= linked < vaddr + size:
                at = linked - vaddr
                found = bytearray(data[at : at + PAGE + self._longest])
                for page in (linked, linked + PAGE):
                    for address, new in self._changes.get(page, ()):
                        if 0 <= address - linked < len(found):
                            found[address - linked : address - linked + len(new)] = new
                return bytes(found)
        return b""

    def scan(self, linked: int) -> PageScan | None:
        """The scan of the page's pristine bytes, without decoding."""
        page = self.map.page(linked)
        if page is None:
            return None
        following = self.map.page(linked + PAGE)
        overflow = following.start if following is not None and following.start < self._longest else 0
        return PageScan(page.sites, page.boundaries, overflow)
