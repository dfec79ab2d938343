"""Kept translations: a run with them is what it is without, whatever its order and whatever the file holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt import translations
from bt.image import load
from bt.loadtime import LoadTimeTranslator
from bt.pagecache import PageCache
from bt.pagescan import PAGE
from bt.session import Options, Session
from bt.translations import SUFFIX
from emulator.isa.operation import Operation
from paravirt.hypervisor import Hypervisor
from paravirt.translator import Translation
from tests.bt.image.image_files import BASE
from tests.bt.rewrite.small_kernel import addresses, image, text

SAMPLES = Path(__file__).parents[3] / "samples"
NOP5 = b"\x0f\x1f\x44\x00\x00"
MODULE = 0xFFFF_FFFF_C000_0000

Page = tuple[int, bytes, int]
"""Address, contents with what follows, offset of the entry."""


def pages() -> list[Page]:
    """Pages of the image as it is and changed, at two addresses, and pages that no image knows."""
    whole, at = text(), addresses()
    changed = whole[:0x800] + b"\xfa" + NOP5 + whole[0x806:]
    module = (b"\xfa" + NOP5 + b"\x9c\x58\x0f\x1f\x40\x00\xc3").ljust(PAGE, b"\x90")
    flags = at["flags"] - BASE
    found = [(BASE, code, entry) for code in (whole, changed) for entry in (0, flags, flags + 1)]
    found += [(BASE + PAGE, whole[PAGE:], 1), (MODULE, module, 0), (MODULE, module, 6), (MODULE, module, 3)]
    return [*found, (MODULE, module[:64] + b"\xfb" + module[65:], 0), (MODULE + PAGE, b"\x90" * 64 + module[64:], 2)]


PAGES = pages()


@pytest.fixture(autouse=True)
def sources_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's edit while a test runs begins another file."""
    monkeypatch.setattr(translations, "revision", lambda: "as it is")


ORDERS = st.lists(st.sampled_from(range(len(PAGES))), min_size=1, max_size=10)


def run(order: Sequence[int], directory: Path | None, mode: str = "inline") -> tuple[list[Translation], int]:
    """All translations of a run, and how many pages were scanned."""
    cache = PageCache(directory) if directory is not None else None
    translator = LoadTimeTranslator(mode, image(), cache=cache)
    results = []
    for address, code, entry in (PAGES[number] for number in order):
        before = text()[PAGE - 15 : PAGE] if address == BASE + PAGE else b""
        results.append(translator.translate(address, code[:PAGE].ljust(PAGE, b"\xcc"), before, b"", address + entry))
    translator.close()
    return results, translator.scanned


def kept(directory: Path) -> Path:
    (path,) = directory.glob(f"*{SUFFIX}")
    return path


