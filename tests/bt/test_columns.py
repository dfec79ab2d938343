"""Columns: packing loses nothing, and damaged ones are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt.columns import pack, unpack

VALUES = st.one_of(st.integers(0, 1 << 64), st.text(max_size=8), st.lists(st.integers(0, 9), max_size=3))


@given(st.lists(st.fixed_dictionaries({"a": VALUES, "b": st.text(max_size=3), "c": st.integers()})))
def test_unpacking_gives_what_was_packed(rows: list[dict[str, Any]]) -> None:
    assert unpack(json.loads(json.dumps(pack(rows)))) == rows


@pytest.mark.parametrize(
    "packed",
    [
        {},
        {"count": -1, "columns": {}},
        {"count": 1 << 30, "columns": {}},
        {"count": 2, "columns": {}},
        {"count": "2", "columns": {"a": {"steps": [1, 2]}}},
        {"count": 2, "columns": {"a": {"steps": [1]}}},
        {"count": 1, "columns": {"a": {"steps": ["x"]}}},
        {"count": 1, "columns": {"a": {"texts": [], "of": [0]}}},
        {"count": 1, "columns": {"a": {"texts": ["x"], "of": [-1]}}},
        {"count": 1, "columns": {"a": {"values": 7}}},
        {"count": 1, "columns": {"a": {}}},
        {"count": 1, "columns": 7},
    ],
)
def test_what_pack_did_not_make_is_refused(packed: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, IndexError, TypeError, AttributeError)):
        unpack(packed)
