"""Scanning: every site of a known kernel and nothing else, twice the same, and from the cache without a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bt import textmap
from bt.image import Image, linux_tables
from bt.pagecache import PageCache
from bt.scan import Site, scan
from tests.bt.image.image_files import BASE
from tests.bt.rewrite.small_kernel import addresses, image


def test_every_sensitive_instruction_of_a_known_kernel_is_found() -> None:
    at = addresses()
    expected = {
        at["start"]: "CLI",
        at["flags"]: "PUSHF",
        at["sgdt"]: "SGDT",
        at["tight"]: "STI",
        at["wait"]: "STI",
        at["wait"] + 1: "HLT",
        at["control"]: "MOV r, CR",
        at["write"]: "MOV CR, r",
        at["loop"]: "CLI",
        BASE + 4095: "CPUID",
    }
    assert {site.address: site.row.name for site in scan(image())} == expected


def test_a_site_says_where_it_stands() -> None:
    kernel = image()
    (site,) = [site for site in scan(kernel) if site.row.name == "SGDT"]
    assert (site.section, site.bytes, site.length) == (".text", b"\x0f\x01\x00", 3)
    assert bytes(kernel.elf[site.file_offset : site.file_offset + 3]) == site.bytes


def test_a_kernel_without_sections_is_scanned_by_its_segments() -> None:
    found = scan(image(sections=False))
    assert [site.address for site in found] == [site.address for site in scan(image())]
    assert {site.section for site in found} == {""}


def test_a_second_scan_sweeps_nothing_and_finds_the_same(tmp_path: Path) -> None:
    kernel = image()
    first = textmap.sweep(kernel, PageCache(tmp_path))
    again = textmap.sweep(kernel, PageCache(tmp_path))
    assert (first.cached, again.cached) == (False, True)
    assert scan(kernel, PageCache(tmp_path)) == scan(kernel)
    assert first.page(BASE) == again.page(BASE)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-3], lambda data: data[:40] + b"\xff" + data[41:], lambda _: b""]
)
def test_a_damaged_map_is_swept_anew(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    kernel = image()
    textmap.sweep(kernel, PageCache(tmp_path))
    (path,) = tmp_path.glob("*.text")
    path.write_bytes(damage(path.read_bytes()))
    assert not textmap.sweep(kernel, PageCache(tmp_path)).cached


def test_branches_and_constants_are_leads() -> None:
    at = addresses()
    page = textmap.sweep(image()).page(BASE)
    assert page is not None
    assert page.targets >> (at["loop"] - BASE) & 1, "the loop's JNZ"
    assert page.targets >> (at["wait"] - BASE) & 1, "the idle loop's JMP"
    assert not page.targets >> (at["control"] - BASE + 3) & 1


@pytest.mark.kernel
def test_every_byte_pattern_of_debians_flag_alternatives_is_found(debian: Image, debian_sites: Sequence[Site]) -> None:
    rows = linux_tables.of(debian)
    assert rows is not None
    found = {site.address for site in debian_sites}
    alternatives = rows.alternatives
    checked = 0
    for index in range(len(alternatives)):
        start, length = int(alternatives.replacements[index]), int(alternatives.replacement_lengths[index])
        if length and bytes(debian.view(start, length)) in (b"\xfa", b"\xfb", b"\x9c\x58"):
            assert start in found
            checked += 1
    assert checked > 1000


@pytest.mark.kernel
def test_debians_kernel_has_few_doubtful_sites(debian_sites: Sequence[Site]) -> None:
    sites = debian_sites
    assert len(sites) > 3000
    assert sum(site.doubtful for site in sites) < len(sites) / 50
