"""What is known of Linux on 32-bit x86: its LOCK prefixes.

Room: `bt/knowledge`. Read from the image's own tables. Everything here saves exits; nothing is needed to be correct.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from bt.knowledge.linux_x86 import Known, lock_patches
from bt.tactics.tactics import ImagePatch

if TYPE_CHECKING:
    from bt.image import Image
    from bt.pagecache import PageCache

_FORMAT: Final = 1
"""Raised when what is known, or how it is kept, changes."""


def known(image: Image, cache: PageCache | None = None) -> Known:
    """What is known of `image`: from the cache, or from its tables."""
    digest = hashlib.sha256(f"linux_i386 {_FORMAT} {image.sha256}".encode()).hexdigest()
    notes = cache.load_notes(digest) if cache is not None else None
    if notes is None:
        groups: dict[tuple[str, str, str], list[int]] = {}
        for change in lock_patches(image):
            groups.setdefault((change.old.hex(), change.new.hex(), change.reason), []).append(change.address)
        notes = {"changes": [[*group, addresses] for group, addresses in groups.items()]}
        if cache is not None:
            cache.store_notes(digest, notes)
    changes = (
        ImagePatch(address, bytes.fromhex(old), bytes.fromhex(new), reason)
        for old, new, reason, addresses in notes["changes"]
        for address in addresses
    )
    return Known((), tuple(changes))
