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


# What the documented trace event format asks of an event of each phase that is used, by key: kinds of values.
_NUMBER = (int, float)
_PHASES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
    "i": {"name": str, "cat": str, "ts": _NUMBER, "pid": int, "tid": int, "s": str, "args": dict},
    "X": {"name": str, "cat": str, "ts": _NUMBER, "dur": _NUMBER, "pid": int, "tid": int, "args": dict},
}


def constant(name: str) -> None:
    """Python reads NaN and Infinity, which are no JSON."""
    raise ValueError(name)


@pytest.mark.parametrize("wanted", [None, "exits", "switches", "name=nothing-at-all"])
def test_what_perfetto_loads_is_as_the_trace_event_format_has_it(tmp_path: Path, wanted: str | None) -> None:
    path = tmp_path / "trace.json"
    run(path, wanted)
    whole = json.loads(path.read_text("utf-8"), parse_constant=constant)
    assert set(whole) == {"displayTimeUnit", "traceEvents"}
    assert whole["displayTimeUnit"] in ("ms", "ns")
    events: list[dict[str, Any]] = whole["traceEvents"]
    named: dict[int, str] = {}
    last: dict[int, float] = {}
    for one in events:
        asked = _PHASES[one["ph"]]
        assert set(asked) <= set(one), one
        assert set(one) <= {*asked, "ph", "ts"}, one
        for key, kind in asked.items():
            assert isinstance(one[key], kind), one
            assert not isinstance(one[key], bool), one
        assert one["name"], one
        assert all(isinstance(value, str | int | float) for value in one["args"].values()), one
        if one["ph"] == "M":
            assert one["name"] == "thread_name"
            assert set(one["args"]) == {"name"}
            assert one["tid"] not in named
            named[one["tid"]] = one["args"]["name"]
            continue
        assert one["tid"] in named, "every track has a name, given before it is used"
        assert one["ts"] >= last.get(one["tid"], 0), "a track's events are in order, and its slices one behind another"
        last[one["tid"]] = one["ts"] + one.get("dur", 0) - (1e-6 if "dur" in one else 0)
        assert one.get("dur", 0) >= 0
        assert one.get("s", "t") in ("g", "p", "t")
    assert len({one["pid"] for one in events}) == 1
    assert len(set(named.values())) == len(named)
    if wanted is None:
        assert any(one["ph"] == "i" and named[one["tid"]] == "exits" for one in events)
        assert {one["ph"] for one in events} == {"M", "i", "X"}
    if wanted == "name=nothing-at-all":
        assert len(events) == len(named), "nothing but names is still a trace"


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


def records_of(path: Path, wanted: str | None) -> list[dict[str, Any]]:
    """What is traced of a guest that does something of everything, in its first 6 ms."""
    with bt.open_guest(SAMPLE, bt.Options(memory=64 << 20, cache=False)) as guest:
        trace = open_trace(path, (SAMPLE,), wanted)
        trace.attach(guest.session.driver)
        guest.run(seconds=0.006)
        trace.close()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_word_of_a_filter_gives_its_part_of_the_whole(tmp_path: Path) -> None:
    whole = records_of(tmp_path / "whole.jsonl", None)
    kinds = {one["what"] for one in whole}
    assert kinds == {"exits", "interrupts", "exceptions", "faults", "calls", "switches", "patches"}
    for kind in sorted(kinds):
        assert records_of(tmp_path / f"{kind}.jsonl", kind) == [one for one in whole if one["what"] == kind]
    both = records_of(tmp_path / "both.jsonl", "faults,switches")
    assert both == [one for one in whole if one["what"] in ("faults", "switches")]
    assert all(one["address"] for one in both if one["what"] == "faults")


@pytest.mark.parametrize("text", ["nonsense", "level=x", "pc=zz", "name=(", "what=1"])
def test_what_is_no_filter_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is none; give exits"):
        filter_of(text)
