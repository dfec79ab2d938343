"""Recordings: a run done again is the same, or the first place where it is not is named."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.errors import BadSnapshot, Unwritable, UsageError, VerifyFailed
from emulator.machine import Outcome
from paravirt.services import recording
from paravirt.services.record import Console, Recorder, Replayer, cannot_repeat
from paravirt.services.recording import Mark, Recording, Writer
from tests.paravirt.services.ticking_guest import TickingGuest, fingerprint

TYPED = {3: b"a", 5: b"bc", 9: None}
"""What is typed, by how often the guest's machine has asked."""


class Typist:
    """Polled by a machine."""

    def __init__(self, typed: dict[int, bytes | None]) -> None:
        self.typed, self.polls = typed, 0

    def __call__(self, _seconds: float) -> bytes | None:
        self.polls += 1
        return self.typed.get(self.polls, b"")


def record(path: Path, typed: dict[int, bytes | None]) -> tuple[Outcome, tuple[object, ...]]:
    guest, console = TickingGuest(), Console()
    guest.machine._slice = 10_000
    guest.listen(console)
    guest.machine.poll_input = Typist(typed)
    writer = Writer(path, {"what": "ticking"})
    recorder = Recorder(guest.driver, writer, console, marks=1_000_000)
    outcome = guest.driver.run()
    recorder.end(outcome)
    writer.close()
    end = fingerprint(guest.driver)
    guest.close()
    return outcome, end


def replay(found: Recording) -> tuple[Outcome, tuple[object, ...]]:
    guest, console = TickingGuest(), Console()
    guest.machine._slice = 10_000
    guest.listen(console)
    try:
        replayer = Replayer(guest.driver, found, console)
        replayer.stop_where_it_ended()
        outcome = guest.driver.run()
        replayer.compare(outcome)
        return outcome, fingerprint(guest.driver)
    finally:
        guest.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, tuple[object, ...]]:
    path = tmp_path_factory.mktemp("recordings") / "run.rec"
    return (path, *record(path, TYPED))


Made = tuple[Path, Outcome, tuple[object, ...]]


def test_a_replayed_run_has_the_same_console_exits_devices_and_memory(made: Made) -> None:
    path, outcome, end = made
    found = recording.read(path)
    assert [one.data for one in found.inputs] == [b"a", b"bc", None]
    assert len(found.marks) > 20
    assert found.run == {"what": "ticking"}
    assert replay(found) == (outcome, end)


def test_input_makes_a_difference(made: Made, tmp_path: Path) -> None:
    _, other = record(tmp_path / "quiet", {})
    assert other != made[2]


def test_input_that_is_another_is_named_as_a_divergence(made: Made) -> None:
    found = recording.read(made[0])
    found.inputs[1] = found.inputs[1]._replace(data=b"bcd")
    with pytest.raises(VerifyFailed, match="devices differ"):
        replay(found)


@pytest.mark.parametrize("field", ["progress", "now", "exits", "processor"])
def test_the_first_place_that_differs_is_named(made: Made, field: str) -> None:
    found = recording.read(made[0])
    mark = found.marks[7]
    wrong = "00" if field == "processor" else getattr(mark, field) + 1
    found.marks[7] = Mark(**{**mark._asdict(), field: wrong})
    with pytest.raises(VerifyFailed, match=f"between progress {found.marks[6].progress} and ") as told:
        replay(found)
    assert str(wrong if field == "progress" else getattr(mark, field)) in str(told.value)


def test_a_recording_that_broke_off_is_replayed_to_where_it_did(made: Made, tmp_path: Path) -> None:
    data = made[0].read_bytes()
    lines = data.splitlines(keepends=True)
    path = tmp_path / "killed"
    path.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:10])
    found = recording.read(path)
    assert found.end is None
    outcome, _ = replay(found)
    assert outcome.detail == "replayed to where it was ended"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_is_named_by_its_line(made: Made, tmp_path: Path, data: st.DataObject) -> None:
    broken = bytearray(made[0].read_bytes())
    at = data.draw(st.integers(0, len(broken) - 2))
    broken[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "broken"
    path.write_bytes(broken)
    with pytest.raises(BadSnapshot) as told:
        recording.read(path)
    assert str(path) in str(told.value)


def lines_of(*texts: str) -> bytes:
    """Lines with right checksums."""
    out, checksum = b"", 0
    for text in texts:
        checksum = zlib.crc32(text.encode(), checksum)
        out += b"%b %08x\n" % (text.encode(), checksum)
    return out


HEAD = f'["{recording.KIND}",{recording.FORMAT},{{}}]'


@pytest.mark.parametrize(
    "second",
    [
        "[]",
        "{}",
        "5",
        '["input"]',
        '["input",1,2,"zz"]',
        '["input",-1,null,"00"]',
        '["mark",1]',
        '["mark",1,2,3,4]',
        '["mark","1",2,3,"x"]',
        '["end"]',
        '["what",1]',
        "[" * 2000,
    ],
)
def test_a_line_that_lies_with_a_right_checksum_is_refused(second: str, tmp_path: Path) -> None:
    path = tmp_path / "lie"
    path.write_bytes(lines_of(HEAD, second))
    with pytest.raises(BadSnapshot):
        recording.read(path)


@pytest.mark.parametrize("contents", [b"", b"\n", b"\0" * 5000, b"[1,2]", b"x" * 3_000_000, b"\x7fELF\n" * 9])
def test_what_is_no_recording_is_refused(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(contents)
    with pytest.raises(BadSnapshot, match="recording"):
        recording.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        recording.read(tmp_path / "missing")


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "newer"
    path.write_bytes(lines_of(f'["{recording.KIND}",99,{{}}]'))
    with pytest.raises(BadSnapshot, match=f"format 99, and this retrap reads format {recording.FORMAT}"):
        recording.read(path)


def test_a_full_disk_is_told_in_a_sentence() -> None:
    with pytest.raises(Unwritable, match="No space left"):
        Writer(Path("/dev/full"), {})


def test_an_engine_that_does_not_count_progress_is_refused_with_the_way_out() -> None:
    from dataclasses import replace

    guest = TickingGuest()
    engine = guest.machine.engine
    engine.capabilities = replace(engine.capabilities, deterministic=False)
    assert "--engine unicorn" in cannot_repeat(guest.driver)
    guest.close()
