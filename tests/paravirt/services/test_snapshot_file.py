"""Snapshots on disk: what comes back is what was saved; whatever else a file holds is refused in a sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.errors import BadSnapshot, RetrapError, Unwritable, UsageError
from paravirt.services.recording import read as read_recording
from paravirt.services.snapshot import Snapshot, Written, save
from paravirt.services.snapshot_form import DIGEST, FORMAT, HEAD, MAGIC
from tests.paravirt.services.test_machine_state import END, LENGTH, begin, run_to
from tests.paravirt.services.ticking_guest import VICTIM, TickingGuest, fingerprint


class Saved:
    """A guest that was saved in the middle."""

    def __init__(self, folder: Path) -> None:
        self.guest = TickingGuest()
        begin(self.guest)
        run_to(self.guest, LENGTH // 2)
        self.path = folder / "guest.snapshot"
        self.written: Written = save(self.path, self.guest.driver, {"told": "it"}, {"mine": b"abc"})
        self.fingerprint = fingerprint(self.guest.driver)
        self.data = self.path.read_bytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    made = Saved(tmp_path_factory.mktemp("snapshots"))
    yield made
    made.guest.close()


def test_a_restored_machine_is_the_saved_one_and_ends_as_it_does(saved: Saved) -> None:
    snapshot = Snapshot(saved.path)
    assert snapshot.description == {"told": "it"}
    assert bytes(snapshot.columns().raw("mine")) == b"abc"
    guest = TickingGuest()
    clean(guest)
    assert snapshot.restore(guest.driver)
    assert fingerprint(guest.driver) == saved.fingerprint
    guest.driver.resume()
    assert fingerprint(guest.driver) == END
    guest.close()


def clean(guest: TickingGuest) -> None:
    """As a machine is before a kernel was put into it."""
    guest.machine.memory.view[:] = bytes(guest.machine.memory.size)


def test_equal_machines_make_equal_files(saved: Saved, tmp_path: Path) -> None:
    save(tmp_path / "again", saved.guest.driver, {"told": "it"}, {"mine": b"abc"})
    assert (tmp_path / "again").read_bytes() == saved.data


def test_what_a_parent_has_is_not_stored_again(saved: Saved, tmp_path: Path) -> None:
    parent_path = tmp_path / "parent"
    shutil.copy(saved.path, parent_path)
    parent = Snapshot(parent_path)
    guest = TickingGuest()
    clean(guest)
    parent.restore(guest.driver)
    run_to(guest, LENGTH // 2 + 5000)
    child_path = tmp_path / "child"
    written = save(child_path, guest.driver, {}, parent=parent)
    assert written.pages < saved.written.pages // 4
    assert written.borrowed > written.pages
    child, again = Snapshot(child_path), TickingGuest()
    clean(again)
    assert child.restore(again.driver)
    assert fingerprint(again.driver) == fingerprint(guest.driver)
    third = save(tmp_path / "grandchild", again.driver, {}, parent=child)
    assert third.pages <= 2
    clean(again)
    assert Snapshot(tmp_path / "grandchild").restore(again.driver)
    assert fingerprint(again.driver) == fingerprint(guest.driver)
    parent_path.write_bytes(child_path.read_bytes())
    with pytest.raises(BadSnapshot):
        Snapshot(child_path)
    parent_path.unlink()
    with pytest.raises(BadSnapshot, match=r"parent .* is not there"):
        Snapshot(child_path)
    guest.close()
    again.close()


# -- damage --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_that_is_cut_or_changed_anywhere_is_refused(saved: Saved, tmp_path: Path, data: st.DataObject) -> None:
    broken = bytearray(saved.data)
    if data.draw(st.booleans()):
        del broken[data.draw(st.integers(0, len(broken) - 1)) :]
    else:
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "broken"
    path.write_bytes(broken)
    with pytest.raises(BadSnapshot) as refused:
        Snapshot(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_another_format_is_refused_by_name(saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "newer"
    path.write_bytes(sealed(HEAD.pack(MAGIC, FORMAT + 6, 2) + b"{}"))
    with pytest.raises(BadSnapshot, match=f"format {FORMAT + 6}, and this retrap reads format {FORMAT}"):
        Snapshot(path)


def sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


@pytest.mark.parametrize("contents", [b"", b"\0" * 100, b"\x7fELF" + bytes(200), MAGIC])
def test_what_is_no_snapshot_is_refused(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(contents)
    with pytest.raises(BadSnapshot):
        Snapshot(path)
    with pytest.raises(UsageError, match="cannot be read"):
        Snapshot(tmp_path / "missing")
    with pytest.raises(UsageError, match="cannot be read"):
        Snapshot(tmp_path)


NASTY: list[Any] = [None, -1, 0, 1 << 62, 1 << 90, "x", "", [], {}, [[]], True, 1.5, "00" * 40, [-1] * 5]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value; of long lists the first few."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 6)):
            yield from _places(value[index], (*path, index))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_header_that_lies_with_a_right_checksum_does_no_harm(
    saved: Saved, tmp_path: Path, victim: TickingGuest, data: st.DataObject
) -> None:
    _, _, size = HEAD.unpack_from(saved.data)
    header = json.loads(saved.data[HEAD.size : HEAD.size + size])
    place = data.draw(st.sampled_from(sorted(_places(header), key=repr)))
    parent = header
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = data.draw(st.sampled_from(NASTY))
    text = json.dumps(header).encode()
    path = tmp_path / "lie"
    path.write_bytes(sealed(HEAD.pack(MAGIC, FORMAT, len(text)) + text + saved.data[HEAD.size + size : -DIGEST]))
    harmless(path, victim)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_columns_that_lie_do_no_harm(saved: Saved, tmp_path: Path, victim: TickingGuest, data: st.DataObject) -> None:
    """Numbers of shadow tables and of code: indexes into the pool and into memory, which native code follows."""
    import numpy as np
    import zstandard

    _, _, size = HEAD.unpack_from(saved.data)
    header = json.loads(saved.data[HEAD.size : HEAD.size + size])
    section = next(one for one in header["sections"] if one["name"] == "columns")
    at = HEAD.size + size
    packed = saved.data[at : at + section["size"]]
    table = bytearray(zstandard.ZstdDecompressor().decompress(packed))
    column = data.draw(st.sampled_from([one for one in section["columns"] if one[1] >= 8]))
    begin_ = sum(one[1] for one in section["columns"][: section["columns"].index(column)])
    word = begin_ + 8 * data.draw(st.integers(0, min(column[1] // 8, 500) - 1))
    lie = data.draw(st.sampled_from([-1, 0, 1, 1 << 40, -(1 << 62), 511, 1 << 31, 0x7FFF_FFFF_FFFF_FFFF]))
    table[word : word + 8] = np.int64(lie).tobytes()
    again = zstandard.ZstdCompressor().compress(bytes(table))
    section["size"] = len(again)
    text = json.dumps(header).encode()
    rest = saved.data[at + len(packed) : -DIGEST]
    path = tmp_path / "lie"
    path.write_bytes(sealed(HEAD.pack(MAGIC, FORMAT, len(text)) + text + again + rest))
    harmless(path, victim)


@pytest.fixture(scope="module")
def victim() -> Iterator[TickingGuest]:
    guest = TickingGuest()
    yield guest
    guest.close()


def harmless(path: Path, victim: TickingGuest) -> None:
    """A file is refused in a sentence, or taken up; nothing else happens."""
    clean(victim)
    told = ""
    try:
        Snapshot(path).restore(victim.driver)
    except RetrapError as error:
        told = str(error)
    assert not told or str(path) in told


# -- writing ---------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_whole(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"
    path.write_bytes(saved.data)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unwritable, match="No space left"):
        save(path, saved.guest.driver, {})
    assert path.read_bytes() == saved.data
    assert os.listdir(tmp_path) == ["kept"], "nothing is left beside"
    with pytest.raises(Unwritable):
        save(tmp_path / "no" / "such", saved.guest.driver, {})


FULL = """
import resource
import sys
from pathlib import Path
from emulator.errors import Unwritable
from paravirt.services.recording import Mark, Writer
from paravirt.services.snapshot import save
from tests.paravirt.services.ticking_guest import TickingGuest
guest = TickingGuest()
guest.machine.memory.view[0x10_0000:0x30_0000] = bytes((n * n >> 7) & 0xFF for n in range(0x20_0000))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save(Path(sys.argv[1]), guest.driver, {})
except Unwritable as error:
    print(error)
