"""The cache of findings: kept across runs, and worth nothing more than a scan when it is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bt import pagecache
from bt.pagecache import KEY_SIZE, PageCache, default_directory
from bt.pagescan import PAGE, PageScan
from bt.tactics.x86.pagescan import scan_page


def key(number: int) -> bytes:
    return number.to_bytes(KEY_SIZE, "little")


def scan(number: int) -> PageScan:
    return scan_page((b"\x90" * number + b"\xfa\x9c\x0f\xa2").ljust(PAGE, b"\x90"), b"", 0)


def fill(directory: Path, numbers: range) -> None:
    cache = PageCache(directory)
    for number in numbers:
        cache.put(key(number), scan(number))
    cache.flush()


def test_findings_come_back_as_they_were(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    cache = PageCache(tmp_path)
    assert len(cache) == 5
    assert [cache.get(key(number)) for number in range(5)] == [scan(number) for number in range(5)]
    assert cache.get(key(9)) is None


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    first, second = PageCache(tmp_path), PageCache(tmp_path)
    first.put(key(1), scan(1))
    second.put(key(2), scan(2))
    first.flush()
    second.flush()
    assert len(PageCache(tmp_path)) == 2


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    (path,) = tmp_path.glob("*.pages")
    before = path.read_bytes()
    fill(tmp_path, range(3))
    assert path.read_bytes() == before


@given(st.integers(0, 10**6), st.integers(1, 255))
@example(at=8, by=1)  # the first record's key: a record that nobody asks for stays
@settings(max_examples=25, deadline=None)
def test_a_damaged_file_gives_right_findings_or_none(
    tmp_path_factory: pytest.TempPathFactory, at: int, by: int
) -> None:
    directory = tmp_path_factory.mktemp("pages")
    fill(directory, range(4))
    (path,) = directory.glob("*.pages")
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= by
    path.write_bytes(data)
    cache = PageCache(directory)
    for number in range(4):
        assert cache.get(key(number)) in (None, scan(number))
    fill(directory, range(4))
    again = PageCache(directory)
    assert [again.get(key(number)) for number in range(4)] == [scan(number) for number in range(4)], (
        "what was lost is kept again"
    )


@pytest.mark.parametrize("keep", [0, 1, 7, 100, -1])
def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path: Path, keep: int) -> None:
    fill(tmp_path, range(3))
    (path,) = tmp_path.glob("*.pages")
    path.write_bytes(path.read_bytes()[:keep])
    assert len(PageCache(tmp_path)) == (2 if keep == -1 else 0)


def test_another_table_has_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, range(3))
    other = tmp_path / "other"
    other.write_bytes(b"")
    monkeypatch.setattr(pagecache, "FORMAT", 999)
    assert len(PageCache(tmp_path)) == 0
    fill(tmp_path, range(2))
    assert len(list(tmp_path.glob("*.pages"))) == 1, "what the old version kept is gone"
    assert other.exists()


def test_a_directory_that_cannot_be_used_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    fill(file / "below", range(2))
    assert len(PageCache(file / "below")) == 0


def test_the_file_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, range(3))
    (path,) = tmp_path.glob("*.pages")
    monkeypatch.setattr(pagecache, "_MAXIMUM_FILE", path.stat().st_size)
    fill(tmp_path, range(3, 4))
    assert len(PageCache(tmp_path)) == 1


def test_one_run_keeps_a_limited_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagecache, "_MAXIMUM_NEW", 3)
    fill(tmp_path, range(9))
    assert len(PageCache(tmp_path)) == 3


def test_the_directory_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_directory() == Path("/somewhere/retrap/pages")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_directory() == Path(os.path.expanduser("~/.cache/retrap/pages"))
