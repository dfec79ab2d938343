"""Measuring: time to a marker, processes that never get there, medians and ratios."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bt import qemu
from bt.bench import boot
from bt.bench.boot import Contender, Entrant, Goal
from bt.bench.process import Timing, time_to_marker
from bt.guests import Guest
from emulator.errors import Unavailable


def python(program: str) -> list[str]:
    return [sys.executable, "-u", "-c", program]


def guest(directory: Path) -> Guest:
    return Guest("here", directory, "console=ttyS0", "reached", {"kernel": "1"}, {"vmlinuz": "00"})


def test_the_time_ends_at_the_marker_and_the_process_with_it() -> None:
    started = time.monotonic()
    timing = time_to_marker(python("import time; print('rea', end=''); print('ched'); time.sleep(60)"), "reached", 30)
    assert timing.seconds is not None
    assert 0 < timing.seconds <= time.monotonic() - started < 30
    assert timing.console.startswith(b"reached")


def test_a_process_that_ends_without_the_marker_gives_no_time_but_its_last_words() -> None:
    timing = time_to_marker(python("print('panic: no init')"), "reached", 30)
    assert timing.seconds is None
    assert timing.tail == "panic: no init"


def test_a_process_that_is_silent_is_given_up_at_the_timeout() -> None:
    timing = time_to_marker(python("import time; time.sleep(60)"), "reached", 0.3)
    assert timing.seconds is None


def test_children_of_the_process_end_with_it(tmp_path: Path) -> None:
    note = tmp_path / "child"
    program = f"""
import subprocess
child = subprocess.Popen(["sleep", "60"])
open({str(note)!r}, "w").write(str(child.pid))
print("reached")
"""
    assert time_to_marker(python(program), "reached", 30).seconds is not None
    status = Path(f"/proc/{note.read_text()}/stat")
    for _ in range(100):
        # Gone, or a zombie that nobody has collected yet: a container's process 1 may never do so.
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its process")


def test_a_missing_program_is_named() -> None:
    with pytest.raises(Unavailable, match="no-such-program-here is not on this host"):
        time_to_marker(["no-such-program-here"], "reached", 1)


def entrants(**seconds: list[float]) -> list[Entrant]:
    return [Entrant(Contender(name, "", ()), runs) for name, runs in seconds.items()]


def test_a_ratio_is_of_the_smallest_medians() -> None:
    measured = entrants(ours=[4.0, 2.0, 9.0], slow=[8.0], fast=[1.0, 2.0])
    assert boot.ratio(measured, Goal(("ours",), ("slow", "fast"), 1)) == pytest.approx(4.0 / 1.5)


def test_without_a_measured_side_there_is_no_ratio() -> None:
    assert boot.ratio(entrants(ours=[1.0], slow=[]), Goal(("ours",), ("slow", "other"), 1)) is None


def test_contenders_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeImage:
        elf = b"\x7fELF"

    def fake(guest: Guest, elf: Path) -> tuple[Contender, ...]:
        assert elf.read_bytes() == b"\x7fELF"
        return tuple(Contender(name, "", python(f"print('{name} reached')")) for name in ("one", "two", "three"))

    monkeypatch.setattr("bt.image.load", lambda path: FakeImage())
    monkeypatch.setattr(boot, "contenders", fake)
    said: list[str] = []
    measured = boot.measure(guest(tmp_path), 2, ["one", "three"], 30, said.append)
    assert [line.split(":")[0] for line in said] == ["1/2 one", "1/2 three", "2/2 one", "2/2 three"]
    assert [len(entrant.seconds) for entrant in measured] == [2, 2]
    data = json.loads(json.dumps(boot.as_json(guest(tmp_path), measured)))
    assert [row["name"] for row in data["contenders"]] == ["one", "three"]


def test_ours_are_measured_warm_and_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm one finds what the run before the measuring has left, when it ended by itself; the cold one nothing."""
    program = """
import os, pathlib, sys
kept = pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "kept"
compiled = "PYTHONDONTWRITEBYTECODE" not in os.environ and sys.pycache_prefix is not None
print(f"found {kept.exists()} compiled {compiled}, reached", flush=True)
kept.parent.mkdir(parents=True, exist_ok=True)
if "--until" in sys.argv:
    kept.touch()
"""

    class FakeImage:
        elf = b""

    fakes = (
        Contender("warm", "", python(program), own=True),
        Contender("cold", "", python(program), own=True, cold=True),
    )
    seen: list[bytes] = []
    measuring = time_to_marker

    def watched(*arguments: Any) -> Timing:
        timing = measuring(*arguments)
        seen.append(timing.console.strip())
        return timing

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("bt.image.load", lambda path: FakeImage())
    monkeypatch.setattr(boot, "contenders", lambda *_: fakes)
    monkeypatch.setattr(boot, "time_to_marker", watched)
    boot.measure(guest(tmp_path), 2, ["warm", "cold"], 30)
    assert seen == [b"found True compiled True, reached", b"found False compiled True, reached"] * 2


def test_every_contender_boots_the_same_kernel_and_initramfs(tmp_path: Path) -> None:
    elf = tmp_path / "vmlinux"
    for contender in boot.contenders(guest(tmp_path), elf):
        words = list(contender.command)
        assert str(tmp_path / "initrd") in words
        assert str(tmp_path / "vmlinuz") in words or str(elf) in words
        assert any("console=ttyS0" in word for word in words)


def test_goals_name_contenders_that_exist(tmp_path: Path) -> None:
    names = {contender.name for contender in boot.contenders(guest(tmp_path), tmp_path)}
    assert all(set(goal.of + goal.to) <= names for goal in boot.GOALS)


@pytest.mark.parametrize("name", ["debian-i386", "debian-arm64", "debian-armhf", "debian-mipsel"])
def test_guests_of_other_architectures_have_a_machine_of_qemus_and_a_goal(tmp_path: Path, name: str) -> None:
    other = Guest(name, tmp_path, "console=x", "reached", {"kernel": "1"}, {"vmlinuz": "00"})
    contenders = boot.contenders(other, tmp_path / "vmlinux")
    assert [contender.name for contender in contenders] == ["inline", "cold", "trap", "qemu"]
    assert contenders[3].command[0] != qemu.PROGRAM
    for contender in contenders:
        assert str(tmp_path / "vmlinuz") in contender.command
        assert "console=x" in contender.command
    (goal,) = boot.goals(other)
    assert (goal.of, goal.to) == (("inline",), ("qemu",))


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which(qemu.PROGRAM) is None, reason=f"needs {qemu.PROGRAM}")
def test_qemu_takes_our_command_line(tmp_path: Path) -> None:
    # No kernel: QEMU has read all of its options by the time that it says so.
    command = qemu.command(tmp_path / "none", tmp_path / "initrd", "x", qemu.NEAREST)
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert "none" in result.stderr
    assert result.returncode == 1