writer = Writer(Path(sys.argv[2]), {})
for number in range(1000):
    writer.mark(Mark(number, number, number, "00"))
print(writer.missed)
"""


def test_a_real_limit_of_the_host_is_a_sentence_and_leaves_what_was_there(saved: Saved, tmp_path: Path) -> None:
    path, log = tmp_path / "kept", tmp_path / "run.rec"
    path.write_bytes(saved.data)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(log)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    told = done.stdout.splitlines()
    assert [line.split(":")[0] for line in told] == [str(path), str(log)], done.stderr
    assert all("File too large" in line for line in told)
    assert path.read_bytes() == saved.data
    assert sorted(os.listdir(tmp_path)) == ["kept", "run.rec"], "nothing is left beside"
    broken = read_recording(log)
    assert broken.end is None
    assert [mark.progress for mark in broken.marks] == list(range(len(broken.marks)))
    assert broken.marks


WRITER = """
import sys
from pathlib import Path
from tests.paravirt.services.ticking_guest import TickingGuest
from paravirt.services.snapshot import save
guest = TickingGuest()
guest.machine.memory.view[VICTIM:VICTIM + 8] = bytes(8)
number = 0
while True:
    number += 1
    guest.machine.memory.view[VICTIM:VICTIM + 8] = number.to_bytes(8, "little")
    save(Path(sys.argv[1]), guest.driver, {"number": number})
    print(number, flush=True)
""".replace("VICTIM", str(VICTIM))


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "guest.snapshot"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert writer.stdout is not None
    kills, last = 0, 0
    try:
        for _ in range(3):
            last = int(writer.stdout.readline())
        time.sleep(0.003)
    finally:
        writer.send_signal(signal.SIGKILL)
        kills += 1
        rest = writer.stdout.read().split()
        writer.wait()
    known = int(rest[-1]) if rest else last
    number = Snapshot(path).description["number"]
    assert kills == 1
    assert number in (known, known + 1)


def test_a_machine_of_another_size_is_refused(saved: Saved) -> None:
    from emulator.machine import Machine
    from paravirt.modes.x86.hypervisor import X86Hypervisor
    from paravirt.translator import Untouched

    machine = Machine(8 << 20, lambda _: None)
    with pytest.raises(BadSnapshot, match=r"4096 KiB of memory, and this is .* 8192 KiB"):
        Snapshot(saved.path).restore(X86Hypervisor(machine, Untouched()))
    machine.close()
