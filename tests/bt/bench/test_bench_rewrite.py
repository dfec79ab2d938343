"""Measuring rewriting: the sample kernel's figures add up, growth is taken from images of the sizes asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bt.bench import goals
from bt.bench import rewrite as bench
from bt.cli import bench as bench_command
from bt.image import from_bytes, load
from bt.planner import plan
from bt.scan import scan
from bt.tactics.tactics import Tactic
from emulator.errors import BadImage, UsageError
from tests.bt.rewrite.small_kernel import image

SAMPLE = Path(__file__).parents[3] / "samples" / "x86_64" / "sample.elf"


def test_the_samples_figures_add_up() -> None:
    figures = bench.measure("sample", SAMPLE, runs=1)
    assert figures.image == SAMPLE.stat().st_size
    assert figures.sites == len(scan(load(SAMPLE))) == sum(figures.by_tactic.values())
    assert 0 < figures.text_without_trap <= figures.without_trap < figures.sites
    assert figures.restored
    assert figures.growth > 0
    assert 10 * bench.MIB < figures.rewrite.peak < 1000 * bench.MIB
    assert figures.rewrite.cpu > 0
    assert figures.speed == figures.text / bench.MIB / figures.scan


def test_a_site_counts_as_covered_only_where_the_plan_does_something_right_about_it() -> None:
    kernel = image()
    made = plan(kernel, scan(kernel), "auto")
    assert bench.covered(made) == len(made.sites)
    inline = next(site for site in made.sites if site.tactic is Tactic.INLINE)
    broken = (
        (replace(inline, new=inline.old), "nothing leads to its fixup"),
        (replace(inline, fixup=1), "its fixup is not there"),
        (replace(inline, tactic=Tactic.TRAP, new=inline.old), "no trap stands there"),
        (replace(inline, instruction="PUSHF", tactic=Tactic.NATIVE), "PUSHF does not exit by itself"),
    )
    for site, why in broken:
        sites = tuple(site if one is inline else one for one in made.sites)
        assert bench.covered(replace(made, sites=sites)) == len(made.sites) - 1, why
    left = tuple(replace(one, tactic=Tactic.LEAVE) for one in made.sites)
    assert bench.covered(replace(made, sites=left, chosen="mnemonic=CLI")) == 0


@pytest.mark.parametrize("size", [5000, 1 << 20])
def test_a_synthetic_image_has_the_text_that_was_asked_for(size: int) -> None:
    image = load(SAMPLE)
    start, end = image.text_ranges[0]
    text = bytes(image.view(start, end - start))
    made = from_bytes(bench.synthetic(image, text, size), "synthetic")
    ((low, high),) = made.text_ranges
    assert high - low == size
    assert bytes(made.view(low, size)) == (text * (size // len(text) + 1))[:size]


def test_growth_is_measured_at_each_size_and_told_by_its_steps() -> None:
    grown = list(bench.grow(SAMPLE, (1 << 16, 1 << 17)))
    assert [one.text for one in grown] == [1 << 16, 1 << 17]
    assert grown[1].sites == pytest.approx(2 * grown[0].sites, rel=0.05)


def made(mib: int, cpu: float, peak: int) -> bench.Growth:
    return bench.Growth(mib * bench.MIB, 100 * mib, bench.Command(cpu, cpu, peak * bench.MIB))


def test_linear_growth_is_even_and_quadratic_growth_is_not() -> None:
    assert bench.evenness([made(n, 1 + n / 10, 40 + 3 * n) for n in (1, 10, 50, 200)]) == pytest.approx((1, 1))
    times, memory = bench.evenness([made(n, n * n / 10, 40 + 3 * n) for n in (1, 10, 50, 200)])
    assert times > 10
    assert memory == pytest.approx(1)


def test_the_command_prints_tables_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    (tmp_path / "nothing").write_bytes(b"nothing at all")
    arguments = ["rewrite", str(SAMPLE), str(tmp_path / "nothing"), "--runs", "1", "--json", str(file)]
    done = CliRunner(catch_exceptions=False).invoke(bench_command.command, arguments, standalone_mode=False)
    assert done.exit_code == 0, done.output
    assert "e9patch, quoted" in done.output
    assert "295 of 1355" in done.output
    assert "neither an ELF" in done.output
    value = json.loads(file.read_text())
    sample, nothing = value["images"]
    assert sample["isa"] == "x86-64"
    assert "neither an ELF" in nothing["error"]
    assert value["quoted"]["e9patch"][0]["share"] == pytest.approx(21.8, abs=0.05)


def test_each_figure_is_put_beside_its_goal_and_a_missed_one_is_told() -> None:
    good = replace(
        bench.measure("debian-amd64", SAMPLE, runs=1), text=100 * bench.MIB, scan=2.0, growth=0.2, restored=True,
        rewrite=bench.Command(2.5, 2.0, 300_000_000), text_sites=100, text_without_trap=82,
    )  # fmt: skip
    grown = [made(n, 1 + n / 10, 40 + 3 * n) for n in (1, 10, 50, 200)]
    found = list(goals.reached([good], grown))
    assert all(one.met for one in found), found
    assert {one.figure for one in found} >= {"scan", "rewrite", "sites covered", "growth of the file"}
    for missed, figure in (
        (replace(good, scan=100.0), "scan"),
        (replace(good, rewrite=bench.Command(3.5, 2.0, 0)), "rewrite"),
        (replace(good, rewrite=bench.Command(2.5, 2.0, 600_000_000)), "memory of rewrite"),
        (replace(good, covered=good.sites - 1), "sites covered"),
        (replace(good, text_without_trap=79), "without a trap in .text"),
        (replace(good, growth=0.5), "growth of the file"),
        (replace(good, restored=False), "revert gives the original"),
    ):
        assert [one.figure for one in goals.reached([missed], grown) if not one.met] == [figure]
        assert " NO" in bench.as_text([missed], grown)
    bent = [made(n, n * n / 10, 40 + 3 * n) for n in (1, 10, 50, 200)]
    assert [one.met for one in goals.reached([], bent)] == [False, True]
    assert not next(iter(goals.reached([("bad", BadImage("bad: is no image"))], []))).met


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="no guest is named"):
        list(bench.images(["no-such-guest"]))


def test_a_rewrite_that_fails_is_told_by_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\x7fELF")
    with pytest.raises(BadImage, match="bad: "):
        bench._rewrite(tmp_path / "bad", tmp_path / "out")
