"""The containers that kernels come in, besides ELF itself: the one place that knows which.

Room: `bt/image`. Each is a module that is imported when a file's first bytes look like it: `recognise` makes sure,
`read` gives the `Image`. A container that wraps an ELF hands it to `bt.image.image.from_elf`; one that holds raw memory
makes the `Image` itself, with one segment or more, `raw` set and `elf` the memory.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from bt.image.image import Image


class Container(Protocol):
    """What a container's module has."""

    def recognise(self, contents: memoryview) -> bool:
        """Whether the file is of this kind; cheap, never raises."""
        ...

    def read(self, contents: memoryview, path: str, digest: str) -> Image:
        """The image of a file; `digest` is its SHA-256, `path` for messages. Raises `BadImage`."""
        ...


CONTAINERS: Final[dict[str, tuple[str, tuple[tuple[int, bytes], ...]]]] = {
    "bzimage": ("bt.image.bzimage", ((0x202, b"HdrS"),)),
    "arm64-image": ("bt.image.arm64_image", ((56, b"ARM\x64"), (0, b"\x1f\x8b\x08"))),
    "zimage": ("bt.image.zimage", ((0x24, b"\x18\x28\x6f\x01"), (4, b"\x00\x90\x0f\xe1"))),
    "mips-self-extractor": ("bt.image.mips_self_extractor", ((0, b"\x7fELF\x01\x01"), (0, b"\x7fELF\x01\x02"))),
}
"""Name of a container -> its module, and (offset, bytes) of which one must be there for the module to be asked."""


def find(contents: memoryview) -> Container | None:
    """The container of a file, or None."""
    for module, signatures in CONTAINERS.values():
        if any(bytes(contents[at : at + len(magic)]) == magic for at, magic in signatures):
            container = cast("Container", importlib.import_module(module))
            if container.recognise(contents):
                return container
    return None
