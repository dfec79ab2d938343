"""Debian's kernel, where it was fetched: read, scanned and planned once for all tests of the toolchain."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bt import guests
from bt.image import Image, load
from bt.plan import Plan
from bt.planner import plan
from bt.rewrite import rewrite
from bt.scan import Site, scan
from emulator.errors import Unavailable


@pytest.fixture(scope="session")
def debian() -> Image:
    """Debian's kernel as an image; the test is skipped where `retrap guests get` has not fetched it."""
    try:
        return load(guests.find("debian-amd64").kernel)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def debian_sites(debian: Image) -> Sequence[Site]:
    """Its sensitive instructions."""
    return scan(debian)


@pytest.fixture(scope="session")
def debian_inline(debian: Image, debian_sites: Sequence[Site]) -> Plan:
    """Its plan by the strategy inline."""
    return plan(debian, debian_sites, "inline")


@pytest.fixture(scope="session")
def debian_rewritten(debian: Image, debian_inline: Plan) -> bytes:
    """The file that is rewritten by that plan."""
    return rewrite(debian, debian_inline)
