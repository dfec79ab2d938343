"""Values as people write them on the command line: sizes, times and places.

Room: the command line. Text in, numbers out; what cannot be one is a `UsageError` that says what can.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emulator.errors import UsageError

if TYPE_CHECKING:
    from bt.image import Image

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
SEED: Final = "seed:"


def size(text: str) -> int:
    """Bytes of `512M`, `1G`, `4096K` or `1048576`."""
    match = re.fullmatch(r"(\d{1,18})([KMG]?)(?:i?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    if match is None:
        raise UsageError(f"{text!r} is no size; write a number and K, M or G, such as 256M")
    return int(match[1]) * _UNITS[match[2].upper()]


def seconds(text: str | None, option: str) -> float | None:
    """A time of more than nothing; None stays None."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"{option} {text}: is no time; give seconds, such as 10 or 0.5")
    return value


def number(text: str, option: str, what: str = "offset; give bytes, such as 0x1000000") -> int:
    """A number from 0 on, decimal or hexadecimal with 0x; `what` is said of one that is none."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise UsageError(f"{option} {text}: is no {what}")
    return value


def kernel(image: str) -> Path:
    """The kernel's file: as named, or of a fetched guest (`retrap guests`) by its name."""
    from bt import guests

    if os.path.lexists(image) or os.sep in image or image not in guests.RECIPES:
        return Path(image)
    return guests.find(image).kernel


LARGEST_TEXT: Final = 256 << 20


def text_file(path: Path) -> str:
    """The text of a file that a command reads. Raises `UsageError` where it cannot be read, or is no text."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_TEXT + 1)
        if len(data) > LARGEST_TEXT:
            raise UsageError(f"{path}: is larger than 256 MiB; name another file")
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is no text; name the file that `retrap rewrite --manifest` wrote") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: cannot be read ({reason}); name a file that can") from None


def virtual_offset(text: str, image: Image) -> int:
    """What `--kaslr` asks for: an offset, or with `seed:TEXT` one of those that Linux itself could choose.

    The same seed gives the same image the same offset, everywhere.
    """
    if not text.startswith(SEED):
        return number(text, "--kaslr")
    from bt.image.relocate import ALIGNMENT, highest_offset, highest_offset_32

    start = min(segment.paddr for segment in image.segments)
    end = max(segment.paddr + segment.memory_size for segment in image.segments)
    size, alignment = max(end - start, len(image.elf) + len(image.appended)), ALIGNMENT
    if image.isa.bits == 64:
        highest = highest_offset(start, size)
    else:
        alignment = max(alignment, image.header.kernel_alignment if image.header is not None else 0)
        highest = highest_offset_32(start, size, alignment)
    slots = highest // alignment + 1
    digest = hashlib.sha256(f"retrap kaslr {text[len(SEED) :]}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % slots * alignment
