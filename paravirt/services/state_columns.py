"""Shadow tables and translated code as columns, for a file; pages of contents stay apart, where they are stored once.

Room: `paravirt/services`. The other direction validates by `view_state` and `code_state`: what is read here has the
right form, there it must fit the machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from emulator.isa.operation import Operation
from paravirt.mmu.direct_state import DirectState
from paravirt.mmu.shadow import ShadowPaging
from paravirt.services.code_state import CodeState, CopyState, WholeCode
from paravirt.services.columns import Columns, plain, typed
from paravirt.services.view_state import ViewState
from paravirt.translator import Hypercall

_LOW: Final = (1 << 64) - 1
_NAMES: Final = tuple(operation.name for operation in Operation)


def put_views(columns: Columns, state: Any) -> None:
    """Write shadow tables, or whatever views a machine has."""
    if not isinstance(state, ViewState):
        columns.contents["views"] = json.dumps(plain(state), separators=(",", ":")).encode()
        return
    put = columns.put
    put("views.numbers", (state.view, state.window, state.fills, state.prefilled))
    put("views.current", state.current)
    put("views.probe", state.probe)
    _put_keys(columns, "views.roots", 1, state.roots)
    _put_keys(columns, "views.tables", 0, state.tables)
    put("views.source", state.source)
    put("views.span", state.span)
    put("views.misses", state.misses)
    columns.put_groups("views.below", state.below)
    columns.contents["views.levels"] = state.levels
    columns.put_mapping("views.split", state.split)
    columns.contents["views.kinds"] = state.kinds
    columns.put_mapping("views.executors", state.executors)
    columns.put_mapping("views.writers", state.writers)
    put("views.stale", sorted(state.stale))
    put("views.invalidated", state.invalidated, signed=False)
    put("views.reached", (number for pair in state.reached.items() for number in pair))
    put("views.descriptors", (number for pair in state.descriptor_pages.items() for number in pair))


def _put_keys(columns: Columns, name: str, wide: int, keys: Mapping[Any, int]) -> None:
    """What tables are known by, and the tables. The number `wide` of a key may have more than 64 bits: where a guest
    has no table, its name is one beyond all addresses."""
    rows = [(*key, table) for key, table in keys.items()]
    columns.put(name, (number for row in rows for number in (*row[:wide], row[wide] >> 64, *row[wide + 1 :])))
    columns.put(f"{name}.low", (row[wide] & _LOW for row in rows), signed=False)


def _take_keys(columns: Columns, name: str, wide: int, width: int) -> list[tuple[int, ...]]:
    rows = columns.rows(name, width)
    low = columns.take(f"{name}.low", signed=False, length=len(rows))
    return [(*row[:wide], row[wide] << 64 | under, *row[wide + 1 :]) for row, under in zip(rows, low, strict=True)]


def take_views(columns: Columns, shadow: Any) -> Any:
    """Read what views like these wrote. Raises `ValueError` for columns that are none."""
    if not isinstance(shadow, ShadowPaging):
        return typed(shadow.SAVED, json.loads(bytes(columns.raw("views"))))
    view, window, fills, prefilled = columns.take("views.numbers", length=4)
    source = tuple(columns.take("views.source"))
    count = len(source)
    return ViewState(
        view=view,
        current=tuple(columns.take("views.current")),
        window=window,
        probe=tuple(columns.take("views.probe")),
        roots={(region, name, role): table for region, name, role, table in _take_keys(columns, "views.roots", 1, 4)},
        tables={
            (guest, level, role, place): table
            for guest, level, role, place, table in _take_keys(columns, "views.tables", 0, 5)
        },
        source=source,
        span=tuple(columns.take("views.span", length=count)),
        misses=tuple(columns.take("views.misses", length=count)),
        below=tuple(map(frozenset, columns.take_groups("views.below", length=count))),
        levels=bytes(columns.raw("views.levels")),
        split={key: tuple(tables) for key, tables in columns.take_mapping("views.split").items()},
        kinds=bytes(columns.raw("views.kinds")),
        executors={key: frozenset(places) for key, places in columns.take_mapping("views.executors").items()},
        writers={key: tuple(places) for key, places in columns.take_mapping("views.writers").items()},
        stale=frozenset(columns.take("views.stale")),
        invalidated=tuple(columns.take("views.invalidated", signed=False)),
        reached=dict(columns.rows("views.reached", 2)),  # type: ignore[arg-type]
        descriptor_pages=dict(columns.rows("views.descriptors", 2)),  # type: ignore[arg-type]
        fills=fills,
        prefilled=prefilled,
    )


def put_walked(columns: Columns, state: DirectState) -> None:
    """Write what frames are used as where the guest's own tables are walked."""
    put, (last, seen) = columns.put, state.last
    put("walked.numbers", (state.first, state.numbers, *state.counts, last & _LOW, seen + 1), signed=False)
    put("walked.roots", state.roots)
    columns.contents["walked.levels"] = state.levels
    columns.contents["walked.pinned"] = state.pinned
    put("walked.lent", (number for place in state.lent for number in place))
    put("walked.refused", (number for pair in state.refused for number in pair))
    put("walked.opened", (number for frame, pinned, _ in state.opened for number in (frame, int(pinned))))
    links = [[number for link in links for number in link] for _, _, links in state.opened]
    columns.put_groups("walked.links", links, signed=False)


