"""`as_elf`: a kernel that came as raw memory, as an ELF; so that a rewritten one has headers that tell about it.

Room: `bt/image`. Segments, entry and executable ranges are those that the container's reader found, and nothing else is
added: the file is a `vmlinux` that any tool reads. A kernel that is an ELF already stays what it is. `RawForm` is the
way back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bt.image.elf import ET_EXEC, FORMS, PT_LOAD, SHF_ALLOC, SHF_EXECINSTR, SHT_STRTAB

if TYPE_CHECKING:
    from bt.image.image import Image

PAGE: Final = 0x1000
_PROGBITS: Final = 1


_WORD: Final = 8
_RAW: Final = "raw form"


@dataclass(frozen=True, slots=True)
class RawForm:
    """How to make the raw kernel again of its ELF form."""

    container: str
    """Of the file that it came in (`Image.container`)."""
    compression: str
    """Of that file; "none" where the raw kernel is the file."""
    offset: int
    """Of the kernel's memory in the ELF, bytes."""
    size: int
    """Of the raw kernel."""
    sha256: str
    """Of the raw kernel, hexadecimal."""
    runs: tuple[tuple[int, int], ...]
    """Runs of words of the memory that linking changed: how many words are before each, and how many it has."""
    words: bytes
    """What those are in the raw kernel; b"" where all are zero."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **{name: getattr(self, name) for name in ("container", "compression", "offset", "size", "sha256")},
            "skips": [skip for skip, _ in self.runs],
            "counts": [count for _, count in self.runs],
            "words": self.words.hex(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RawForm:
        """The inverse. Raises KeyError, TypeError or ValueError for what is none."""
        runs = tuple(zip(map(int, value["skips"]), map(int, value["counts"]), strict=True))
        words = bytes.fromhex(value["words"])
        if any(skip < 0 or count < 0 for skip, count in runs) or len(words) not in (0, _WORD * sum(c for _, c in runs)):
            raise ValueError("impossible runs of words")
        texts = str(value["container"]), str(value["compression"])
        return cls(*texts, int(value["offset"]), int(value["size"]), str(value["sha256"]), runs, words)

    def unpacked(self, original: bytes) -> bytes | None:
        """The raw kernel inside its ELF form, or None where that is not the one it was made of."""
        memory = bytearray(original[self.offset : self.offset + self.size])
        at = used = 0
        for skip, count in self.runs:
            at += _WORD * skip
            size = _WORD * count
            if at + size > len(memory):
                return None
            memory[at : at + size] = self.words[used : used + size] if self.words else bytes(size)
            at, used = at + size, used + size
        return bytes(memory) if hashlib.sha256(memory).hexdigest() == self.sha256 else None


def as_elf(image: Image) -> Image:
    """The same kernel as an ELF image, at the same addresses."""
    from bt.image.image import from_bytes

    if not image.raw:
        return image
    made = from_bytes(contents(image), image.path)
    make: Callable[[], RawForm | None] = lambda: _raw_form(image, made)  # noqa: E731
    made.once(_RAW, lambda: make)
    return made


def raw_of(image: Image) -> RawForm | None:
    """The way from what `as_elf` made back to the raw kernel; None for an image that was an ELF."""
    make: Callable[[], RawForm | None] = image.once(_RAW, lambda: lambda: None)
    return make()


def _raw_form(image: Image, made: Image) -> RawForm:
    offset = made.segments[0].file_offset - image.segments[0].file_offset
    raw = bytes(image.elf)
    whole = len(raw) & -_WORD
    old = np.frombuffer(raw[:whole], "<u8")
    new = np.frombuffer(made.elf[offset : offset + whole], "<u8")
    places = np.flatnonzero(old != new)
    begins = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    counts = np.diff(begins, append=len(places))
    starts = places[begins]
    ends = np.concatenate((np.zeros(1, np.int64), (starts + counts)[:-1])) if len(starts) else starts
    words = old[places]
    runs = tuple(zip((starts - ends).tolist(), counts.tolist(), strict=True))
    kept = words.tobytes() if words.any() else b""
    return RawForm(image.container, image.compression, offset, len(raw), hashlib.sha256(raw).hexdigest(), runs, kept)


def contents(image: Image) -> bytes:
    """The ELF of a raw kernel. The memory is as it is linked, relocations that its container found included."""
    form = FORMS[image.isa.bits, image.byte_order]
    linked = getattr(image.header, "linked", None)
    memory = bytes(linked(image.elf) if linked is not None else image.elf)
    head = form.header.size + form.program.size * len(image.segments)
    start = -(-head // PAGE) * PAGE
    programs = b""
    for segment in image.segments:
        at, size = start + segment.file_offset, len(segment.data)
        fields = (at, segment.vaddr, segment.paddr, size, segment.memory_size)
        if form.bits == 64:
            programs += form.program.pack(PT_LOAD, segment.flags, *fields, PAGE)
        else:
            programs += form.program.pack(PT_LOAD, *fields, segment.flags, PAGE)
    names, sections = b"\0.shstrtab\0", [bytes(form.section.size)]
    for number, (low, high) in enumerate(image.text_ranges):
        found = image.segment_at(low)
        assert found is not None
        name = len(names)
        names += (f".text.{number}" if number else ".text").encode() + b"\0"
        at = start + found.file_offset + low - found.vaddr
        flags = SHF_ALLOC | SHF_EXECINSTR
        sections.append(form.section.pack(name, _PROGBITS, flags, low, at, high - low, 0, 0, 1, 0))
    names_at = start + len(memory)
    sections.append(form.section.pack(1, SHT_STRTAB, 0, 0, names_at, len(names), 0, 0, 1, 0))
    padding = bytes(-(names_at + len(names)) % 16)
    table_at = names_at + len(names) + len(padding)
    identity = b"\x7fELF" + bytes((form.bits // 32, 2 if form.byte_order == "big" else 1, 1)) + bytes(9)
    header = form.header.pack(
        identity,
        ET_EXEC,
        image.isa.machine,
        1,
        image.entry,
        form.header.size,
        table_at,
        0,
        form.header.size,
        form.program.size,
        len(image.segments),
        form.section.size,
        len(sections),
        len(sections) - 1,
    )
    return (header + programs).ljust(start, b"\0") + memory + names + padding + b"".join(sections)
