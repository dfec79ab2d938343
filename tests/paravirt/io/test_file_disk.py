"""A file as a disk: one writer at a time, discarded sectors take no room, and what cannot be a disk is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.errors import UsageError
from paravirt.io.disk import SECTOR, FileDisk


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 8192)
    return path


def test_a_disk_in_use_is_not_given_twice_but_to_readers(file: Path) -> None:
    first = FileDisk(file)
    for writable in (True, False):
        with pytest.raises(UsageError, match="in use"):
            FileDisk(file, writable)
    first.close()
    readers = [FileDisk(file, False), FileDisk(file, False)]
    with pytest.raises(UsageError, match="in use"):
        FileDisk(file)
    for reader in readers:
        reader.close()
    FileDisk(file).close()


def test_what_is_discarded_reads_as_zeros_and_takes_no_room(file: Path) -> None:
    disk = FileDisk(file)
    before = file.stat().st_blocks
    disk.discard(8, 2048)
    assert disk.read(8, 2048) == bytes(2048 * SECTOR)
    assert disk.read(0, 8) == bytes(range(256)) * 16
    assert disk.read(2056, 8) == bytes(range(256)) * 16
    assert file.stat().st_size == 2 << 20
    assert file.stat().st_blocks <= before - 2000 or file.stat().st_blocks == before  # where the file system can
    disk.close()


def test_what_is_no_disk_is_refused_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(bytes(700))
    (tmp_path / "empty").touch()
    for name, why in (("odd", "700 bytes"), ("empty", "0 bytes"), ("none", "No such file")):
        with pytest.raises(UsageError, match=why):
            FileDisk(tmp_path / name)
    for writable in (True, False):
        with pytest.raises(UsageError, match="directory"):
            FileDisk(tmp_path, writable)
    with pytest.raises(UsageError, match="no file of sectors"):
        FileDisk(Path("/dev/null"))
