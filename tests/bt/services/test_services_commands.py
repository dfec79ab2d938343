"""`retrap run` with snapshots and recordings, `resume`, `replay` and `goto`, on the sample kernel."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bt.cli.main import cli
from bt.snapshot import ResumedSession
from bt.snapshot_moment import Moment, moment_of
from emulator.errors import BadSnapshot, EngineMissing, RetrapError, Unwritable, UsageError, VerifyFailed
from paravirt.services.snapshot import Snapshot

SAMPLE = str(Path(__file__).parents[3] / "samples" / "x86_64" / "sample.elf")
GUEST = [SAMPLE, "--memory", "32M", "--append", "only=interrupts.sti"]


def retrap(*arguments: str | Path) -> Result:
    """A command, in this process."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)


def done(result: Result) -> Result:
    """It went well."""
    if result.exception is not None:
        raise result.exception
    assert not result.return_value, result.output
    return result


def outcome(path: Path) -> dict[str, object]:
    """What must be the same of two runs' results."""
    found = json.loads(path.read_text())
    names = ("outcome", "guest_nanoseconds", "progress", "exits", "memory", "board", "sha256")
    return {name: found[name] for name in names}


def console(path: Path) -> dict[str, object]:
    """Hash and size of what the guest printed in a run."""
    found: dict[str, object] = json.loads(path.read_text())["console"]
    return found


