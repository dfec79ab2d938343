"""The manifest: what a rewritten ELF says about itself, in a section of its own, enough to undo and to repeat it.

Room: `bt`. Section `.retrap.manifest` holds JSON: hashes of the original and of the rewritten contents, the bytes of
the ELF header as they were, and the plan. The other sections are `.retrap.fixups` and `.retrap.relocations`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt.plan import Plan
from emulator.errors import BadImage, brief

if TYPE_CHECKING:
    from bt.image import Image

FORMAT: Final = 1
MANIFEST: Final = ".retrap.manifest"
FIXUPS: Final = ".retrap.fixups"
RELOCATIONS: Final = ".retrap.relocations"
"""What followed the ELF in its container: Linux's relocation table."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `rewrite` did."""

    plan: Plan
    container: str
    """Of the original: "elf64" or "bzimage"."""
    original_size: int
    """Bytes of the original ELF; the rewritten file begins with as many."""
    original_sha256: str
    """Of the original ELF."""
    patched_sha256: str
    """Of the first `original_size` bytes of the rewritten file."""
    appended_size: int
    """Bytes of what followed the ELF."""
    appended_sha256: str
    header: bytes
    """The original's ELF header, 64 bytes."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "format": FORMAT,
            "container": self.container,
            "original_size": self.original_size,
            "original_sha256": self.original_sha256,
            "patched_sha256": self.patched_sha256,
            "appended_size": self.appended_size,
            "appended_sha256": self.appended_sha256,
            "header": self.header.hex(),
            "plan": self.plan.to_json(),
        }

    def to_bytes(self) -> bytes:
        """The section's contents; the same for the same manifest."""
        return json.dumps(self.to_json(), separators=(",", ":"), sort_keys=True).encode()


def parse(data: bytes | memoryview, path: str) -> Manifest:
    """The manifest of a section's contents; `path` is for messages. Raises `BadImage`."""
    try:
        value = json.loads(bytes(data))
        if value["format"] != FORMAT:
            raise BadImage(
                f"{path}: its manifest has format {brief(value['format'])}, this retrap reads {FORMAT}; "
                "revert it with the version that wrote it"
            )
        made = Manifest(
            plan=Plan.from_json(value["plan"]),
            container=str(value["container"]),
            original_size=int(value["original_size"]),
            original_sha256=str(value["original_sha256"]),
            patched_sha256=str(value["patched_sha256"]),
            appended_size=int(value["appended_size"]),
            appended_sha256=str(value["appended_sha256"]),
            header=bytes.fromhex(value["header"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadImage(f"{path}: its manifest is damaged ({brief(error)}); start from the original image") from None
    if len(made.header) != 64 or made.original_size < 64 or made.appended_size < 0:
        raise BadImage(f"{path}: its manifest is damaged (impossible sizes); start from the original image")
    return made


def read(image: Image) -> Manifest | None:
    """The manifest of a rewritten image, or None where it is an original. Raises `BadImage` for a damaged one."""
    section = image.section(MANIFEST)
    return parse(section.data, image.path) if section is not None else None
