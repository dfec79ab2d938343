"""Rewritten files: valid for other tools, undone bit for bit, and refused when anybody changed them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt import manifest
from bt.image import Image, from_bytes
from bt.plan import Plan
from bt.planner import plan
from bt.rewrite import original, revert, rewrite, verify, write
from bt.scan import scan
from emulator.errors import BadImage, RetrapError, UsageError
from paravirt.abi import FIXUP_BASE
from tests.bt.image.image_files import make_relocations
from tests.bt.rewrite.small_kernel import addresses, image, kernel

MODES = ("trap", "inline")


def rewritten(mode: str = "inline", appended: bytes = b"", sections: bool = True) -> bytes:
    one = image(appended, sections)
    return rewrite(one, plan(one, scan(one), mode))


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sections", [True, False])
def test_reverting_gives_the_original_bit_for_bit(mode: str, sections: bool) -> None:
    table = make_relocations([addresses()["start"]], [], [])
    for appended in (b"", table):
        assert revert(rewritten(mode, appended, sections)) == kernel(appended, sections)


@pytest.mark.parametrize("mode", MODES)
def test_rewriting_twice_gives_the_same_bytes(mode: str) -> None:
    assert rewritten(mode) == rewritten(mode)


def test_the_file_carries_its_manifest_and_its_fixups() -> None:
    found = from_bytes(rewritten(), "out")
    read = manifest.read(found)
    assert read is not None
    assert read.plan.mode == "inline"
    section = found.section(manifest.FIXUPS)
    assert section is not None
    assert section.vaddr == FIXUP_BASE
    for fixup in read.plan.fixups:
        at = fixup.address - FIXUP_BASE
        assert bytes(section.data[at : at + len(fixup.code)]) == fixup.code
    assert manifest.read(image()) is None


def test_a_loader_gets_the_original_with_its_relocation_table() -> None:
    table = make_relocations([addresses()["start"]], [], [])
    found, read = original(from_bytes(rewritten("inline", table), "out"))
    assert read is not None
    assert (bytes(found.elf), bytes(found.appended)) == (kernel(), table)
    same = image()
    assert original(same) == (same, None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sections", [True, False])
def test_other_tools_read_the_file_without_a_warning(mode: str, sections: bool, tmp_path: Path) -> None:
    path = tmp_path / "out.elf"
    path.write_bytes(rewritten(mode, sections=sections))
    for command in (["readelf", "-aW"], ["objdump", "-d"]):
        done = subprocess.run([tool(command[0]), *command[1:], str(path)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert "arning" not in done.stdout
    import lief

    parsed = lief.ELF.parse(path)
    assert parsed is not None
    assert manifest.MANIFEST in {section.name for section in parsed.sections}


def test_objdump_shows_the_planted_trap_and_the_jump(tmp_path: Path) -> None:
    path = tmp_path / "out.elf"
    path.write_bytes(rewritten())
    listing = subprocess.run([tool("objdump"), "-d", str(path)], capture_output=True, text=True, timeout=60).stdout
    at = addresses()
    lines = {line.split(":")[0].strip(): line for line in listing.splitlines() if ":\t" in line}
    assert "jmp" in lines[f"{at['start']:x}"]
    assert "hlt" in lines[f"{at['sgdt']:x}"]


@pytest.mark.parametrize("position", ["text", "header", "manifest"])
def test_a_file_that_was_changed_is_refused(position: str) -> None:
    data = bytearray(rewritten())
    found = from_bytes(bytes(data), "out")
    section = found.section(manifest.MANIFEST)
    assert section is not None
    at = {"text": found.segments[0].file_offset + 0x300, "header": 24, "manifest": section.file_offset + 200}[position]
    data[at] ^= 1
    if position == "header":  # the entry point of the patched file is not what the original's header restores
        assert revert(bytes(data)) == kernel()
        return
    with pytest.raises(BadImage):
        revert(bytes(data))


@given(st.integers(0, 1 << 30), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_no_damage_makes_revert_give_a_wrong_original(where: int, value: int) -> None:
    data = bytearray(_FILE)
    data[where % len(data)] = value
    with contextlib.suppress(RetrapError):
        assert revert(bytes(data)) == kernel()


_FILE = rewritten()


def test_a_plan_for_another_image_is_refused() -> None:
    one, other = image(), from_bytes(kernel(sections=False), "other")
    with pytest.raises(UsageError, match="another image"):
        rewrite(other, plan(one, scan(one), "trap"))


def test_a_rewritten_image_is_not_rewritten_again() -> None:
    again = from_bytes(rewritten(), "out")
    with pytest.raises(UsageError, match="already"):
        rewrite(again, plan(again, scan(again), "trap"))


def test_a_plan_whose_old_bytes_are_wrong_is_refused() -> None:
    one = image()
    good = plan(one, scan(one), "trap").to_json()
    site = next(row for row in good["sites"] if row["old"] != row["new"])
    site["old"] = "00" * (len(site["old"]) // 2)
    with pytest.raises(BadImage, match="expects 00"):
        rewrite(one, Plan.from_json(good))


def test_an_original_has_nothing_to_revert() -> None:
    with pytest.raises(BadImage, match="no manifest"):
        verify(kernel())


def test_an_output_never_replaces_its_original(tmp_path: Path) -> None:
    source = tmp_path / "kernel"
    source.write_bytes(kernel())
    link = tmp_path / "link"
    link.symlink_to(source)
    for target in (source, link):
        with pytest.raises(UsageError, match="never overwritten"):
            write(target, b"new", source)
    assert source.read_bytes() == kernel()
    assert list(tmp_path.iterdir()) == [source, link] or len(list(tmp_path.iterdir())) == 2


def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write(tmp_path / "missing" / "out", b"new", tmp_path / "kernel")
    assert not list(tmp_path.iterdir())


@pytest.mark.kernel
def test_debians_kernel_is_rewritten_and_reverted(debian: Image, debian_rewritten: bytes, tmp_path: Path) -> None:
    data = debian_rewritten
    found, _ = original(from_bytes(data, "out"))
    assert (bytes(found.elf), bytes(found.appended)) == (bytes(debian.elf), bytes(debian.appended))
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    done = subprocess.run([tool("readelf"), "-hSlW", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
