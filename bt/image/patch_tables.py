"""The patch tables of a kernel, whatever its instruction set: the one place that knows who reads which.

Room: `bt/image`. What a table is for differs between instruction sets; that the kernel looks at or patches a place, and
that it may go on somewhere by a table alone, is what all have in common.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bt.image.image import Image

READERS: Final[dict[str, str]] = {
    "x86-64": "bt.image.linux_tables:read",
    "i386": "bt.image.linux_tables:read",
    "aarch64": "bt.image.arm64_tables:read",
    "armv7": "bt.image.arm_tables:read",
    "mips32": "bt.image.mips_tables:read",
}
"""Instruction set -> "module:function", from an `Image` to its `PatchTables`, or None for a kernel it does not know."""


class PatchTables(Protocol):
    """What every kernel's tables can tell; what else there is, is the reader's own."""

    @property
    def version(self) -> str:
        """Release as in `uname -r`; "" where the banner is not found."""
        ...

    def counts(self) -> dict[str, int]:
        """Entries of each table, by name."""
        ...

    def leads(self) -> list[NDArray[np.uint64]]:
        """Guest-virtual places to which the kernel may go on by a table, without a branch that says so."""
        ...

    def places(self) -> list[NDArray[np.uint64]]:
        """Guest-virtual places that the kernel looks at or patches itself."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CommonTables:
    """The tables that every instruction set but x86 has in the same form; addresses are guest-virtual, as linked."""

    COUNTED: ClassVar[dict[str, str]] = {"exceptions": "faulting", "jump labels": "jump_sites"}
    """Name of a table -> the field whose length is told."""
    PATCHED: ClassVar[tuple[str, ...]] = ()
    """Fields of further places that the kernel patches itself."""

    version: str
    """Release as in `uname -r`; "" where the banner is not found."""
    faulting: NDArray[np.uint64]
    """Instructions that may fault by intent."""
    landings: NDArray[np.uint64]
    """Where execution goes on then."""
    jump_sites: NDArray[np.uint64]
    jump_targets: NDArray[np.uint64]

    def counts(self) -> dict[str, int]:
        """See `PatchTables`."""
        return {name: len(getattr(self, field)) for name, field in self.COUNTED.items()}

    def leads(self) -> list[NDArray[np.uint64]]:
        """See `PatchTables`."""
        return [self.landings, self.jump_targets]

    def places(self) -> list[NDArray[np.uint64]]:
        """See `PatchTables`."""
        return [getattr(self, field) for field in ("faulting", "jump_sites", *self.PATCHED)]


def read(image: Image) -> PatchTables | None:
    """The tables of an image, or None. Raises `BadImage` for a damaged table."""
    if image.isa.name not in READERS:
        return None
    module, function = READERS[image.isa.name].split(":")
    tables: PatchTables | None = getattr(importlib.import_module(module), function)(image)
    return tables
