"""Debian's kernel, where it was fetched."""

import pytest

from bt import guests
from bt.image import Image, load
from emulator.errors import Unavailable


@pytest.fixture(scope="session")
def debian() -> Image:
    """Debian's kernel as an image; the test is skipped where `retrap guests get` has not fetched it."""
    try:
        return load(guests.find("debian-amd64").kernel)
    except Unavailable as error:
        pytest.skip(str(error))
