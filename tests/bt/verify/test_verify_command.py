"""`retrap verify` on small guests: what it prints, what it writes, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bt import qemu
from bt.cli.main import run
from bt.image import from_bytes, load
from bt.report.run import exit_rows
from bt.session import Options, Session
from bt.verify import verify
from bt.verify.guest import of
from bt.verify.observation import observe
from bt.verify.report import summary
from bt.verify.third_party import compare_with_qemu
from bt.verify.views.x86 import peek, tables_from
from emulator.machine import Limits
from tests.bt.image.image_files import Part, make_elf
from tests.bt.verify.tiny_guest import DATA, STACK, TEXT, tiny_guest

MIB = 1 << 20
SAMPLE = Path(__file__).parents[3] / "samples" / "x86_64" / "sample.elf"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The tiny guest, with a manifest beside it that says what of its memory is volatile."""
    import hashlib

    contents = tiny_guest()
    path = tmp_path / "tiny.elf"
    path.write_bytes(contents)
    digest = hashlib.sha256(contents).hexdigest()
    (tmp_path / "manifest.toml").write_text(
        f'[[guest]]\nname = "tiny"\nsha256 = "{digest}"\nmemory = 32\noutcome = ["debug-exit"]\n'
        '[guest.volatile]\nsection = ".stack"\n'
    )
    return path


def spinning() -> bytes:
    return make_elf((Part(".text", b"\xfa\xeb\xfe", TEXT, TEXT, 5),), TEXT)


def lost() -> bytes:
    return make_elf((Part(".text", b"\x0f\x0b", TEXT, TEXT, 5),), TEXT)


def test_a_guest_that_does_the_same_passes(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(tiny), "--timeout", "30"]) == 0
    text = capsys.readouterr().out
    assert "verified: the runs agree" in text
    for words in ("trap:", "inline:", "What may differ, and why", "Not compared"):
        assert words in text


def test_a_rewritten_image_elsewhere_finds_its_description_by_name(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path_factory.mktemp("elsewhere") / "out.elf"
    assert run(["rewrite", str(tiny), "-o", str(out), "--mode", "inline"]) == 0
    assert not of(load(out)).described
    there = of(load(out), manifest=tiny.parent / "manifest.toml")
    assert there.volatile == of(load(tiny)).volatile != ()
    assert there.described
    assert run(["verify", str(out), "--manifest", str(tiny.parent / "manifest.toml"), "--timeout", "30"]) == 0
    other = out.with_name("other.toml")
    other.write_text('[[guest]]\nsha256 = "00"\n')
    capfd.readouterr()
    assert run(["verify", str(out), "--manifest", str(other)]) != 0
    assert "describes no image that hashes to" in capfd.readouterr().err


def test_what_an_image_calls_volatile_itself_is_volatile(tmp_path: Path) -> None:
    sample = Path(__file__).parents[3] / "samples" / "x86_64" / "sample.elf"
    alone = tmp_path / "sample.elf"
    alone.write_bytes(sample.read_bytes())
    assert of(load(alone)).volatile == of(load(sample)).volatile != ()


def test_the_result_is_json_with_every_rule(tiny: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    assert run(["verify", str(tiny), "--virt", "inline", "--timeout", "30", "--json", str(result)]) == 0
    value = json.loads(result.read_text())
    assert value["passed"] is True
    assert [one["mode"] for one in value["runs"]] == ["inline"]
    assert {finding["verdict"] for finding in value["runs"][0]["findings"]} == {"same"}


def test_a_guest_that_differs_fails_and_shows_where(
    tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "manifest.toml").unlink()  # nothing is volatile now, and where an interrupt came from is in the stack
    assert run(["verify", str(tiny), "--virt", "inline", "--memory", "32M", "--timeout", "30"]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "The first divergence, in memory" in captured.out
    assert "tiny.elf in inline mode is not the reference: memory:" in captured.err


def test_a_rewritten_image_is_compared_with_its_original(tiny: Path, tmp_path: Path) -> None:
    rewritten = tmp_path / "rewritten.elf"
    assert run(["rewrite", str(tiny), "-o", str(rewritten)]) == 0
    guest = of(load(rewritten))
    assert guest.plan is not None
    assert guest.image.sha256 == load(tiny).sha256
    assert guest.volatile
    assert run(["verify", str(rewritten), "--timeout", "30"]) == 0


def test_a_reference_without_end_is_a_timeout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spin.elf"
    path.write_bytes(spinning())
    assert run(["verify", str(path), "--memory", "32M", "--guest-timeout", "0.01", "--timeout", "30"]) == 5
    assert "--timeout" in capsys.readouterr().err


def test_a_guest_that_is_lost_in_every_mode_does_the_same() -> None:
    guest = of(from_bytes(lost(), "lost"))
    result = verify(guest, Options(memory=32 * MIB, cache=False, limits=Limits(host_seconds=30)))
    assert result.passed
    assert result.reference.outcome.kind.value == "triple-fault"
    assert len(result.reference.of("exception")) == 1


def test_what_is_neither_file_nor_guest_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "no-such-guest"]) == 2
    assert "debian-amd64" in capsys.readouterr().err


def test_without_qemu_a_note_says_that_it_was_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "PROGRAM", "no-such-program")
    guest = of(from_bytes(lost(), "lost"))
    options = Options(memory=32 * MIB, cache=False, limits=Limits(host_seconds=30))
    result = verify(guest, options, ())
    compare_with_qemu(result, options, None)
    assert result.notes == ["the console was not compared with QEMU's: no-such-program is not on this host"]
    assert result.passed


