"""The memory benchmark: every technique does the same work, exits are exact, and the ratios are those promised."""

from __future__ import annotations

from pathlib import Path

import pytest

from bt.bench import memory, shadow
from bt.image import load
from bt.session import Session
from emulator.errors import Unavailable
from paravirt.mmu.techniques import PARA_TECHNIQUES, TECHNIQUES

KERNEL_BASE = 0xFFFF_FFFF_8000_0000
UNDER_WAY = (
    *("fork 1 MiB", "fork 4 MiB", "copy on write", "fork 16 MiB", "fork 64 MiB", "page fault", "map and unmap"),
    *("PTE modify, in a row", "PTE modify, flush each", "context switch", "process start and end"),
)
"""Operations at the end of which the port's memory is looked at, too: all that there are."""


@pytest.fixture(scope="module")
def ported_runs() -> dict[str, tuple[list[memory.Cost], list[memory.Room]]]:
    """Of the para-virtual port by technique: what it costs, and its memory under way and at the end."""
    path = memory.workload("direct")
    section = next(section for section in load(path).sections if section.name == ".volatile")
    volatile = section.vaddr - KERNEL_BASE, section.size
    found = {}
    for technique in ("snapshot", "lazy", "eager", *PARA_TECHNIQUES):
        rooms: list[memory.Room] = []

        def look(name: str, session: Session, technique: str = technique, rooms: list[memory.Room] = rooms) -> None:
            if name in UNDER_WAY:
                rooms.append(memory.room_of(session, technique, name, [volatile]))

        costs, room = memory.measure(path, technique, look=look)
        found[technique] = costs, [*rooms, room]
    return found


@pytest.fixture
def ported(ported_runs: dict[str, tuple[list[memory.Cost], list[memory.Room]]]) -> dict[str, list[memory.Room]]:
    return {technique: rooms for technique, (_, rooms) in ported_runs.items()}


@pytest.fixture(scope="module")
def runs(
    ported_runs: dict[str, tuple[list[memory.Cost], list[memory.Room]]],
) -> list[tuple[list[memory.Cost], memory.Room]]:
    shadowed = [memory.measure(memory.workload(name), name) for name in TECHNIQUES]
    return shadowed + [(ported_runs[name][0], ported_runs[name][1][-1]) for name in PARA_TECHNIQUES]


@pytest.fixture
def costs(runs: list[tuple[list[memory.Cost], memory.Room]]) -> list[memory.Cost]:
    return [cost for found, _ in runs for cost in found]


def by(costs: list[memory.Cost]) -> dict[tuple[str, str], memory.Cost]:
    return {(cost.technique, cost.operation): cost for cost in costs}


def test_lazy_needs_at_most_a_fifth_of_eagers_exits_on_every_fork(costs: list[memory.Cost]) -> None:
    found = [ratio for ratio in memory.ratios(costs) if ratio[0] == "lazy"]
    assert [operation for _, _, operation, _, _ in found] == [f"fork {size} MiB" for size in (1, 4, 16, 64)]
    assert all(ratio <= most == 0.2 for *_, ratio, most in found)


def test_batched_needs_at_most_a_twentieth_of_eagers_exits_on_every_fork(costs: list[memory.Cost]) -> None:
    found = [ratio for ratio in memory.ratios(costs) if ratio[0] == "batched"]
    assert [operation for _, _, operation, _, _ in found] == [f"fork {size} MiB" for size in (1, 4, 16, 64)]
    assert all(ratio <= most == 0.05 for *_, ratio, most in found)


def test_direct_exits_for_each_load_and_each_store_of_an_entry(costs: list[memory.Cost]) -> None:
    found = by(costs)["direct", "fork 64 MiB"]
    entries = 2 * 64 * 256  # the parent's and the child's
    assert 4 * entries <= found.exits <= 4 * entries + 200  # three levels are read, the last is stored to


