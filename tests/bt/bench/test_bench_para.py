"""Four ways to run one kernel: what is counted, printed and judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bt.bench import para
from bt.bench.para import PARTS, Count, Figures
from bt.initramfs import MARKER, read_member
from bt.session import Options, Session
from emulator.errors import GuestFault, UsageError

HOSTILE = Path(__file__).parents[3] / "samples" / "xen" / "hostile.elf"


def figures(way: str, updates: int = 0, calls: int = 0, violations: int | None = None) -> Figures:
    parts = {part: Count(100, updates, calls) for part in PARTS}
    one = Figures(way, Count(80_000), Count(90_000, updates * 5, calls * 5), 1.5, 2.5, {"tick, budget": 7}, parts)
    one.violations = violations
    one.call_microseconds = 4.0 if calls else None
    return one


def test_a_table_for_people_has_every_way_and_part() -> None:
    text = para.as_text([figures("native"), figures("xen", 2048, 68, 0)])
    assert "full privilege" in text
    assert "30.12" in text
    for part in PARTS:
        assert part in text
    assert "tick, budget 7" in text


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, 0),
        ({"boot": Count(90_001)}, 1),
        ({"violations": 1}, 1),
        ({"call_microseconds": 5.1}, 1),
        ({"parts": {part: Count(1, 2048, 100) for part in PARTS}}, 1),
    ],
)
def test_each_figure_is_judged(change: dict[str, object], missed: int) -> None:
    one = figures("xen", 2048, 68, 0)
    for name, value in change.items():
        setattr(one, name, value)
    lines = para.verdicts([figures("native"), one])
    assert len(lines) == 4
    assert sum("NOT reached" in line for line in lines) == missed


def test_the_plot_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ways = [figures(way) for way in para.WAYS]
    first, second = (para.plot(ways, tmp_path / name) for name in ("one", "two"))
    assert [file.suffix for file in first] == [".svg", ".png"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_a_way_that_is_none_is_refused() -> None:
    class Guest:
        name = "none"
        kernel = HOSTILE
        initrd = HOSTILE
        command_line = ""

    with pytest.raises((UsageError, KeyError)):
        list(para.measure(Guest(), ["sideways"], lambda _line: None))  # type: ignore[arg-type]


def test_a_guest_that_does_not_do_its_work_is_no_measurement() -> None:
    from bt.image import load

    with pytest.raises(GuestFault, match="0 of 5"):
        para.Run("xen", load(HOSTILE), b"", "").measure()


def test_updates_and_calls_of_a_xen_guest_are_counted() -> None:
    from bt.image import load

    session = Session(load(HOSTILE), Options(mode="xen", memory=16 << 20), lambda _data: None)
    try:
        session.run()
        counted = para.count(session)
    finally:
        session.close()
    assert counted.exits > 4000
    assert counted.updates > 5
    assert counted.stores > 5
    assert counted.since(counted) == Count(0)


def test_the_workload_is_in_the_initial_file_system(tmp_path: Path) -> None:
    from bt.initramfs import initramfs

    class Guest:
        initrd = tmp_path / "initrd"

    Guest.initrd.write_bytes(initramfs(b"a busybox"))
    archive = para.workload_initrd(Guest())  # type: ignore[arg-type]
    assert read_member(archive, "bin/batch") == para.WORKLOAD.read_bytes()
    assert read_member(archive, "bin/busybox") == b"a busybox"
    init = read_member(archive, "init").decode()
    assert init.index(MARKER) < init.index("\nbatch\n")
    assert json.dumps(para.as_json(type("Named", (), {"name": "x"})(), [figures("xen")]))