@given(st.lists(ORDERS, min_size=1, max_size=4), ORDERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_other_runs_have_kept_a_run_has_what_it_would_have_without(
    tmp_path_factory: pytest.TempPathFactory, earlier: list[list[int]], order: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("kept")
    for one in earlier:
        run(one, directory)
    assert run(order, directory)[0] == run(order, None)[0]


def test_a_second_run_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = list(range(len(PAGES)))
    first, _ = run(order, tmp_path)

    def decided(*_: object) -> None:
        raise AssertionError("a page was translated again")

    monkeypatch.setattr(LoadTimeTranslator, "_rewrite", decided)
    again, scanned = run(order, tmp_path)
    assert again == first
    assert scanned == 0


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_costs_translations_and_no_more(
    tmp_path_factory: pytest.TempPathFactory, at: int, by: int
) -> None:
    directory = tmp_path_factory.mktemp("kept")
    order = [0, 3, 7, 10]
    expected, _ = run(order, directory)
    path = kept(directory)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= by
    path.write_bytes(data)
    assert run(order, directory)[0] == expected
    path.write_bytes(data[: at % len(data)])
    assert run(order, directory)[0] == expected
    assert run(order, directory)[0] == expected, "and it was written anew"


def test_the_file_of_another_context_is_not_believed(tmp_path: Path) -> None:
    expected, _ = run([0, 3], tmp_path)
    inline = kept(tmp_path)
    traps, _ = run([0, 3], tmp_path, "trap")
    (other,) = set(tmp_path.glob(f"*{SUFFIX}")) - {inline}
    inline.write_bytes(other.read_bytes())
    assert run([0, 3], tmp_path)[0] == expected != traps


def test_a_context_is_of_image_mode_place_engine_and_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    one = image()
    contexts = [
        translations.context_of(one, "inline", 0, (), ()),
        translations.context_of(one, "trap", 0, (), ()),
        translations.context_of(one, "inline", 1 << 21, (), ()),
        translations.context_of(one, "inline", 0, (Operation.SWAP_GS,), ()),
        translations.context_of(image(b"appended"), "inline", 0, (), ()),
    ]
    assert translations.context_of(one, "inline", 0, (), ()) == contexts[0]
    monkeypatch.setattr(translations, "revision", lambda: "another")
    contexts.append(translations.context_of(one, "inline", 0, (), ()))
    assert len(set(contexts)) == len(contexts)
    monkeypatch.setattr(translations, "revision", lambda: "")
    assert translations.context_of(one, "inline", 0, (), ()) == b"", "sources that cannot be seen: nothing is kept"


def test_fixups_outside_their_region_are_not_believed(tmp_path: Path) -> None:
    expected, _ = run([0], tmp_path)
    (fixup, *_), path = expected[0].fixups[-1:], kept(tmp_path)
    context = bytes.fromhex(path.stem.split("-")[-1])
    inside, outside = (
        PageCache(tmp_path).translations(context, (fixup.address + less, fixup.address + 64)) for less in (-4096, 1)
    )
    keys = list(inside._index)
    assert [len(list(inside.find(key))) for key in keys] == [1]
    assert [len(list(outside.find(key))) for key in keys] == [0]
    inside.close()
    outside.close()


def test_a_file_is_bounded_and_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run([0, 7, 9], tmp_path)
    size = kept(tmp_path).stat().st_size
    monkeypatch.setattr(translations, "MOST_BYTES", size)
    run([0, 3, 4], tmp_path)
    assert kept(tmp_path).stat().st_size <= size + 200
    monkeypatch.setattr(translations, "MOST_KEPT", 1)
    run([0], tmp_path, "trap")
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) == 1, "files used longer ago are gone"


def test_nothing_is_written_where_nothing_is_new_or_nothing_is_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([0, 3], tmp_path)
    before = kept(tmp_path).stat().st_ino
    run([0, 3], tmp_path)
    assert kept(tmp_path).stat().st_ino == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    options = Options(memory=32 << 20, command_line="only=tables.s", cache=False)
    session = Session(load(SAMPLES / "x86_64/sample.elf"), options, lambda _data: None)
    session.run()
    session.close()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("kernel", "append"),
    [
        ("x86_64/sample.elf", "only=self-modifying rounds=100"),
        ("i386/portable.elf", "only=interrupts"),
        ("aarch64/portable.elf", "only=paging"),
        ("armv7/portable.elf", "only=paging"),
        ("mips32/portable.elf", "only=user rounds=100"),
    ],
)
def test_the_first_run_and_the_next_have_the_same_exits_and_leave_the_same_memory(
    kernel: str, append: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen = []
    for cached in (True, True, False):
        printed = bytearray()
        options = Options(memory=32 << 20, command_line=append, cache=cached)
        session = Session(load(SAMPLES / kernel), options, printed.extend)
        try:
            outcome = session.run()
            assert isinstance(session.driver, Hypervisor)
            exits = dict(session.driver.exits.counts)
            assert b"ok " in printed
            seen.append((outcome, bytes(printed), exits, session.machine.memory.view.tobytes(), session.driver.state))
        finally:
            session.close()
    assert seen[0] == seen[1] == seen[2]
    assert len(list(tmp_path.rglob(f"*{SUFFIX}"))) == 1