def test_eager_exits_twice_for_each_entry_and_lazy_once_for_each_table(costs: list[memory.Cost]) -> None:
    found = by(costs)
    for size in (4, 16, 64):
        entries, tables = size * 256, size // 2
        assert 2 * entries <= found["eager", f"fork {size} MiB"].exits <= 2 * entries + 16
        assert tables <= found["lazy", f"fork {size} MiB"].exits <= tables + 16
        assert found["snapshot", f"fork {size} MiB"].exits <= 4
    assert found["lazy", "PTE modify, in a row"].exits <= 4
    assert found["eager", "PTE modify, in a row"].each >= 2


def test_only_two_stages_lose_their_translations_at_a_context_switch(costs: list[memory.Cost]) -> None:
    found = by(costs)
    for technique in ("snapshot", "lazy", "eager"):
        assert found[technique, "context switch"].each <= 1.1
        assert found[technique, "context switch"].loads == 0
    switch = found["two-stage", "context switch"]
    assert switch.loads >= switch.times * 8 * 24  # eight pages of a working set, four levels each


def test_every_kind_of_work_is_looked_at(costs: list[memory.Cost]) -> None:
    for technique in (*TECHNIQUES, *PARA_TECHNIQUES):
        assert {cost.operation for cost in costs if cost.technique == technique} == set(UNDER_WAY)


def test_instructions_are_counted_in_a_run_that_exits_as_often(costs: list[memory.Cost]) -> None:
    counted, _ = memory.measure(memory.workload(), "lazy", instructions=True)
    for one, other in zip([cost for cost in costs if cost.technique == "lazy"], counted, strict=True):
        assert (one.operation, one.exits, one.blocks) == (other.operation, other.exits, other.blocks)
        assert one.instructions == 0
        assert 3 * other.blocks < other.instructions < 20 * other.blocks


def test_every_technique_leaves_the_same_memory_behind(runs: list[tuple[list[memory.Cost], memory.Room]]) -> None:
    rooms = [room for _, room in runs if room.technique in TECHNIQUES]
    assert len(rooms) == 4
    assert len({(room.digest, room.tables) for room in rooms}) == 1


def test_shadowed_and_walked_tables_leave_the_same_memory_and_the_same_tables_behind(
    ported: dict[str, list[memory.Room]],
) -> None:
    assert len(ported) == 5
    for number, operation in enumerate((*UNDER_WAY, "workload")):
        rooms = [rooms[number] for rooms in ported.values()]
        assert {room.operation for room in rooms} == {operation}
        assert len({room.digest for room in rooms}) == 1
        assert len({room.tables for room in rooms}) == 1
    assert len({room.digest for room in ported["eager"]}) > 6, "most leave something behind"


def test_shadow_tables_take_at_most_two_hundredths_of_the_guests_memory(
    runs: list[tuple[list[memory.Cost], memory.Room]],
) -> None:
    assert all(0 < room.share <= 0.02 for _, room in runs)


def test_the_tables_and_the_plain_values_hold_every_operation(costs: list[memory.Cost], tmp_path: Path) -> None:
    text = memory.as_text(costs, [memory.Room("lazy", "workload", 1 << 20, 1 << 27)])
    assert all(cost.operation in text for cost in costs)
    assert "0.78% of memory" in text
    values = memory.as_json(costs, [])
    assert len(values["costs"]) == len(costs)
    pytest.importorskip("matplotlib")
    first, second = (memory.plot(costs, tmp_path / name) for name in ("a", "b"))
    assert [path.suffix for path in first] == [".svg", ".png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_guest_that_is_no_workload_is_refused_by_a_sentence() -> None:
    path = Path(__file__).parents[3] / "samples/x86_64/hostile/halt.elf"
    with pytest.raises(Unavailable, match="no workload"):
        memory.measure(path, "lazy")


def test_fills_and_resyncs_are_timed_one_by_one() -> None:
    speed = shadow.measure(memory.workload(), memory.MEMORY, runs=1)
    assert speed.fills > 20_000
    assert speed.resyncs > 300
    assert speed.fill > 0
    assert speed.resync > 0
    assert speed.followed > 1000
    assert speed.follow > 0
    text = shadow.as_text(speed)
    assert f"median of {speed.fills} (goal: at most 6)" in text
    assert shadow.as_json(speed)["resync_goal"] == 3.0
