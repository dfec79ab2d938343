"""Recording and replaying on the host's own processor: the same console, exits, devices and memory, or the first place
that differs. Skipped, with the reason that the engine gives, where KVM cannot be had.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bt import guests
from bt.cli.main import cli
from emulator.engine.kvm.engine import KvmEngine
from emulator.errors import EngineMissing, RetrapError, UsageError, VerifyFailed

pytestmark = pytest.mark.kvm
SAMPLE = str(Path(__file__).parents[2] / "samples/x86_64/sample.elf")


@pytest.fixture(scope="module", autouse=True)
def kvm() -> None:
    try:
        KvmEngine().close()
    except EngineMissing as error:
        pytest.skip(str(error))


def retrap(*arguments: str | Path) -> Result:
    """A command, in this process. Raises what it reports."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def record(path: Path, *guest: str) -> None:
    retrap("run", *guest, "--engine", "kvm", "--timeout", "300", "--record", path)


def replay(path: Path) -> None:
    """Do it again; and again where the host let the guest run past a place, which is told in so many words."""
    for left in reversed(range(5)):
        try:
            assert not retrap("replay", path, "--quiet").return_value
        except VerifyFailed as error:
            if not left or "replay it again" not in str(error):
                raise
        else:
            return


def changed(path: Path, to: Path, kind: str, change: dict[int, Any]) -> Path:
    """A recording in which fields of the last line of a kind are others, with right checksums."""
    lines = [json.loads(line.rpartition(b" ")[0]) for line in path.read_bytes().splitlines()]
    line = [line for line in lines if line[0] == kind][-1]
    for place, value in change.items():
        line[place] = value
    out, checksum = b"", 0
    for value in lines:
        text = json.dumps(value, separators=(",", ":")).encode()
        checksum = zlib.crc32(text, checksum)
        out += b"%b %08x\n" % (text, checksum)
    to.write_bytes(out)
    return to


@pytest.mark.parametrize("group", ["exceptions", "user.", "interrupts.hlt", "interrupts.timer"])
def test_a_recorded_run_of_the_sample_is_done_again(group: str, tmp_path: Path) -> None:
    record(tmp_path / "a", SAMPLE, "--memory", "32M", "--append", f"only={group}")
    replay(tmp_path / "a")
    replay(tmp_path / "a")


def shown(path: Path, position: str) -> dict[str, Any]:
    """What `retrap goto` shows."""
    for left in reversed(range(5)):
        try:
            return dict(json.loads(retrap("goto", path, position, "--json").stdout))
        except VerifyFailed as error:
            if not left or "replay it again" not in str(error):
                raise
    raise AssertionError


def test_a_place_in_a_recorded_run_is_gone_to_and_is_the_same_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    record(path, SAMPLE, "--memory", "32M", "--append", "only=interrupts.timer")
    marks = [
        line
        for line in (json.loads(line.rpartition(b" ")[0]) for line in path.read_bytes().splitlines())
        if line[0] == "mark"
    ]
    then = marks[len(marks) // 2]
    once, again, end = shown(path, str(then[1])), shown(path, str(then[1])), shown(path, "end")
    assert once == again
    assert int(once["position"]) >= then[1]
    assert int(end["position"]) > int(once["position"])
    assert end["memory"] != once["memory"]
    until = retrap("replay", path, "--quiet", "--until", str(then[1]))
    assert f"to progress {once['position']}" in until.output
    with pytest.raises(UsageError, match="does not count instructions"):
        retrap("goto", path, str(then[1]), "--back", "3")


def test_another_end_is_named(tmp_path: Path) -> None:
    record(tmp_path / "a", SAMPLE, "--memory", "32M", "--append", "only=registers")
    with pytest.raises(VerifyFailed, match="hash of memory"):
        retrap("replay", changed(tmp_path / "a", tmp_path / "b", "end", {7: "00"}))


def test_time_that_passed_otherwise_is_a_divergence(tmp_path: Path) -> None:
    record(tmp_path / "a", SAMPLE, "--memory", "32M", "--append", "only=interrupts.hlt")
    with pytest.raises(VerifyFailed, match="diverges from its recording"):
        retrap("replay", changed(tmp_path / "a", tmp_path / "b", "passed", {2: 5_000_000_000}))


@pytest.mark.kernel
def test_a_recorded_boot_of_a_stock_kernel_is_done_again(tmp_path: Path) -> None:
    try:
        guests.find("debian-amd64")
    except RetrapError as error:
        pytest.skip(f"Debian's kernel is not here: {error}")
    record(tmp_path / "a", "debian-amd64")
    assert b'["end","halted"' in (tmp_path / "a").read_bytes()
    replay(tmp_path / "a")