class Made:
    """A run that was recorded, and of which a snapshot was taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshot, self.recording, self.result = folder / "a.snapshot", folder / "a.rec", folder / "a.json"
        done(
            retrap(
                "run",
                *GUEST,
                "--snapshot-at",
                "console:sti-shadow",
                "--to",
                self.snapshot,
                "--record",
                self.recording,
                "--json",
                self.result,
            )
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("services"))


def test_a_snapshot_and_a_recording_change_nothing(made: Made, tmp_path: Path) -> None:
    done(retrap("run", *GUEST, "--json", tmp_path / "plain.json"))
    assert outcome(tmp_path / "plain.json") == outcome(made.result)
    assert console(tmp_path / "plain.json") == console(made.result)


def test_a_resumed_guest_ends_as_the_one_that_went_on(made: Made, tmp_path: Path) -> None:
    done(retrap("resume", made.snapshot, "--json", tmp_path / "resumed.json"))
    assert outcome(tmp_path / "resumed.json") == outcome(made.result)
    printed = bytes.fromhex(Snapshot(made.snapshot).description["console"])
    assert b"sti-shadow" in printed
    again = len(printed) - printed.rfind(b"\n") - 1
    rest = console(tmp_path / "resumed.json")["bytes"]
    assert rest == console(made.result)["bytes"] - len(printed) + again  # type: ignore[operator]


def test_a_snapshot_of_a_resumed_guest_needs_only_what_its_parent_lacks(made: Made, tmp_path: Path) -> None:
    child = tmp_path / "child.snapshot"
    done(retrap("resume", made.snapshot, "--snapshot-at", "console:sti-hlt", "--to", child, "--parent", made.snapshot))
    mine, its = (Snapshot(path).header["sections"][-1]["size"] for path in (child, made.snapshot))
    assert mine < its // 2
    done(retrap("resume", child, "--json", tmp_path / "resumed.json"))
    assert outcome(tmp_path / "resumed.json") == outcome(made.result)


def test_a_snapshot_of_another_image_is_not_resumed_with_this_one(made: Made, tmp_path: Path) -> None:
    other = tmp_path / "other.elf"
    other.write_bytes(Path(SAMPLE).read_bytes() + b"\0")
    result = retrap("resume", made.snapshot, "--image", other, "--json", tmp_path / "x.json")
    assert isinstance(result.exception, BadSnapshot)
    assert "is not the image that" in str(result.exception)
    assert not result.stdout, "told before the guest goes on"


def test_a_replay_is_as_it_was_recorded(made: Made) -> None:
    result = done(retrap("replay", made.recording))
    assert re.search(r"as recorded, to progress \d+; (\d+) of \1 places compared", result.stderr)


def test_a_replay_stops_where_it_is_told_to(made: Made) -> None:
    result = done(retrap("replay", made.recording, "--quiet", "--until", "5000"))
    assert "as recorded, to progress 5000;" in result.stderr
    with pytest.raises(UsageError, match=r"leave the \+ out"):
        done(retrap("replay", made.recording, "--until", "5000+2"))


def test_a_replay_of_a_resumed_run_begins_with_its_snapshot(made: Made, tmp_path: Path) -> None:
    done(retrap("resume", made.snapshot, "--record", tmp_path / "b.rec"))
    result = done(retrap("replay", tmp_path / "b.rec", "--quiet"))
    assert result.stdout == ""
    assert "as recorded" in result.stderr
    with pytest.raises(UsageError, match="the history of this guest begins at"):
        done(retrap("goto", tmp_path / "b.rec", "0"))


def test_goto_shows_the_same_place_the_same_way(made: Made) -> None:
    end = outcome(made.result)["progress"]
    assert isinstance(end, int)
    place = str(end - 1000)
    first = json.loads(done(retrap("goto", made.recording, place, "--json")).stdout)
    again = json.loads(done(retrap("goto", made.recording, place, "--forward", "5", "--back", "5", "--json")).stdout)
    assert first == again
    assert first["position"] == place
    assert int(first["exits"]) > 1000


@pytest.mark.parametrize(
    ("isa", "stack", "names"),
    [("x86_64", "rsp", 16), ("i386", "esp", 8), ("aarch64", "sp", 32), ("armv7", "sp", 15), ("mips32", "r29", 34)],
)
def test_goto_shows_the_registers_of_the_guests_instruction_set(
    tmp_path: Path, isa: str, stack: str, names: int
) -> None:
    image = Path(SAMPLE).parents[1] / isa / "portable.elf"
    done(retrap("run", image, "--append", "only=console", "--record", tmp_path / "a.rec"))
    registers = json.loads(done(retrap("goto", tmp_path / "a.rec", "1000", "--json")).stdout)["registers"]
    assert len(registers) == names
    assert int(registers[stack], 16) > 0x8000_0000


def test_goto_goes_back_from_the_end_of_the_guest_and_not_beyond_it(made: Made) -> None:
    end, *ways = (
        json.loads(done(retrap("goto", made.recording, "end", "--json", *steps)).stdout)
        for steps in ((), ("--forward", "4"), ("--back", "3"), ("--back", "4", "--forward", "1"), ("--back", "2"))
    )
    beyond, three, same, two = ways
    assert beyond == end
    assert three == same
    assert len({one["processor"] for one in (end, two, three)}) == 3
    again = retrap("goto", made.recording, "end", "--back", "1", "--forward", "9")
    assert again.stderr.count("the guest ended") == 2
    assert end["position"] in again.stdout


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--previous", "no_such_symbol", "neither an address in hexadecimal"),
        ("--previous-write", "no_such_symbol", "neither an address in hexadecimal"),
        ("--previous-write", "0x1000:0", "is no size"),
    ],
)
def test_goto_refuses_what_it_could_not_look_for_before_it_goes_anywhere(
    made: Made, monkeypatch: pytest.MonkeyPatch, option: str, value: str, told: str
) -> None:
    monkeypatch.setattr("paravirt.services.timeline.Timeline.goto", None)
    refused = retrap("goto", made.recording, "end", option, value)
    assert isinstance(refused.exception, UsageError)
    assert told in str(refused.exception)


def test_goto_goes_back_to_what_changed_memory(made: Made) -> None:
    end = json.loads(done(retrap("goto", made.recording, "end", "--json")).stdout)
    stack = hex(int(end["registers"]["rsp"], 16) & ~7)
    found = json.loads(done(retrap("goto", made.recording, "end", "--previous-write", f"{stack}:8", "--json")).stdout)
    assert int(found["position"].split("+")[0]) <= int(end["position"].split("+")[0])
    again = json.loads(done(retrap("goto", made.recording, found["position"], "--forward", "1", "--json")).stdout)
    assert again["memory"] != found["memory"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("goto", "REC", "nowhere"), "is no position"),
        (("goto", "REC", "end", "--previous-write", "no_such_symbol"), "neither an address in hexadecimal"),
        (("goto", "REC", "end", "--previous-write", "0xffff800000000000"), "maps nothing"),
        (("goto", "REC", "end", "--previous-write", "0x1000:0"), "is no size"),
        (("run", *GUEST, "--snapshot-at", "never", "--to", "x"), "is no moment"),
        (("run", *GUEST, "--snapshot-at", "1s"), "belong together"),
        (("run", *GUEST, "--to", "x"), "belong together"),
        (("run", *GUEST, "--parent", "x"), "--parent is of a snapshot"),
        (("run", *GUEST, "--record", SAMPLE), "never overwritten"),
        (("run", *GUEST, "--virt", "native", "--record", "TMP/x"), "--virt native"),
        (("run", *GUEST, "--virt", "native", "--snapshot-at", "1s", "--to", "TMP/x"), "at full privilege"),
        (("resume", SAMPLE), "is no snapshot"),
        (("replay", SAMPLE), "is no recording"),
        (("replay", "SNAP"), "is no recording"),
        (("resume", "REC"), "is no snapshot"),
        (("resume", "SNAP", "--until", ""), "--until needs a text"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(
    made: Made, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    names = {"REC": str(made.recording), "SNAP": str(made.snapshot)}
    given = [names.get(one, one).replace("TMP", str(tmp_path)) for one in arguments]
    result = retrap(*given)
    assert isinstance(result.exception, RetrapError), result.output
    assert told in str(result.exception)


def test_a_moment_that_does_not_come_is_told(tmp_path: Path) -> None:
    result = retrap("run", *GUEST, "--snapshot-at", "console:no such text", "--to", tmp_path / "x")
    assert isinstance(result.exception, VerifyFailed)
    assert not (tmp_path / "x").exists()


def test_a_snapshot_that_could_not_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "no" / "such"):
        result = retrap("run", *GUEST, "--snapshot-at", "0.001s", "--to", place)
        assert isinstance(result.exception, Unwritable)
        assert str(place) in str(result.exception)
        assert not result.output


def test_a_snapshot_at_a_time_is_of_that_time(tmp_path: Path) -> None:
    done(retrap("run", *GUEST, "--snapshot-at", "0.001s", "--to", tmp_path / "x"))
    clock = Snapshot(tmp_path / "x").header["devices"][0]
    assert 1_000_000 <= clock[1] // clock[0] <= 1_100_000


@pytest.mark.parametrize("text", ["", "x", "-1s", "1e9", "console:", "1ss", "User", "nan", "1" * 20])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no moment"):
        moment_of(text)


def test_moments_are_times_events_and_texts() -> None:
    assert moment_of("2.5s") == moment_of("2.5") == Moment(seconds=2.5)
    assert moment_of("user") == Moment(event="user")
    assert moment_of("console:a b") == Moment(text=b"a b")


def test_a_warm_start_is_kept_and_prints_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    guest = [SAMPLE, "--memory", "32M", "--append", "only=returns.iretq-user"]
    done(retrap("run", *guest, "--json", tmp_path / "cold.json", "--warm"))
    kept = list(tmp_path.glob("retrap/warm/*.snapshot"))
    assert len(kept) == 1
    done(retrap("run", *guest, "--json", tmp_path / "warm.json", "--warm"))
    assert console(tmp_path / "warm.json") == console(tmp_path / "cold.json")
    assert outcome(tmp_path / "warm.json") == outcome(tmp_path / "cold.json")
    for one in kept:
        one.write_bytes(one.read_bytes()[:-1])
    done(retrap("run", *guest, "--json", tmp_path / "again.json", "--warm"))
    assert console(tmp_path / "again.json") == console(tmp_path / "cold.json"), "a damaged one is made anew"
    assert outcome(tmp_path / "again.json") == outcome(tmp_path / "cold.json")


def test_programs_that_may_have_chosen_avx_are_gone_on_with_in_a_warning(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "second.snapshot"
    with monkeypatch.context() as context:
        context.setattr(ResumedSession, "had_wide_vectors", True)
        done(retrap("resume", made.snapshot, "--snapshot-at", "console:sti-hlt", "--to", second))
    warned = "end by SIGILL with the unicorn engine"
    assert warned in done(retrap("resume", second)).output
    assert warned not in done(retrap("resume", made.snapshot)).output


@pytest.mark.kvm
def test_a_guest_goes_from_one_engine_to_another_and_back(tmp_path: Path) -> None:
    guest = [SAMPLE, "--memory", "32M", "--append", "only=returns"]
    here, there, result = tmp_path / "here", tmp_path / "there", tmp_path / "end.json"
    done(retrap("run", *guest, "--snapshot-at", "console:iretq-kernel", "--to", here))
    moved = retrap("resume", here, "--engine", "kvm", "--snapshot-at", "0.000001", "--to", there, "--timeout", "60")
    if isinstance(moved.exception, EngineMissing):
        pytest.skip(str(moved.exception))
    if not isinstance(moved.exception, VerifyFailed):  # it may end before the next tick
        done(moved)
        done(retrap("resume", there, "--engine", "unicorn", "--json", result, "--timeout", "60"))
        assert outcome(result)["outcome"]["status"] == 0  # type: ignore[index]
    done(retrap("resume", here, "--engine", "kvm", "--json", result, "--timeout", "60"))
    assert outcome(result)["outcome"]["kind"] == "debug-exit"  # type: ignore[index]
