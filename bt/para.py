"""Para-virtual images: how one is known, and whether its version of the interface can be served.

Room: `bt`. A kernel that was ported to `paravirt.abi.calls` says so by an ELF note; it runs in no other way than
`--virt para`, and no other kernel runs in that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.errors import BadImage, UsageError
from paravirt.abi.calls import ABI_MAJOR, ABI_MINOR
from paravirt.abi.guests import NOTE_NAME, NOTE_VERSION

if TYPE_CHECKING:
    from bt.image import Image

MODE: Final = "para"
"""The way to run such a guest."""
STRATEGY: Final = "trap"
"""What is done with sensitive instructions that a port has left: they are trapped, and so counted."""
_SECTION: Final = ".retrap.note"


def version_of(image: Image) -> int | None:
    """The version of the interface that a kernel was ported to, major << 16 | minor; None where it was not."""
    from bt.image import notes

    section = image.section(_SECTION)
    if section is None:
        return None
    for note in notes.parse([section.data], image.path, image.byte_order):
        if note.name == NOTE_NAME and note.type == NOTE_VERSION and len(note.description) == 4:
            return int.from_bytes(note.description, "big" if image.byte_order == "big" else "little")
    return None


def check(image: Image, mode: str) -> None:
    """Raise `UsageError` where a kernel cannot be run in a mode, `BadImage` for a version that there is not."""
    version = version_of(image)
    if version is None:
        if mode == MODE:
            raise UsageError(
                f"{image.path}: is not para-virtual, it has no note of {NOTE_NAME}'s; run it with --virt inline"
            )
        return
    if mode != MODE:
        raise UsageError(f"{image.path}: is para-virtual and has no other machine; run it with --virt {MODE}")
    major, minor = version >> 16, version & 0xFFFF
    if major != ABI_MAJOR or minor > ABI_MINOR:
        raise BadImage(
            f"{image.path}: was made for version {major}.{minor} of the para-virtual interface, here is "
            f"{ABI_MAJOR}.{ABI_MINOR}; build it anew with `retrap abi --header`"
        )
