"""The walk of both stages: its loads are as many as the architecture's manuals say, and its worst case as bad."""

from __future__ import annotations

import pytest

from emulator.isa.x86 import walk as w
from emulator.memory import GuestMemory
from paravirt.mmu.two_stage import (
    StageTwo,
    StageTwoFault,
    TwoStageWalker,
    loads_of_a_cold_walk,
    page_misses,
)

RIGHTS = w.PRESENT | w.WRITABLE | w.USER
ADDRESS = 0x1234_5678_9ABC
MEMORY = 1 << 20


class Guest:
    """A guest with one page, whose tables lie as far apart in guest-physical memory as they can: no two share any of
    stage 2's tables."""

    def __init__(self, levels: int, stage_levels: int, spread: int = 39) -> None:
        self.memory = GuestMemory(MEMORY)
        self.levels, self.stage = levels, StageTwo(stage_levels)
        reach = 12 + 9 * stage_levels
        self.places = [index + 1 << min(spread, reach - 4) for index in range(levels + 1)]
        """Guest-physical: the tables from the root down, and the page."""
        for index, table in enumerate(self.places[:-1]):
            shift = 12 + 9 * (levels - 1 - index)
            self.memory.words[(index + 1 << 9) + (ADDRESS >> shift & 511)] = self.places[index + 1] | RIGHTS
            assert table < 1 << reach
        self.walker = TwoStageWalker(self.memory.words, self.stage, levels)

    def map_all(self) -> None:
        """Engine-physical pages follow each other."""
        for index, place in enumerate(self.places):
            self.stage.map(place, index + 1 << 12)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stage_levels", [2, 3, 4, 5])
def test_a_cold_walk_makes_as_many_loads_as_the_product_says(levels: int, stage_levels: int) -> None:
    guest = Guest(levels, stage_levels)
    guest.map_all()
    found = guest.walker.walk(guest.places[0], ADDRESS)
    assert found is not None
    assert found.physical == (levels + 1 << 12) + (ADDRESS & 0xFFF)
    assert found.loads == (levels + 1) * (stage_levels + 1) - 1 == loads_of_a_cold_walk(levels, stage_levels)


def test_four_levels_each_are_24_loads_and_in_the_worst_case_almost_as_many_lines() -> None:
    guest = Guest(4, 4)
    guest.map_all()
    found = guest.walker.walk(guest.places[0], ADDRESS)
    assert found is not None
    assert found.loads == 24
    # Each path through stage 2 has tables of its own; only the root's entries are one line, being neighbours.
    assert found.lines == 24 - 4
    near = Guest(4, 4, spread=12)
    near.map_all()
    found = near.walker.walk(near.places[0], ADDRESS)
    assert found is not None
    assert found.loads == 24
    assert found.lines == 4 + 4  # where all lies together, each level of stage 2 is read in one line


def test_a_combined_entry_costs_no_load_until_it_is_flushed() -> None:
    guest = Guest(4, 4)
    guest.map_all()
    for expected in (24, 0, 0):
        found = guest.walker.walk(guest.places[0], ADDRESS)
        assert found is not None
        assert found.loads == expected
    guest.walker.flush()
    assert guest.walker.walk(guest.places[0], ADDRESS + 1) is not None
    assert guest.walker.loads == 48


def test_every_page_that_a_walk_meets_can_be_missed_and_each_miss_begins_the_walk_anew() -> None:
    for levels in (2, 3, 4):
        stage_levels = 4
        memory = GuestMemory(MEMORY)
        stage, walker = StageTwo(stage_levels), None
        for index in range(levels):  # here stage 2 maps every page to itself, when it is missed
            shift = 12 + 9 * (levels - 1 - index)
            memory.words[(index + 1 << 9) + (ADDRESS >> shift & 511)] = index + 2 << 12 | RIGHTS
        walker = TwoStageWalker(memory.words, stage, levels)
        missed = page_misses(walker, stage, 0x1000, ADDRESS)
        assert missed.faults == levels + 1
        # The walk that misses page k has done k of the guest's entries; the first miss of all stops at stage 2's root.
        restarts = sum(k * (stage_levels + 1) + stage_levels for k in range(1, levels + 1)) + 1
        assert missed.loads == restarts + loads_of_a_cold_walk(levels, stage_levels)
        assert missed.loads > levels**2


def test_what_the_guest_or_stage_two_does_not_map_is_said() -> None:
    guest = Guest(4, 4)
    with pytest.raises(StageTwoFault) as caught:
        guest.walker.walk(guest.places[0], ADDRESS)
    assert caught.value.address & ~0xFFF == guest.places[0]
    guest.map_all()
    assert guest.walker.walk(guest.places[0], 0) is None


def test_a_large_page_of_the_guest_ends_its_walk_early() -> None:
    guest = Guest(4, 4)
    guest.map_all()
    large = 0x4000_0000
    guest.memory.words[(3 << 9) + (ADDRESS >> 21 & 511)] = large | RIGHTS | w.LARGE
    guest.stage.map(large | ADDRESS & 0x1F_F000, 0x9000)
    found = guest.walker.walk(guest.places[0], ADDRESS)
    assert found is not None
    assert found.physical == 0x9000 | ADDRESS & 0xFFF
    assert found.loads == loads_of_a_cold_walk(3, 4)


def test_a_second_stage_of_no_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="give 1 to 5"):
        StageTwo(0)
