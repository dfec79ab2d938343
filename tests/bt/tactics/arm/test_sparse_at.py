"""Judging many words at once says of each what judging it alone says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.tactics.arm.words import AROUND, sparse_at, sparse_words

WORD = st.one_of(
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0xE000_0000, 0xEFFF_FFFF),
    st.builds(lambda word, value: word & 0xF000_003F | value, st.integers(0, 0xFFFF_FFFF), st.just(0x028F_0000)),
    st.builds(lambda word, value: word & 0xF000_003F | value, st.integers(0, 0xFFFF_FFFF), st.just(0x024F_0000)),
)


@given(st.lists(WORD, min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_words_are_judged_together_as_alone(words: list[int]) -> None:
    code = np.array(words, np.uint32)
    alone = []
    for place in range(len(code)):
        first = max(0, place - AROUND)
        alone.append(bool(sparse_words(code[first : place + AROUND + 1])[place - first]))
    assert sparse_at(code, np.arange(len(code))).tolist() == alone
