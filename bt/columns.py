"""Rows of plain values as columns, in which a text that occurs often is written once: a tenth of the size.

Room: `bt`, under the manifest. `pack` and `unpack` are each other's inverse; what makes no rows is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pack(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows, which all have the same keys, column by column. Texts are numbers into a list of those there are;
    numbers are distances from the row before."""
    if not rows:
        return {"count": 0, "columns": {}}
    return {"count": len(rows), "columns": {name: _column([row[name] for row in rows]) for name in rows[0]}}


def _column(values: list[Any]) -> dict[str, Any]:
    if all(type(value) is str for value in values):
        texts = {text: number for number, text in enumerate(dict.fromkeys(values))}
        return {"texts": list(texts), "of": [texts[value] for value in values]}
    if all(type(value) is int for value in values):
        return {"steps": [value - before for value, before in zip(values, [0, *values], strict=False)]}
    return {"values": values}


def unpack(packed: dict[str, Any], most: int = 1 << 24) -> list[dict[str, Any]]:
    """The rows of `pack`. Raises ValueError, KeyError, IndexError or TypeError for what `pack` did not make."""
    count = packed["count"]
    if type(count) is not int or not 0 <= count <= most:
        raise ValueError(f"{count!r} is no number of rows")
    columns = {name: _values(column) for name, column in packed["columns"].items()}
    if any(len(values) != count for values in columns.values()) or (count and not columns):
        raise ValueError("columns differ in length")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(column: dict[str, Any]) -> list[Any]:
    if "texts" in column:
        texts, numbers = column["texts"], column["of"]
        if not all(type(number) is int and 0 <= number < len(texts) for number in numbers):
            raise ValueError("a column names a text that is not there")
        return [texts[number] for number in numbers]
    if "steps" in column:
        values, value = [], 0
        for step in column["steps"]:
            if type(step) is not int:
                raise ValueError(f"{step!r} is no number")
            value += step
            values.append(value)
        return values
    found = column["values"]
    if not isinstance(found, list):
        raise ValueError("a column is no list")
    return found
