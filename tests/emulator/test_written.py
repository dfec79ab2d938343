"""Pages that were written are told, by whichever means the host has."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.memory import GuestMemory
from emulator.written import PAGE, ComparedPages, ProtectedPages, TogetherPages, WrittenPages, written_pages

PAGES = 64
LARGE = 512
"""Pages in a large page of the host."""


def protected(memories: Sequence[memoryview]) -> WrittenPages:
    try:
        return together(ProtectedPages, memories)
    except OSError as error:
        pytest.skip(f"the host does not tell which pages are written: {error}")


def compared(memories: Sequence[memoryview]) -> WrittenPages:
    return together(ComparedPages, memories)


def together(make: Callable[[memoryview], WrittenPages], memories: Sequence[memoryview]) -> WrittenPages:
    return TogetherPages([make(memory) for memory in memories], [memory.nbytes for memory in memories])


@pytest.mark.parametrize("make", [protected, compared, written_pages])
@settings(max_examples=20, deadline=None)
@given(rounds=st.lists(st.lists(st.integers(0, 2 * PAGES - 1), max_size=9), max_size=5))
def test_exactly_the_pages_that_were_written_are_told(
    make: Callable[[Sequence[memoryview]], WrittenPages], rounds: list[list[int]]
) -> None:
    first, second = GuestMemory(PAGES * PAGE), memoryview(mmap.mmap(-1, PAGES * PAGE))
    first.view[5] = 1
    written = make([first.view, second])
    assert written.take().tolist() == []
    for number, pages in enumerate(rounds):
        for page in pages:
            memory, at = (first.view, page) if page < PAGES else (second, page - PAGES)
            memory[at * PAGE + 7] = (memory[at * PAGE + 7] + number + 1) & 0xFF
        told = written.take()
        assert isinstance(told, np.ndarray)
        assert set(told.tolist()) <= set(pages)
        if make is not compared:
            assert sorted(told.tolist()) == sorted(set(pages))
    assert written.take().tolist() == []
    written.close()
    written.close()


@settings(max_examples=5, deadline=None)
@given(rounds=st.lists(st.lists(st.integers(0, 2 * LARGE - 1), min_size=1, max_size=9), min_size=1, max_size=4))
def test_memory_that_nobody_had_used_is_told_with_all_that_the_host_makes_of_it(rounds: list[list[int]]) -> None:
    memory = GuestMemory(2 * LARGE * PAGE)
    written = protected([memory.view])
    made: set[int] = set()
    for pages in rounds:
        for page in pages:
            memory.view[page * PAGE + 9] += 1
        told = set(written.take().tolist())
        assert told >= set(pages)
        assert not (told - set(pages)) & made, "what the host had already is told exactly"
        made |= told
    assert written.take().tolist() == []
    written.close()


def test_memory_that_is_watched_already_and_such_as_begins_within_a_page_are_watched_too() -> None:
    with mmap.mmap(-1, 5 * PAGE) as memory:
        whole, within = memoryview(memory)[: 4 * PAGE], memoryview(memory)[16 : 4 * PAGE + 16]
        watching = [written_pages([whole]), written_pages([whole]), written_pages([within, whole])]
        memory[2 * PAGE + 100] = 1
        told = [one.take().tolist() for one in watching]
        for one in watching:
            one.close()
        del watching
        whole.release()
        within.release()
    assert 2 in told[0]
    assert told[1:] == [[2], [2, 6]]


def test_who_forgets_to_close_leaves_no_memory_watched() -> None:
    with mmap.mmap(-1, 4 * PAGE) as memory:
        for number in range(2):
            try:
                watching = ProtectedPages(memoryview(memory))
            except OSError as error:
                if number:
                    raise
                pytest.skip(f"this host does not tell which pages are written: {error}")
            assert watching.take().tolist() == []
            del watching
