"""Rewriting every form of image: 32 bits, raw memory as an ELF, modules; and what a manifest of another image does."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bt.cli.main import run
from bt.image import Image, Segment, from_bytes
from bt.image.elf_form import as_elf
from bt.plan import Plan, read_plan
from bt.planner import plan
from bt.rewrite import manifest_text, original, replay, revert, rewrite, verify
from bt.scan import scan
from bt.tactics.tactics import Tactic
from emulator.errors import (
    AlreadyRewritten,
    BadImage,
    CoverageMissed,
    Tampered,
    Unwritable,
    UsageError,
    WrongManifest,
)
from tests.bt.image.image_files import Part, make_elf
from tests.bt.rewrite.small_kernel import addresses, image, kernel

LOW = 0xC010_0000
CODE = Part(".text", b"\x90\xfa\x0f\x01\x00\xc3".ljust(0x1000, b"\xcc"), LOW, 0x10_0000, 5)
DATA = Part(".data", bytes(256), LOW + 0x20_0000, 0x30_0000, 6)


def kernel32(sections: bool = True) -> bytes:
    return make_elf((CODE, DATA), LOW, machine=3, bits=32, sections=sections)


@pytest.mark.parametrize("sections", [True, False])
def test_a_32_bit_elf_is_rewritten_and_reverted(sections: bool) -> None:
    one = from_bytes(kernel32(sections), "kernel")
    data = rewrite(one, plan(one, scan(one), "trap"))
    found = from_bytes(data, "out")
    assert found.section(".retrap.manifest") is not None
    assert bytes(found.view(LOW + 2, 1)) == b"\xf4"
    assert revert(data) == kernel32(sections)
    back, carried = original(found)
    assert carried is not None
    assert bytes(back.elf) == kernel32(sections)


def raw() -> Image:
    """A kernel as a container gives it: memory, and no headers."""
    memory = memoryview(CODE.data + b"\x12" * 64)
    segments = (
        Segment(LOW, 0x10_0000, 0x1000, 5, memory[:0x1000], 0),
        Segment(LOW + 0x1000, 0x10_1000, 0x2000, 6, memory[0x1000:], 0x1000),
    )
    one = from_bytes(kernel32(), "kernel")
    return Image(
        path="raw", container="zimage", compression="xz", sha256="0", elf=memory, appended=memoryview(b""),
        segments=segments, sections=(), entry=LOW, isa=one.isa, raw=True,
    )  # fmt: skip


def test_raw_memory_is_rewritten_as_an_elf_at_the_same_addresses() -> None:
    one = as_elf(raw())
    assert (one.isa.name, one.entry, one.text_ranges) == ("i386", LOW, raw().text_ranges)
    assert [(s.vaddr, s.paddr, s.memory_size, s.flags, bytes(s.data)) for s in one.segments] == [
        (s.vaddr, s.paddr, s.memory_size, s.flags, bytes(s.data)) for s in raw().segments
    ]
    data = rewrite(one, plan(one, scan(one), "trap"))
    assert revert(data, appended=True) == bytes(one.elf)
    assert revert(data) == bytes(raw().elf)
    assert as_elf(one) is one


class Moved:
    """A header that says what linking changes."""

    def linked(self, memory: memoryview) -> memoryview:
        """The memory with three words changed."""
        changed = bytearray(memory)
        changed[0x800:0x810] = b"\xff" * 16
        changed[0x1000:0x1008] = b"\xee" * 8
        return memoryview(bytes(changed))


@pytest.mark.parametrize("before", [b"", b"\x34\x12"])
def test_a_raw_kernel_comes_back_as_it_was_before_it_was_linked(before: bytes) -> None:
    plain = raw()
    memory = memoryview(bytes(plain.elf[:0x800]) + before.ljust(16, b"\0") + bytes(plain.elf[0x810:]))
    one = as_elf(replace(plain, elf=memory, header=Moved()))
    assert bytes(one.view(LOW + 0x800, 8)) == b"\xff" * 8
    data = rewrite(one, plan(one, scan(one), "trap"))
    assert revert(data) == bytes(memory)
    assert revert(data, appended=True) == bytes(one.elf)


def test_raw_memory_itself_carries_nothing() -> None:
    one = raw()
    with pytest.raises(BadImage, match="raw memory"):
        rewrite(one, plan(one, [], "trap"))


PADDING = b"\x1f\x20\x03\xd5" * 16


@pytest.mark.parametrize(
    ("machine", "bits", "code", "tactics"),
    [
        (62, 64, b"\x9c\x58\x0f\x1f\x40\x00\x0f\x09\x0f\x20\xc0\xc3", "trap replaced native"),  # pushf, wbinvd, cr0
        (3, 32, b"\x9c\x58\x90\x0f\x09\x0f\x20\xc0\x8c\xd8\xc3", "trap replaced native same"),  # and mov eax, ds
        (
            183,
            64,
            struct.pack("<4I", 0xD538_4105, 0xF840_0828, 0xD69F_03E0, 0xD65F_03C0) + PADDING,
            "replaced trap native",
        ),
        (40, 32, struct.pack("<4I", 0xEE1D_0F90, 0xE10F_1000, 0xE160_006E, 0xE12F_FF1E), "replaced trap trap"),
        (8, 32, struct.pack("<5I", 0, 0x4160_6000, 0, 0x4002_6000, 0), "replaced native"),  # di, mfc0 Status
    ],
)
@pytest.mark.parametrize("strategy", ["auto", "hypercall"])
def test_a_module_is_patched_where_no_address_is_needed_and_says_why_no_more(
    machine: int, bits: int, code: bytes, tactics: str, strategy: str
) -> None:
    text = Part(".text", code.ljust(96, b"\0" if machine != 62 else b"\x90"), 0, 0, 5)
    one = from_bytes(make_elf((text,), 0, kind=1, machine=machine, bits=bits), "module.ko")
    found = plan(one, scan(one), strategy)
    seen = [site for site in found.sites if site.address < 0x1000 + len(code)]
    if strategy == "auto":
        assert [site.tactic.value for site in seen] == tactics.split()
    assert not found.fixups
    for site in seen:
        assert site.tactic in (Tactic.REPLACED, Tactic.SAME) or site.refused, site
    assert any("no address before it is loaded" in site.refused for site in seen)
    data = rewrite(one, found)
    assert revert(data) == bytes(one.elf)
    assert from_bytes(data, "out").relocatable


def test_a_manifest_repeats_the_rewriting_on_its_own_original_only() -> None:
    one = image()
    data = rewrite(one, plan(one, scan(one), "auto"))
    again = read_plan(manifest_text(plan(one, scan(one), "auto")).decode())
    assert replay(again, image()) == data
    with pytest.raises(WrongManifest, match="is not the image that the manifest was made for"):
        replay(again, from_bytes(kernel32(), "other"))


@pytest.mark.parametrize("where", ["text", "fixup", "relocations"])
def test_whatever_is_changed_afterwards_is_found(where: str) -> None:
    one = image(b"\0\0\0\0\0\0\0\0")
    data = bytearray(rewrite(one, plan(one, scan(one), "auto")))
    found = from_bytes(bytes(data), "out")
    section = {"text": ".text", "fixup": ".retrap.fixups", "relocations": ".retrap.relocations"}[where]
    at = found.section(section)
    assert at is not None
    data[at.file_offset + 3] ^= 1
    with pytest.raises(Tampered):
        verify(bytes(data), "out")


# -- the commands -------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "kernel"
    path.write_bytes(kernel())
    return path


def sites_of(path: Path) -> Plan:
    return read_plan(path.read_text())


def test_rewriting_checking_reverting_and_repeating_go_round(source: Path, tmp_path: Path) -> None:
    out, plan_file, back, again = (tmp_path / name for name in ("out", "plan", "back", "again"))
    assert run(["rewrite", str(source), "-o", str(out), "--manifest", str(plan_file)]) == 0
    assert run(["check", str(out)]) == 0
    assert run(["revert", str(out), "-o", str(back)]) == 0
    assert back.read_bytes() == kernel()
    assert run(["apply", str(plan_file), str(source), "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_choosing_sites_leaves_the_others(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan"
    sgdt = addresses()["sgdt"]
    arguments = ["rewrite", str(source), "--dry-run", "--manifest", str(file)]
    assert run([*arguments, "--only", "mnemonic=CPUID", "--at", f"{sgdt:#x}"]) == 0
    found = sites_of(file)
    assert {site.instruction for site in found.sites if site.tactic is not Tactic.LEAVE} == {"CPUID", "SGDT"}
    assert found.chosen == f"((mnemonic=CPUID) or address={sgdt:#x})"
    assert run([*arguments, "--except", "class=leaks or class=ignored"]) == 0
    assert {site.behaviour for site in sites_of(file).sites if site.tactic is Tactic.LEAVE} == {"leaks"}


def test_a_dry_run_writes_no_image(source: Path, tmp_path: Path) -> None:
    assert run(["rewrite", str(source), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()


def failing(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    status = run([*map(str, arguments)])
    said = capsys.readouterr().err
    assert said.startswith("retrap: ")
    assert "Traceback" not in said
    return status, said


def test_each_failure_has_a_sentence_and_a_status_of_its_own(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plan_file, other = tmp_path / "out", tmp_path / "plan", tmp_path / "other"
    assert run(["rewrite", str(source), "-o", str(out), "--manifest", str(plan_file)]) == 0
    other.write_bytes(kernel32())
    there = sorted(path.name for path in tmp_path.iterdir())
    capsys.readouterr()
    missing = tmp_path / "missing" / "out"
    cases = {
        AlreadyRewritten: ("rewrite", out, "-o", tmp_path / "twice"),
        WrongManifest: ("apply", plan_file, other, "-o", tmp_path / "wrong"),
        Unwritable: ("rewrite", source, "-o", missing),
        CoverageMissed: ("rewrite", source, "-o", tmp_path / "few", "--fail-under", "99"),
        BadImage: ("check", source),
        UsageError: ("rewrite", source, "-o", source),
    }
    statuses = set()
    for kind, arguments in cases.items():
        status, said = failing(capsys, *arguments)
        assert status == kind.exit_status, said
        assert said.count("\n") == 1, said
        statuses.add(status)
    assert len(statuses) == len(cases)
    assert sorted(path.name for path in tmp_path.iterdir()) == there, "nothing partial is left"
    assert source.read_bytes() == kernel()


def test_a_place_without_a_site_is_refused_and_the_nearest_named(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = failing(capsys, "rewrite", source, "--dry-run", "--at", f"{addresses()['sgdt'] + 1:#x}")
    assert status == UsageError.exit_status
    assert f"the nearest is {addresses()['sgdt']:#x}" in said


def test_an_expression_that_is_none_shows_its_place(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = failing(capsys, "rewrite", source, "--dry-run", "--only", "mnemonic=CLI and flag=1")
    assert status == UsageError.exit_status
    assert said.splitlines()[2].endswith(" " * len("mnemonic=CLI and ") + "^")


def test_of_several_outputs_all_are_written_or_none(source: Path, tmp_path: Path) -> None:
    out, bad = tmp_path / "out", tmp_path / "missing" / "plan"
    assert run(["rewrite", str(source), "-o", str(out), "--manifest", str(bad)]) == Unwritable.exit_status
    assert not out.exists()
    assert run(["rewrite", str(source), "-o", str(out), "--manifest", str(out)]) == UsageError.exit_status
    assert not out.exists()


def test_a_full_disk_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tempfile

    real = tempfile.mkstemp

    def full(**arguments: object) -> tuple[int, str]:
        _, name = real(**arguments)  # type: ignore[call-overload]
        return __import__("os").open("/dev/full", 1), name

    monkeypatch.setattr("bt.output.tempfile.mkstemp", full)
    before = set(tmp_path.iterdir())
    assert run(["rewrite", str(source), "-o", str(tmp_path / "out"), "--no-cache"]) == Unwritable.exit_status
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["json", "text", "sarif", "html"])
def test_a_report_is_written_with_the_image(source: Path, tmp_path: Path, name: str) -> None:
    report = tmp_path / "report"
    assert run(["rewrite", str(source), "-o", str(tmp_path / "out"), "--report", name, str(report)]) == 0
    assert report.stat().st_size > 500
    if name in ("json", "sarif"):
        json.loads(report.read_text())


def test_a_guest_is_named_as_well_as_a_file() -> None:
    from bt.cli.rewrite import command

    done = CliRunner().invoke(command, ["debian-nowhere", "--dry-run"], standalone_mode=False)
    assert isinstance(done.exception, UsageError)


def test_the_sections_of_a_rewritten_file_lie_behind_the_original() -> None:
    one = image()
    data = rewrite(one, plan(one, scan(one), "auto"))
    found = from_bytes(data, "out")
    assert all(s.file_offset >= len(one.elf) for s in found.sections if s.name.startswith(".retrap"))
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    assert offset > len(one.elf)
