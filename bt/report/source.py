"""What a report is asked of: a rewritten image, a plan that was written beside one, or an original.

Room: `bt/report`. From a path to an `Account`; the kind of file is told by its first bytes, not by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt.report.account import Account, account, scanned
from emulator.errors import BadImage, UsageError

if TYPE_CHECKING:
    from bt.image import Image
    from bt.manifest import Manifest

MAXIMUM_PLAN: Final = 256 << 20
"""Largest plan read, bytes; Debian's arm64 kernel makes one of 30 MB."""


def read(path: str, scan: bool = False) -> Account:
    """The account of a rewritten image or of a plan as JSON; with `scan`, an original is scanned for its sites.

    Raises `UsageError` for a file that cannot be read or was not rewritten, `BadImage` for a damaged one.
    """
    return account_of(open_file(path), path, scan)


def open_file(path: str) -> Image | bytes:
    """An image, or the JSON text of a plan. Raises `UsageError` and `BadImage`."""
    from bt.image import load

    try:
        with Path(path).open("rb") as file:
            head = file.read(64)
            if head.lstrip()[:1] == b"{":
                data = head + file.read(MAXIMUM_PLAN)
                if len(data) > MAXIMUM_PLAN:
                    raise BadImage(f"{path}: is more than {MAXIMUM_PLAN} bytes of JSON, which no plan is; give a plan")
                return data
    except IsADirectoryError:
        raise BadImage(f"{path}: is a directory; give an image or its manifest") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: cannot be read ({reason}); name a file that can") from None
    return load(path)


def account_of(opened: Image | bytes, path: str, scan: bool = False) -> Account:
    """The account of what `open_file` gave."""
    if isinstance(opened, bytes):
        return _of_plan(opened, path)
    made = of_rewritten(opened)
    if made is not None:
        return made
    if not scan:
        raise UsageError(
            f"{path}: was not rewritten, so there is nothing to report; give what `retrap rewrite` wrote, the image or "
            "its manifest"
        )
    from bt.scan import scan as find

    return scanned(opened, find(opened))


def of_rewritten(image: Image) -> Account | None:
    """The account that a rewritten image gives of itself, or None for an original. Raises `BadImage`."""
    from bt import manifest, rewrite

    if image.section(manifest.MANIFEST) is None:
        return None
    return of_manifest(image, rewrite.verify(bytes(image.elf), image.path))


def of_manifest(image: Image, found: Manifest) -> Account:
    """The account of a rewritten image whose manifest has been verified."""
    size = found.original_size + found.appended_size
    return account(found.plan, image.path, image, size, len(image.elf) + len(image.appended))


def _of_plan(data: bytes, path: str) -> Account:
    from bt.plan import read_plan

    try:
        return account(read_plan(data.decode()), path)
    except UnicodeDecodeError:
        raise BadImage(f"{path}: is no text in UTF-8; give the file that `retrap rewrite --manifest` wrote") from None
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from None
