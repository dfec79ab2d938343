"""A plan packed for a manifest: columns of small numbers, and what many sites have in common written once.

Room: `bt`, under the manifest. `pack` and `unpack` are each other's inverse, to the last character; what `pack` did
not make is refused. Numbers that grow from row to row are distances from the row before. Texts are patterns: addresses
in them are distances from their site's, and its function's name is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final

from bt import plan_json
from bt.plan import Plan, PlannedCall, PlannedChange, PlannedFixup, PlannedSite

_NUMBER: Final = re.compile(r"0x[0-9a-f]+")
_NEAR, _NAME, _HOME, _PLAIN = "\1", "\2", "\3", "\4"
"""In a pattern: an address, the function's name, where the site is copied to; first: nothing is left out."""
_MARK: Final = re.compile("[\1\2\3]")
_RESERVED: Final = re.compile("[\1-\4]")
_LONGEST: Final = 1 << 14
"""Characters of a pattern that has something left out."""
_SHAPE: Final = {
    name: plan_json.SITE[name]
    for name in (
        *("instruction", "behaviour", "operation", "section", "tactic", "placing", "confidence", "state"),
        *("reason", "refused", "confidence_reason", "old", "new"),
    )
}
"""What sites have in common, all of it texts."""
_NUMBERS: Final = ("before", "offset", "fixup", "home", "steps")
"""Of a shape: bytes from `start` to the address, address less file offset, whether there is one, and how many."""


def pack(plan: Plan) -> dict[str, Any]:
    """The plan without the code of its fixups, as plain values for JSON."""
    heads = {site.fixup: site for site in reversed(plan.sites) if site.fixup}
    return {
        **plan_json.head(plan),
        "sites": _pack_sites(plan.sites),
        "fixups": _pack_fixups(plan.fixups, heads),
        "changes": _pack_changes(plan.changes),
    }


def unpack(value: dict[str, Any]) -> Plan:
    """The plan of `pack`. Raises what `plan_json.made` raises, of values that make none."""
    return plan_json.made(value, _unpack)


def _unpack(value: dict[str, Any]) -> plan_json.Parts:
    sites = tuple(_unpack_sites(value["sites"]))
    heads = {site.fixup: site for site in reversed(sites) if site.fixup}
    return sites, tuple(_unpack_fixups(value["fixups"], heads)), tuple(_unpack_changes(value["changes"]))


# -- columns ---------------------------------------------------------------------------------------


def _steps(values: Sequence[int]) -> list[int]:
    """Each number's distance from the one before."""
    return [value - before for value, before in zip(values, [0, *values[:-1]], strict=True)] if values else []


def _sums(steps: list[int]) -> Iterator[int]:
    """The inverse; of numbers that are addresses."""
    return map(plan_json.number, accumulate(map(_integer, steps)))


