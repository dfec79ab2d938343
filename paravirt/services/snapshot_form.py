"""The form of a snapshot's file: constants, what must agree for it to be used, and how any such file is written.

Room: `paravirt/services`, under `snapshot` (which writes one) and `snapshot_file` (which reads one).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from emulator.engine.pausing import Progress
from emulator.errors import Unwritable
from paravirt.abi import ABI_VERSION
from paravirt.hypervisor import Hypervisor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.uint64]

FORMAT: Final = 4
"""Raised at every change of a section's layout or meaning; a file of another format is refused by name."""
DERIVED: Final = 2
"""Raised when shadow tables or translated code mean something else: they are left out of older files then."""
MAGIC: Final = b"retrap snapshot\n"
PAGE: Final = 4096
ZERO: Final = -1
"""Number of the contents of a page that is zero throughout."""
HEAD: Final = struct.Struct("<16sII")
HASH: Final = 16
"""Bytes of SHA-256 by which contents are known."""
DIGEST: Final = 32
FRAME: Final = 128
"""Pages of contents that are compressed together."""
CHUNK: Final = 4096
"""Pages that are looked at together."""
STATE: Final[dict[str, Any]] = {
    "shared": bytes,
    "exits": tuple[tuple[tuple[str, str], int], ...],
    "view_level": int,
    "stepping": tuple[int | None, int] | None,
    "armed": int | None,
    "progress": Progress,
    "pending": tuple[int, ...],
}
"""Fields of `MachineState` that the header has, and their types."""


def rows_of(data: Any) -> Rows:
    """Memory as rows of a page."""
    return np.frombuffer(data, dtype=np.uint64).reshape(-1, PAGE // 8)


def machine_of(driver: Hypervisor) -> dict[str, Any]:
    """What must agree for a machine to take up a snapshot at all."""
    memory, platform = driver.machine.memory, driver.machine.platform
    order = getattr(driver.engine, "byte_order", "little")
    return {
        "isa": platform.isa,
        "board": platform.board,
        "base": memory.base,
        "size": memory.size,
        "byte_order": order,
    }


def derived_key(driver: Hypervisor) -> str:
    """What must be the same for shadow tables and translated code to be used again."""
    capabilities = driver.engine.capabilities
    known = [(field.name, getattr(capabilities, field.name)) for field in fields(capabilities)]
    text = repr((DERIVED, ABI_VERSION, driver.LAYOUT, driver.WINDOW, known))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_whole(path: Path, write: Callable[[Any], None]) -> None:
    """Have a file written beside its place and renamed: at any moment there is the old one or the new one, whole.

    Raises `Unwritable`; nothing is left beside then.
    """
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        name = ""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Unwritable(f"{path}: cannot be written ({reason}); name a file that can, where there is room") from None
    finally:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
