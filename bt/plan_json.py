"""Plans as plain values and as JSON text, both ways; nothing is accepted that makes no sound plan.

Room: `bt`. Fields by their names, bytes in hexadecimal, addresses as numbers; what differs in its place only is
written together. A reader refuses a format that it does not know by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, TypeVar

from bt.plan import FORMAT, Plan, PlannedCall, PlannedChange, PlannedFixup, PlannedSite
from bt.scan import Confidence
from bt.tactics.tactics import Placing, Region, Tactic
from emulator.errors import BadImage, brief
from emulator.isa.isas import ISAS
from emulator.isa.operation import Operation
from paravirt.abi import ABI_VERSION

E = TypeVar("E", bound=Enum)


Parts = tuple[tuple[PlannedSite, ...], tuple[PlannedFixup, ...], tuple[PlannedChange, ...]]


def head(plan: Plan) -> dict[str, Any]:
    """All but the sites, fixups and changes."""
    return {
        "format": FORMAT,
        "abi": plan.abi,
        "mode": plan.mode,
        "isa": plan.isa,
        "byte_order": plan.byte_order,
        "sha256": plan.sha256,
        "region": list(plan.region),
        "end": plan.end,
        "chosen": plan.chosen,
    }


def to_json(plan: Plan) -> dict[str, Any]:
    """Plain values for `json.dumps`."""
    return {
        **head(plan),
        "sites": [_plain(site, SITE) for site in plan.sites],
        "fixups": [
            {**_plain(fixup, _FIXUP), "calls": [_plain(call, _CALL) for call in fixup.calls]} for fixup in plan.fixups
        ],
        "changes": _grouped(plan.changes),
    }


def from_json(value: object) -> Plan:
    """The plan of plain values. Raises `BadImage` for values that make none."""
    return made(value, _parts)


def _parts(value: dict[str, Any]) -> Parts:
    return (
        tuple(PlannedSite(**_read(row, SITE)) for row in value["sites"]),
        tuple(_fixup(row) for row in value["fixups"]),
        tuple(sorted((c for group in value["changes"] for c in _changes(group)), key=lambda c: c.address)),
    )


def made(value: object, parts: Callable[[dict[str, Any]], Parts]) -> Plan:
    """A plan of `head` and what `parts` makes of the rest. Raises `BadImage` for values that make none."""
    try:
        if not isinstance(value, dict):
            raise TypeError("no object")
        if value["format"] != FORMAT or value["abi"] != ABI_VERSION:
            raise BadImage(
                f"the plan has format {brief(value['format'])} and ABI {brief(value['abi'])}; this retrap reads format "
                f"{FORMAT} and ABI {ABI_VERSION}: revert it with the version that wrote it, and rewrite the image again"
            )
        sites, fixups, changes = parts(value)
        plan = Plan(
            mode=text(value["mode"]),
            isa=_member(value["isa"], ISAS),
            byte_order=_member(value["byte_order"], ("little", "big")),
            sha256=text(value["sha256"]),
            sites=sites,
            fixups=fixups,
            changes=changes,
            region=Region(*(number(end) for end in value["region"])),
            end=number(value["end"]),
            chosen=text(value["chosen"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, StopIteration, RuntimeError) as error:
        raise BadImage(f"the plan is damaged ({brief(error)}); revert and rewrite the image again") from None
    plan.validate()
    return plan


def read_plan(text: str) -> Plan:
    """A plan from JSON text. Raises `BadImage`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadImage(
            f"the plan is no JSON ({brief(error)}); give the file that `retrap rewrite --manifest` wrote"
        ) from None
    return from_json(value)


def number(value: object) -> int:
    """An address or an offset. Raises ValueError for what is none."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is no address")
    return value


def _numbers(value: object) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} is no list")
    return tuple(number(one) for one in value)


def text(value: object) -> str:
    """A text that a file can hold. Raises ValueError for what is none."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    value.encode()  # refuses half characters, which no file can hold
    return value


def texts(value: object) -> tuple[str, ...]:
    """Several of them."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} is no list")
    return tuple(text(one) for one in value)


def _member(value: object, known: Any) -> str:
    found = text(value)
    if found not in known:
        raise ValueError(f"{found!r} is none of {', '.join(known)}")
    return found


def octets(value: object) -> bytes:
    """Bytes from hexadecimal."""
    return bytes.fromhex(text(value))


def operation(value: object) -> str:
    """The name of an `Operation`. Raises KeyError for what is none."""
    return Operation[text(value)].name


def _enum(kind: type[E]) -> Callable[[object], E]:
    return lambda value: kind(text(value))


SITE: Final[dict[str, Callable[[object], Any]]] = {
    "address": number,
    "instruction": text,
    "behaviour": text,
    "operation": operation,
    "symbol": text,
    "section": text,
    "file_offset": number,
    "start": number,
    "old": octets,
    "new": octets,
    "tactic": _enum(Tactic),
    "placing": _enum(Placing),
    "reason": text,
    "refused": text,
    "fixup": number,
    "confidence": _enum(Confidence),
    "confidence_reason": text,
    "state": text,
    "steps": _numbers,
    "home": number,
}
"""A site's fields, and how each is read."""
_FIXUP: dict[str, Callable[[object], Any]] = {
    "address": number,
    "site": number,
    "code": octets,
    "clobbers": texts,
    "window": octets,
}
_CALL: dict[str, Callable[[object], Any]] = {
    "address": number,
    "site": number,
    "operation": operation,
    "resume": number,
    "instruction": octets,
}


def _plain(item: object, form: dict[str, Callable[[object], Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in form:
        value = getattr(item, name)
        if isinstance(value, bytes):
            value = value.hex()
        elif isinstance(value, Enum):
            value = value.value
        elif isinstance(value, tuple):
            value = list(value)
        row[name] = value
    return row


def _read(row: dict[str, Any], form: dict[str, Callable[[object], Any]]) -> dict[str, Any]:
    return {name: read(row[name]) for name, read in form.items()}


def _fixup(row: dict[str, Any]) -> PlannedFixup:
    calls = tuple(PlannedCall(**_read(call, _CALL)) for call in row["calls"])
    return PlannedFixup(**_read(row, _FIXUP), calls=calls)


def _grouped(changes: tuple[PlannedChange, ...]) -> list[dict[str, Any]]:
    """Changes that differ in their place only, together: there are thousands."""
    groups: dict[tuple[str, bytes, bytes], list[PlannedChange]] = {}
    for change in changes:
        groups.setdefault((change.reason, change.old, change.new), []).append(change)
    return [
        {
            "reason": reason,
            "old": old.hex(),
            "new": new.hex(),
            "addresses": [change.address for change in group],
            "file_offsets": [change.file_offset for change in group],
        }
        for (reason, old, new), group in groups.items()
    ]


def _changes(group: dict[str, Any]) -> list[PlannedChange]:
    old, new, reason = octets(group["old"]), octets(group["new"]), text(group["reason"])
    places = zip(group["addresses"], group["file_offsets"], strict=True)
    return [PlannedChange(number(address), number(offset), old, new, reason) for address, offset in places]
