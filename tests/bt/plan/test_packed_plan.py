"""A packed plan is the plan, to the last character; what is no packed plan is refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.packed_plan import pack, unpack
from bt.plan import Plan, PlannedChange
from bt.planner import plan
from bt.scan import scan
from bt.tactics.tactics import STRATEGIES
from emulator.errors import BadImage
from tests.bt.rewrite.small_kernel import image


def _plan(mode: str = "auto") -> Plan:
    kernel = image()
    return plan(kernel, scan(kernel), mode)


def _without_code(made: Plan) -> Plan:
    return replace(made, fixups=tuple(replace(fixup, code=b"") for fixup in made.fixups))


def _there_and_back(made: Plan) -> Plan:
    return unpack(json.loads(json.dumps(pack(made))))


@pytest.mark.parametrize("mode", STRATEGIES)
def test_a_plan_comes_back_whole(mode: str) -> None:
    made = _plan(mode)
    assert _there_and_back(made) == _without_code(made)


TEXT = st.text("0x1a9\1\2\3\4+ fé", max_size=20) | st.sampled_from(["f+0x1", "0x81000000", "+0x0", "f+0x01", "f+1"])


@given(symbol=TEXT, reason=TEXT, refused=TEXT, why=TEXT, home=st.sampled_from([0, 0x1A]), steps=st.lists(st.just(9)))
@settings(max_examples=200, deadline=None)
def test_texts_come_back_whatever_they_hold(
    symbol: str, reason: str, refused: str, why: str, home: int, steps: list[int]
) -> None:
    made = _plan()
    odd = replace(
        made.sites[1],
        symbol=symbol,
        reason=reason,
        refused=refused,
        confidence_reason=f"{why}{symbol}{why}",
        home=home,
        steps=tuple(steps),
    )
    change = PlannedChange(1 << 63, 5, b"a", b"b", reason)
    made = replace(made, sites=(made.sites[0], odd, *made.sites[2:]), changes=(*made.changes, change))
    assert _there_and_back(made) == _without_code(made)


def _damage(value: Any, data: st.DataObject) -> Any:
    """The value with one part of it changed."""
    if isinstance(value, dict) and value:
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: _damage(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], _damage(value[at], data), *value[at + 1 :]]
    return data.draw(st.sampled_from([None, -1, 1 << 70, 3, "x", [], {}, [5], 1.5, True, "\ud800", "\1" * 9]))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_packed_plan_is_refused_or_is_a_plan(data: st.DataObject) -> None:
    value = _damage(pack(_plan()), data)
    refusal = ""
    try:
        unpack(value)
    except BadImage as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert len(refusal) < 500