def _integer(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no number")
    return value


def _common(values: Sequence[Any]) -> dict[str, list[Any]]:
    """A column in which the same stands often."""
    known = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return {"values": list(known), "of": [known[value] for value in values]}


def _each(column: dict[str, list[Any]], read: Callable[[object], Any]) -> list[Any]:
    """The inverse."""
    values = [read(value) for value in column["values"]]
    return [_at(values, number) for number in column["of"]]


def _at(values: Sequence[Any], number: int) -> Any:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is no row")
    return values[number]


def _texts(values: Iterable[object]) -> list[str]:
    return [
        value if isinstance(value, str) else value.hex() if isinstance(value, bytes) else str(value) for value in values
    ]


# -- sites -----------------------------------------------------------------------------------------


def _pack_sites(sites: Sequence[PlannedSite]) -> dict[str, Any]:
    functions: dict[tuple[str, int], int] = {}
    shapes: dict[tuple[Any, ...], int] = {}
    of_function, of_shape, near, fixups, homes = [], [], [], [], []
    for site in sites:
        address, home = site.address, site.home
        function = _function(site.symbol, address)
        of_function.append(functions.setdefault(function, len(functions)))
        if site.fixup:
            fixups.append(site.fixup)
        if home:
            homes.append(home)
        near += [step - address for step in site.steps]
        shape = (
            *(site.instruction, site.behaviour, site.operation, site.section),
            *(site.tactic.value, site.placing.value, site.confidence.value, site.state),
            _pattern(site.reason, address, home, "", near),
            _pattern(site.refused, address, home, "", near),
            _pattern(site.confidence_reason, address, home, function[0], near),
            *(site.old, site.new, address - site.start, address - site.file_offset),
            *(site.fixup != 0, home != 0, len(site.steps)),
        )
        of_shape.append(shapes.setdefault(shape, len(shapes)))
    columns = list(zip(*shapes, strict=True)) or [()] * (len(_SHAPE) + len(_NUMBERS))
    texts = dict(zip(_SHAPE, (_common(_texts(column)) for column in columns), strict=False))
    numbers = dict(
        zip(_NUMBERS, (_common([int(one) for one in column]) for column in columns[len(_SHAPE) :]), strict=True)
    )
    return {
        "address": _steps([site.address for site in sites]),
        "function": _steps(of_function),
        "shape": of_shape,
        "fixup": _steps(fixups),
        "home": _steps(homes),
        "near": near,
        "names": [name for name, _ in functions],
        "starts": _steps([start for _, start in functions]),
        "shapes": {"texts": texts, "numbers": numbers},
    }


def _function(symbol: str, address: int) -> tuple[str, int]:
    """Name and address of what a site's symbol names, from which `_symbol` makes it again."""
    if symbol == f"{address:#x}":
        return "", 0
    if symbol[:1] in ("", _PLAIN):
        return _PLAIN + symbol, address
    name, plus, distance = symbol.rpartition("+")
    if plus and name and _NUMBER.fullmatch(distance):
        start = address - int(distance, 16)
        if 0 <= start < address and _symbol(name, start, address) == symbol:
            return name, start
    return symbol, address


def _symbol(name: str, start: int, address: int) -> str:
    if not name:
        return f"{address:#x}"
    if name[0] == _PLAIN:
        return name[1:]
    return f"{name}+{address - start:#x}" if address != start else name


def _pattern(text: str, address: int, home: int, name: str, near: list[int]) -> str:
    """A text without what differs from site to site; addresses are added to `near`, as distances."""
    if "0x" not in text and (not name or name not in text):
        return text if not _RESERVED.search(text) else _PLAIN + text
    if _RESERVED.search(text) or len(text) > _LONGEST:
        return _PLAIN + text

    def replace(found: re.Match[str]) -> str:
        value = int(found[0], 16)
        if found[0] != f"{value:#x}":
            return found[0]
        if home and value == home:
            return _HOME
        near.append(value - address)
        return _NEAR

    parts = text.split(name) if name else [text]
    return _NAME.join(_NUMBER.sub(replace, part) for part in parts)


def _filled(pattern: str, address: int, home: int, name: str, near: Iterator[int]) -> str:
    """The inverse of `_pattern`."""
    if pattern[:1] == _PLAIN:
        return pattern[1:]
    if len(pattern) > _LONGEST or len(name) > _LONGEST:
        raise ValueError("a text is longer than any")

    def replace(found: re.Match[str]) -> str:
        if found[0] == _NAME:
            return name
        return f"{home:#x}" if found[0] == _HOME else f"{address + next(near):#x}"

    return _MARK.sub(replace, pattern)


def _unpack_sites(packed: dict[str, Any]) -> Iterator[PlannedSite]:
    names, starts = [plan_json.text(name) for name in packed["names"]], list(_sums(packed["starts"]))
    texts = [_each(packed["shapes"]["texts"][name], read) for name, read in _SHAPE.items()]
    numbers = [_each(packed["shapes"]["numbers"][name], _integer) for name in _NUMBERS]
    shapes = list(zip(*texts, *numbers, strict=True))
    varies = [any(_RESERVED.search(pattern) for pattern in shape[8:11]) for shape in shapes]
    near = iter([_integer(one) for one in packed["near"]])
    fixups, homes = _sums(packed["fixup"]), _sums(packed["home"])
    rows = zip(_sums(packed["address"]), _sums(packed["function"]), packed["shape"], strict=True)
    for address, function, number in rows:
        instruction, behaviour, operation, section, tactic, placing, confidence, state, *rest = _at(shapes, number)
        reason, refused, why, old, new, before, offset, has_fixup, has_home, count = rest
        name, start = _at(names, function), starts[function]
        fixup, home = next(fixups) if has_fixup else 0, next(homes) if has_home else 0
        steps = tuple(plan_json.number(address + next(near)) for _ in range(count))
        if varies[number]:
            reason = _filled(reason, address, home, "", near)
            refused = _filled(refused, address, home, "", near)
            why = _filled(why, address, home, name, near)
        yield PlannedSite(
            address,
            instruction,
            behaviour,
            operation,
            _symbol(name, start, address),
            section,
            plan_json.number(address - offset),
            plan_json.number(address - before),
            old,
            new,
            tactic,
            placing,
            reason,
            refused,
            fixup,
            confidence,
            why,
            state,
            steps,
            home,
        )
    if next(near, None) is not None or next(fixups, None) is not None or next(homes, None) is not None:
        raise ValueError("there are more numbers than sites that they belong to")


# -- fixups and changes ----------------------------------------------------------------------------


def _pack_fixups(fixups: Sequence[PlannedFixup], heads: dict[int, PlannedSite]) -> dict[str, Any]:
    """A fixup mostly stands for the bytes of the first site that names it."""
    usual = [
        (head := heads.get(fixup.address)) is not None and (head.start, head.old) == (fixup.site, fixup.window)
        for fixup in fixups
    ]
    others = [fixup for fixup, is_usual in zip(fixups, usual, strict=True) if not is_usual]
    calls = [(fixup, call) for fixup in fixups for call in fixup.calls]
    return {
        "address": _steps([fixup.address for fixup in fixups]),
        "usual": _common([int(one) for one in usual]),
        "clobbers": _common([fixup.clobbers for fixup in fixups]),
        "calls": _common([len(fixup.calls) for fixup in fixups]),
        "site": [fixup.site for fixup in others],
        "window": [fixup.window.hex() for fixup in others],
        "call": {
            "address": _common([call.address - fixup.address for fixup, call in calls]),
            "site": _common([call.site - fixup.site for fixup, call in calls]),
            "operation": _common([call.operation for _, call in calls]),
            "resume": _common([call.resume - (call.address if _is_inside(call) else call.site) for _, call in calls]),
            "inside": _common([int(_is_inside(call)) for _, call in calls]),
            "instruction": _common([call.instruction.hex() for _, call in calls]),
        },
    }


def _is_inside(call: PlannedCall) -> bool:
    """Whether it goes on in the fixup."""
    return abs(call.resume - call.address) < abs(call.resume - call.site)


def _unpack_fixups(packed: dict[str, Any], heads: dict[int, PlannedSite]) -> Iterator[PlannedFixup]:
    calls = packed["call"]
    reads = (_integer, _integer, plan_json.operation, _integer, _integer, plan_json.octets)
    columns = [_each(column, read) for column, read in zip(_columns(calls), reads, strict=True)]
    rows = iter(list(zip(*columns, strict=True)))
    others = zip(packed["site"], packed["window"], strict=True)
    for address, usual, clobbers, count in zip(
        _sums(packed["address"]),
        _each(packed["usual"], _integer),
        _each(packed["clobbers"], plan_json.texts),
        _each(packed["calls"], _integer),
        strict=True,
    ):
        if usual:
            site, window = heads[address].start, heads[address].old
        else:
            other, octets = next(others)
            site, window = plan_json.number(other), plan_json.octets(octets)
        made = tuple(_call(next(rows), address, site) for _ in range(count))
        yield PlannedFixup(address, site, b"", clobbers, made, window)
    if next(rows, None) is not None or next(others, None) is not None:
        raise ValueError("there is more than belongs to the fixups")


def _columns(calls: dict[str, Any]) -> list[Any]:
    return [calls[name] for name in ("address", "site", "operation", "resume", "inside", "instruction")]


def _call(row: tuple[Any, ...], address: int, site: int) -> PlannedCall:
    at, of, operation, resume, inside, instruction = row
    at, of = plan_json.number(address + at), plan_json.number(site + of)
    return PlannedCall(at, of, operation, plan_json.number(resume + (at if inside else of)), instruction)


def _pack_changes(changes: Sequence[PlannedChange]) -> dict[str, Any]:
    near: list[int] = []
    return {
        "address": _steps([change.address for change in changes]),
        "offset": _common([change.address - change.file_offset for change in changes]),
        "old": _common([change.old.hex() for change in changes]),
        "new": _common([change.new.hex() for change in changes]),
        "reason": _common([_pattern(change.reason, change.address, 0, "", near) for change in changes]),
        "near": near,
    }


def _unpack_changes(packed: dict[str, Any]) -> Iterator[PlannedChange]:
    near = iter([_integer(one) for one in packed["near"]])
    for address, offset, old, new, reason in zip(
        _sums(packed["address"]),
        _each(packed["offset"], _integer),
        _each(packed["old"], plan_json.octets),
        _each(packed["new"], plan_json.octets),
        _each(packed["reason"], plan_json.text),
        strict=True,
    ):
        words = _filled(reason, address, 0, "", near)
        yield PlannedChange(address, plan_json.number(address - offset), old, new, words)
    if next(near, None) is not None:
        raise ValueError("there are more numbers than changes that they belong to")
