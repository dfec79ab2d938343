"""Snapshots at each kind of moment, gone on with in a fresh process and on a host that offers something else, and what
a full disk costs."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from bt.cli.main import cli
from bt.snapshot_moment import Waiting, moment_of
from emulator.errors import RetrapError, Unwritable
from paravirt.services.snapshot import Snapshot
from tests.paravirt.services.ticking_guest import TickingGuest

ROOT = Path(__file__).parents[3]
SAMPLE = str(ROOT / "samples" / "x86_64" / "sample.elf")
GUEST = [SAMPLE, "--memory", "32M", "--append", "only=returns.iretq-user"]


def retrap(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)


def end_of(path: Path) -> dict[str, object]:
    """What two runs have in common that are the same."""
    found = json.loads(path.read_text())
    names = ("outcome", "guest_nanoseconds", "progress", "exits", "memory", "board", "sha256")
    return {name: found[name] for name in names}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("plain") / "plain.json"
    assert retrap("run", *GUEST, "--json", path).exception is None
    return end_of(path)


@pytest.mark.parametrize("moment", ["user", "0.00005s", "console:retrap"])
def test_a_guest_goes_on_in_a_fresh_process_from_any_moment(
    moment: str, plain: dict[str, object], tmp_path: Path
) -> None:
    kept, result = tmp_path / "kept", tmp_path / "end.json"
    made = retrap("run", *GUEST, "--snapshot-at", moment, "--to", kept)
    assert made.exception is None, made.exception
    command = (sys.executable, "-m", "bt", "resume", kept, "--json", result)
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=60, check=True)
    assert end_of(result) == plain


def test_a_snapshot_at_user_is_taken_where_user_code_runs_first(tmp_path: Path) -> None:
    assert retrap("run", *GUEST, "--snapshot-at", "user", "--to", tmp_path / "kept").exception is None
    description = Snapshot(tmp_path / "kept").description
    assert b"iretq-user" not in bytes.fromhex(description["console"]), "the check that enters user code is under way"


def test_a_snapshot_at_input_is_taken_before_the_guest_gets_any() -> None:
    guest = TickingGuest()
    machine, driver = guest.machine, guest.driver
    done: list[str] = []

    def poll(_seconds: float) -> bytes:
        done.append("input")
        return b"x"

    machine.poll_input = poll
    session: Any = SimpleNamespace(driver=driver, machine=machine)
    Waiting(session, moment_of("input"), lambda: done.append("kept"))
    machine.begin()
    machine.arm()
    assert machine.poll_input(0.05) == b"x", "nobody asks the line for input yet"
    machine.board.com1.write(1, 1, 1)
    machine.board.com1.write(4, 1, 8)
    assert machine.board.com1.listening
    done.clear()
    assert machine.poll_input(0.05) == b""
    assert done == []
    driver.resume()
    assert done[0] == "kept"
    assert done.count("kept") == 1
    assert machine.poll_input(0.05) == b"x"
    guest.close()


def test_on_a_host_that_offers_something_else_the_guest_sees_the_same(
    plain: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, result = tmp_path / "kept", tmp_path / "end.json"
    assert retrap("run", *GUEST, "--snapshot-at", "user", "--to", kept).exception is None
    monkeypatch.setattr("paravirt.services.snapshot_file.derived_key", lambda _driver: "another host's")
    again = retrap("resume", kept, "--json", result)
    assert again.exception is None
    found = end_of(result)
    assert found["outcome"] == plain["outcome"]
    assert found["exits"] != plain["exits"], "tables and translated code are made anew"


def _full(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_when_the_moment_comes_costs_the_guest_nothing(
    plain: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, result = tmp_path / "kept", tmp_path / "end.json"
    kept.write_bytes(b"the old one")
    monkeypatch.setattr("paravirt.services.snapshot_form.os.fsync", _full)
    done = retrap("run", *GUEST, "--snapshot-at", "user", "--to", kept, "--json", result)
    assert isinstance(done.exception, Unwritable)
    assert "No space left on device" in str(done.exception)
    found = end_of(result)
    assert found.pop("outcome") == {**cast("Any", plain["outcome"]), "exit_status": Unwritable.exit_status}
    assert found == {name: plain[name] for name in found}, "the guest came to its end"
    assert kept.read_bytes() == b"the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["end.json", "kept"]


def test_a_disk_that_fills_under_a_recording_costs_the_guest_nothing(
    plain: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [1 << 20, 10]
    """Bytes that each call can write: the first line, a part of the next, and no more."""

    def write(descriptor: int, data: bytes) -> int:
        if not room:
            _full(descriptor)
        return real(descriptor, data[: room.pop(0)])

    real = os.write
    monkeypatch.setattr("paravirt.services.recording.os", SimpleNamespace(**{**vars(os), "write": write}))
    done = retrap("run", *GUEST, "--record", tmp_path / "run.rec", "--json", tmp_path / "end.json")
    assert isinstance(done.exception, Unwritable)
    assert "the recording cannot be written (No space left on device)" in str(done.exception)
    found = end_of(tmp_path / "end.json")
    found.pop("outcome")
    assert found == {name: plain[name] for name in found}, "the guest came to its end"
    assert (tmp_path / "run.rec").read_bytes().count(b"\n") == 1
    again = retrap("replay", tmp_path / "run.rec")
    assert isinstance(again.exception, RetrapError) or "as recorded" in again.stderr, "as far as it goes"


@pytest.mark.parametrize("there", [True, False])
def test_a_warm_start_that_cannot_be_kept_is_a_run_like_any_other(
    there: bool, plain: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if there:
        monkeypatch.setattr("paravirt.services.snapshot_form.os.fsync", _full)
    else:
        (tmp_path / "cache").write_text("no directory")
    done = retrap("run", *GUEST, "--no-cache", "--warm", "--json", tmp_path / "end.json")
    assert done.exception is None
    assert done.return_value == 0
    assert done.stderr.count("nothing is kept for the next --warm") == 1
    assert end_of(tmp_path / "end.json") == plain
