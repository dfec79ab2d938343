"""Traces: every form holds what happened, a filter decides what that is, and the guest does not notice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import bt
from bt.tracefile import open_trace
from emulator.errors import UsageError
from paravirt.services.trace import filter_of

SAMPLE = Path(__file__).parents[3] / "samples/x86_64/sample.elf"


def run(trace: Path | None, wanted: str | None = None) -> tuple[Any, ...]:
    """Run the sample for a while; its state, progress, console and exits."""
    with bt.open_guest(SAMPLE, bt.Options(memory=64 << 20, cache=False)) as guest:
        driver: Any = guest.session.driver
        file = open_trace(trace, (SAMPLE,), wanted) if trace is not None else None
        if file is not None:
            file.attach(driver)
        guest.run("check_popf_sets_if")
        if file is not None:
            file.close()
        return driver.state, driver.engine.progress, bytes(guest.console), driver.exits.counts


def test_lines_of_json_hold_every_exit_and_the_guest_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    traced = run(path)
    assert traced == run(None)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"exits", "patches"} <= {one["what"] for one in records}
    found = Counter(one["name"] for one in records if one["what"] == "exits" and "(fill)" in one["name"])
    assert found == {f"{name} ({route})": n for (name, route), n in traced[3].items() if route == "fill"}
    assert [one["progress"] for one in records] == sorted(one["progress"] for one in records)


def test_what_perfetto_loads_is_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    run(path)
    events = json.loads(path.read_text())["traceEvents"]
    assert {one["ph"] for one in events} <= {"M", "i", "X"}
    for one in events:
        assert isinstance(one["name"], str)
        assert one["ts"] >= 0
        assert {"pid", "tid", "args"} <= one.keys()
        assert one["ph"] != "X" or one["dur"] >= 0
        assert one["ph"] != "i" or one["s"] == "t"
    assert any(one["ph"] == "i" and one["tid"] == 1 for one in events)


def test_the_plot_is_a_drawing_of_the_exits(tmp_path: Path) -> None:
    path = tmp_path / "trace.svg"
    run(path)
    names = [one.tag.rpartition("}")[2] for one in ElementTree.parse(path).getroot().iter()]
    assert names.count("rect") > 1
    assert "exits in" in path.read_text()


def test_a_filter_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    run(path, "exits,name=WRITE_PORT,level=0")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records
    assert all(one["what"] == "exits" and "WRITE_PORT" in one["name"] for one in records)
    path = tmp_path / "trace.txt"
    run(path, "patches")
    assert all(" patches " in line for line in path.read_text().splitlines())


@pytest.mark.parametrize("text", ["nonsense", "level=x", "pc=zz", "name=(", "what=1"])
def test_what_is_no_filter_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is none; give exits"):
        filter_of(text)
