"""Contents of pages by number are what they were, however they are kept and whatever was forgotten."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paravirt.services.page_store import ZERO, PageStore, filled

PAGES = 6
_WRITES = st.lists(
    st.tuples(st.integers(0, PAGES - 1), st.sampled_from([1, 3, 95, 96, 97, 200, 512]), st.integers(0, 9)),
    max_size=5,
)
"""(page, words of it that change, seed) of each."""


@settings(max_examples=60, deadline=None)
@given(st.lists(_WRITES, min_size=1, max_size=6), st.data())
def test_contents_are_what_they_were(rounds: list[list[tuple[int, int, int]]], data: st.DataObject) -> None:
    store, rows = PageStore(), np.zeros((PAGES, 512), dtype=np.uint64)
    current = np.full(PAGES, ZERO, dtype=np.int32)
    kept = [(current.copy(), rows.copy())]
    for writes in rounds:
        for page, count, seed in writes:
            random = np.random.default_rng(seed)
            rows[page, random.permutation(512)[:count]] = random.integers(0, 3, count)
        pages = np.unique(np.array([page for page, _, _ in writes], dtype=np.int64))
        pages = pages[(current[pages] != ZERO) | filled(rows, pages)]
        if len(pages):
            current[pages] = store.add(rows, pages, current[pages])
        kept.append((current.copy(), rows.copy()))
    forgotten = data.draw(st.sets(st.integers(0, len(kept) - 1)))
    kept = [one for number, one in enumerate(kept) if number not in forgotten or number == len(kept) - 1]
    renumbered = store.keep_only(np.unique(np.concatenate([numbers for numbers, _ in kept])))
    for numbers, contents in kept:
        now = np.array([ZERO if number == ZERO else renumbered[number] for number in numbers], dtype=np.int32)
        order = np.random.default_rng(len(kept)).permutation(PAGES)
        out = np.ones((PAGES, 512), dtype=np.uint64)
        store.fetch(now[order], out, order)
        assert (out == contents).all()
        assert (store.one(int(now[0])) == contents[0]).all()


def test_a_page_that_changes_in_few_words_costs_few_words() -> None:
    store, rows = PageStore(), np.arange(512 * 1000, dtype=np.uint64).reshape(-1, 512)
    pages = np.arange(1000)
    first = store.add(rows, pages, np.full(1000, ZERO, dtype=np.int32))
    before = store.bytes
    assert before == rows.nbytes
    current = first
    for number in range(10):
        rows[:, number] += np.uint64(1)
        current = store.add(rows, pages, current)
    assert store.bytes - before < rows.nbytes // 4
    renumbered = store.keep_only(np.unique(current))
    out = np.zeros_like(rows)
    store.fetch(renumbered[current], out, pages)
    assert (out == rows).all()
