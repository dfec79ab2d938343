"""What is known of Debian's 32-bit kernels: LOCK prefixes, and each stands where the image has one."""

from __future__ import annotations

import pytest

from bt import guests
from bt.image import load
from bt.knowledge.linux_i386 import known
from emulator.errors import Unavailable

LOCK, DATA_SEGMENT = b"\xf0", b"\x3e"


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["debian-i386", "debian-i386-pae"])
def test_lock_prefixes_are_all_that_is_known(name: str) -> None:
    try:
        image = load(guests.find(name).kernel)
    except Unavailable as error:
        pytest.skip(str(error))
    changes = known(image).changes
    assert len(changes) > 5_000
    assert {(change.old, change.new) for change in changes} == {(LOCK, DATA_SEGMENT)}
    assert all(bytes(image.view(change.address, 1)) == LOCK for change in changes)