def test_a_manifest_that_cannot_be_read_is_a_usage_error(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.toml").write_text("[[guest")
    assert run(["verify", str(tiny)]) == 2


def test_looking_at_a_guest_sets_no_accessed_bit() -> None:
    session = Session(from_bytes(tiny_guest(), "tiny"), Options(mode="native", memory=32 * MIB), lambda _: None)
    try:
        memory = session.machine.memory
        before = memory.digest()
        root = int(session.driver.registers.control(3))  # type: ignore[union-attr]
        tables = tables_from(memory.words, memory.size, root)
        assert root >> 12 in tables
        assert peek(memory.words, memory.view, root, TEXT) == memory.read_bytes(TEXT, 15)
        assert len(peek(memory.words, memory.view, root, TEXT + 4090)) == 6
        assert peek(memory.words, memory.view, root, 0xFFFF_8000_0000_0000) == b""
        assert peek(memory.words, memory.view, root, 1 << 47) == b""
        assert memory.digest() == before
    finally:
        session.close()


def test_watching_a_run_changes_nothing_of_it() -> None:
    options = Options(mode="inline", memory=32 * MIB, cache=False)
    image = from_bytes(tiny_guest(), "tiny")
    session = Session(image, options, lambda _: None)
    try:
        session.run()
        alone = (session.machine.engine.progress, session.driver.exits.counts, session.machine.memory.digest())  # type: ignore[union-attr]
    finally:
        session.close()
    watched = observe(image, options)
    assert watched.blocks == alone[0]
    assert sum(watched.exits.values()) == sum(alone[1].values())
    assert watched.memory.read(DATA, STACK - DATA)


def test_the_exits_shown_are_those_that_a_run_counts() -> None:
    """What came with another exit, such as the bytes of a console that are handed up late, is none of its own."""
    options = Options(mode="inline", memory=128 * MIB, cache=False, limits=Limits(guest_seconds=0.005))
    image = load(SAMPLE)
    session = Session(image, options, lambda _: None)
    try:
        session.run()
        shown = sum(row.count for row in exit_rows(session) if row.share)
    finally:
        session.close()
    watched = observe(image, options)
    assert watched.left == shown < sum(watched.exits.values())
    assert summary(watched).endswith(f" {shown} exits")


def test_two_runs_of_one_mode_are_the_same_to_the_last_exit() -> None:
    image = from_bytes(tiny_guest(), "tiny")
    for mode in ("native", "trap", "inline"):
        first, second = (observe(image, Options(mode=mode, memory=32 * MIB, cache=False)) for _ in range(2))
        assert first.exits == second.exits
        assert first.events == second.events
        assert first.writes == second.writes
        assert first.memory.digest() == second.memory.digest()
        assert (first.blocks, first.nanoseconds) == (second.blocks, second.nanoseconds)