def take_walked(columns: Columns) -> DirectState | None:
    """Read that, None where nothing was written. Raises `ValueError` for columns that are none."""
    if "walked.numbers" not in columns.contents:
        return None
    first, numbers, fills, validated, stores, last, seen = columns.take("walked.numbers", signed=False, length=7)
    opened = columns.rows("walked.opened", 2)
    links = columns.take_groups("walked.links", signed=False, length=len(opened))
    if any(len(flat) % 3 for flat in links):
        raise ValueError("the links of an opened table are no rows of three")
    return DirectState(
        first=first,
        numbers=numbers,
        roots=tuple(columns.take("walked.roots")),
        levels=bytes(columns.raw("walked.levels")),
        pinned=bytes(columns.raw("walked.pinned")),
        lent=tuple((number, index) for number, index in columns.rows("walked.lent", 2)),
        opened=tuple(
            (frame, pinned != 0, tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True)))
            for (frame, pinned), flat in zip(opened, links, strict=True)
        ),
        refused=tuple((reason, count) for reason, count in columns.rows("walked.refused", 2)),
        counts=(fills, validated, stores),
        last=(last, seen - 1),
    )


def put_code(columns: Columns, state: CodeState) -> None:
    """Write translated code, without the contents of copies and of what they were made of."""
    whole = state.whole
    if whole is None:
        raise ValueError("a file needs the whole of the translated code")
    put = columns.put
    put("code.numbers", (state.used, *state.counts))
    put("code.address", (page.address for page in state.pages), signed=False)
    put("code.frame", (page.frame for page in state.pages))
    put("code.physical", (page.physical for page in state.pages))
    columns.put_groups("code.entries", [page.entries for page in state.pages])
    columns.put_groups("code.entered", [sorted(page.entered) for page in state.pages], signed=False)
    put("code.made_for", whole.addresses, signed=False)
    put("fixups.address", whole.fixups, signed=False)
    columns.put_pieces("fixups", whole.fixups.values(), contents="fixups.code")
    put("fixups.sites", (number for pair in whole.sites.items() for number in pair), signed=False)
    calls = whole.hypercalls
    put("calls.address", calls, signed=False)
    put("calls.numbers", (number for call in calls.values() for number in (call.site, call.resume)), signed=False)
    put("calls.operation", (_NAMES.index(call.operation.name) for call in calls.values()))
    columns.contents["calls.names"] = "\n".join(_NAMES).encode()
    columns.put_pieces("calls", [call.instruction for call in calls.values()], contents="calls.code")


def take_code(columns: Columns, sources: list[bytes], copies: bytes) -> CodeState:
    """Read translated code; `sources` are what each page was made of. Raises `ValueError` for columns that are none."""
    used, *counts = columns.take("code.numbers", length=4)
    addresses = columns.take("code.address", signed=False)
    count = len(addresses)
    if len(sources) != count:
        raise ValueError(f"{len(sources)} pages of code for {count} translations")
    pages = tuple(
        CopyState(address, frame, source, physical, tuple(entries), frozenset(entered))
        for address, frame, source, physical, entries, entered in zip(
            addresses,
            columns.take("code.frame", length=count),
            sources,
            columns.take("code.physical", length=count),
            columns.take_groups("code.entries", length=count),
            columns.take_groups("code.entered", signed=False, length=count),
            strict=True,
        )
    )
    made = columns.take("fixups.address", signed=False)
    fixups = dict(zip(made, columns.take_pieces("fixups", len(made), contents="fixups.code"), strict=True))
    sites = columns.take("fixups.sites", signed=False)
    whole = WholeCode(
        copies,
        tuple(columns.take("code.made_for", signed=False)),
        fixups,
        dict(zip(sites[::2], sites[1::2], strict=True)),
        _calls(columns),
    )
    return CodeState(used, (counts[0], counts[1], counts[2]), pages, whole)


def _calls(columns: Columns) -> dict[int, Hypercall]:
    addresses = columns.take("calls.address", signed=False)
    count = len(addresses)
    numbers = columns.take("calls.numbers", signed=False, length=2 * count)
    names = bytes(columns.raw("calls.names")).decode("ascii", "replace").split("\n")
    calls = {}
    for address, site, resume, number, instruction in zip(
        addresses,
        numbers[::2],
        numbers[1::2],
        columns.take("calls.operation", length=count),
        columns.take_pieces("calls", count, contents="calls.code"),
        strict=True,
    ):
        name = names[number] if 0 <= number < len(names) else ""
        if name not in Operation.__members__:
            raise ValueError(f"a fixup calls for {name!r}, which is no operation")
        calls[address] = Hypercall(site, Operation[name], resume, instruction)
    return calls
