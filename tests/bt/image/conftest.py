"""Fixtures of the image tests: a cache of their own, and Debian's kernel where it was fetched."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bt import guests
from bt.image import Image, load
from emulator.errors import Unavailable


@pytest.fixture(scope="session")
def debian_kernel() -> Path:
    """Debian's bzImage; the test is skipped where `retrap guests get` has not fetched it."""
    try:
        return guests.find("debian-amd64").kernel
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def debian(debian_kernel: Path) -> Image:
    """Debian's kernel as an image."""
    return load(debian_kernel)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty payload cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "retrap" / "payload"


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A payload cache for a whole module, for tests that hypothesis repeats."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
