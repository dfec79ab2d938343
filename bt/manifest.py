"""The manifest: what a rewritten ELF says about itself, in a section of its own, enough to undo and to repeat it.

Room: `bt`. Section `.retrap.manifest` holds JSON, compressed: hashes of the original and of the rewritten contents, the
bytes of the ELF header as they were, and the plan, whose fixups' code is in `.retrap.fixups`, a section for each run of
them. `.retrap.relocations` is what followed the ELF. bzip2 is used because its output is the same everywhere, and it
carries a checksum.
"""

from __future__ import annotations

import bz2
import json
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from bt import collector
from bt.image.elf_form import RawForm
from emulator.errors import BadImage, brief

if TYPE_CHECKING:
    from types import ModuleType

    from bt.image import Image, Section
    from bt.plan import Plan

FORMAT: Final = 3
MANIFEST: Final = ".retrap.manifest"
FIXUPS: Final = ".retrap.fixups"
RELOCATIONS: Final = ".retrap.relocations"
"""What followed the ELF in its container: Linux's relocation table."""
_LARGEST: Final = 256 << 20
"""Bytes of JSON at most."""
_MAGIC: Final = b"BZh"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `rewrite` did."""

    plan: Plan
    container: str
    """Of the original (`Image.container`)."""
    original_size: int
    """Bytes of the original ELF; the rewritten file begins with as many."""
    original_sha256: str
    """Of the original ELF."""
    patched_sha256: str
    """Of the first `original_size` bytes of the rewritten file, with the original's header."""
    fixups_sha256: str
    """Of the fixups as they lie in memory."""
    appended_size: int
    """Bytes of what followed the ELF."""
    appended_sha256: str
    header: bytes
    """The original's ELF header, 52 or 64 bytes."""
    sizes: tuple[int, ...]
    """Bytes of each of the plan's fixups."""
    raw: RawForm | None = None
    """The way back to a kernel that came as raw memory."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "format": FORMAT,
            "container": self.container,
            "original_size": self.original_size,
            "original_sha256": self.original_sha256,
            "patched_sha256": self.patched_sha256,
            "fixups_sha256": self.fixups_sha256,
            "appended_size": self.appended_size,
            "appended_sha256": self.appended_sha256,
            "header": self.header.hex(),
            "sizes": list(self.sizes),
            "raw": self.raw.to_json() if self.raw is not None else None,
            "plan": _packed_plan().pack(self.plan),
        }

    def to_bytes(self) -> bytes:
        """The section's contents; the same for the same manifest."""
        with collector.paused():
            values = self.to_json()
        return bz2.compress(json.dumps(values, separators=(",", ":"), sort_keys=True).encode())


def parse(data: bytes | memoryview, path: str) -> Manifest:
    """The manifest of a section's contents, without the code of its fixups. Raises `BadImage`."""
    try:
        value = json.loads(_unpacked(data, path))
        if value["format"] != FORMAT:
            raise BadImage(
                f"{path}: its manifest has format {brief(value['format'])}, this retrap reads {FORMAT}; "
                "revert it with the version that wrote it"
            )
        made = Manifest(
            plan=_packed_plan().unpack(value["plan"]),
            container=str(value["container"]),
            original_size=int(value["original_size"]),
            original_sha256=str(value["original_sha256"]),
            patched_sha256=str(value["patched_sha256"]),
            fixups_sha256=str(value["fixups_sha256"]),
            appended_size=int(value["appended_size"]),
            appended_sha256=str(value["appended_sha256"]),
            header=bytes.fromhex(value["header"]),
            sizes=tuple(int(size) for size in value["sizes"]),
            raw=RawForm.from_json(value["raw"]) if value["raw"] is not None else None,
        )
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadImage(f"{path}: its manifest is damaged ({brief(error)}); start from the original image") from None
    sizes_fit = made.original_size >= len(made.header) and made.appended_size >= 0
    if len(made.header) not in (52, 64) or not sizes_fit or len(made.sizes) != len(made.plan.fixups):
        raise BadImage(f"{path}: its manifest is damaged (impossible sizes); start from the original image")
    return made


def _unpacked(data: bytes | memoryview, path: str) -> bytes:
    if bytes(data[:1]) == b"{":
        raise BadImage(f"{path}: its manifest is of format 1; revert it with the version that wrote it")
    decoder = bz2.BZ2Decompressor()
    try:
        text = decoder.decompress(bytes(data), _LARGEST + 1)
    except (OSError, ValueError):
        raise BadImage(f"{path}: its manifest is damaged; start from the original image") from None
    if len(text) > _LARGEST or not decoder.eof:
        raise BadImage(f"{path}: its manifest is cut short, or larger than any; start from the original image")
    return text


def _packed_plan() -> ModuleType:
    """Most images that are looked at carry no manifest, and need nothing of plans."""
    from bt import packed_plan

    return packed_plan


def mode_of(image: Image) -> str | None:
    """The strategy by which an image was rewritten, or None where it is an original. Raises `BadImage`."""
    found = read(image)
    return found.plan.mode if found is not None else None


def read(image: Image) -> Manifest | None:
    """The manifest of a rewritten image, its plan whole, or None where it is an original. Raises `BadImage`."""
    section = image.section(MANIFEST)
    if section is None:
        return None
    return image.once("manifest", lambda: _read(image, section))


def _read(image: Image, section: Section) -> Manifest:
    with collector.paused():
        return _whole(parse(section.data, image.path), image)


def _whole(found: Manifest, image: Image) -> Manifest:
    """With the code of the fixups, which has sections of its own."""
    sections = sorted((section for section in image.sections if section.name == FIXUPS), key=lambda one: one.vaddr)
    starts = [section.vaddr for section in sections]
    fixups = []
    for fixup, size in zip(found.plan.fixups, found.sizes, strict=True):
        number = bisect_right(starts, fixup.address) - 1
        at = fixup.address - starts[number] if number >= 0 else 0
        if size < 0 or number < 0 or at + size > len(sections[number].data):
            raise BadImage(f"{image.path}: lacks the fixup at {fixup.address:#x}; start from the original image")
        fixups.append(replace(fixup, code=bytes(sections[number].data[at : at + size])))
    return replace(found, plan=replace(found.plan, fixups=tuple(fixups)))
