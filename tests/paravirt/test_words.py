"""Words of a page in the guest's byte order."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paravirt.words import words

ORDERS = ("little", "big")


@given(order=st.sampled_from(ORDERS), size=st.sampled_from((4, 8)), index=st.integers(0, 7), data=st.data())
def test_a_word_is_the_bytes_that_the_guest_sees(order: str, size: int, index: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(0, (1 << 8 * size) - 1))
    page = memoryview(bytearray(64))
    seen = words(page, size, order)
    seen[index] = value
    assert seen[index] == value
    assert bytes(page[index * size : (index + 1) * size]) == value.to_bytes(
        size, "little" if order == "little" else "big"
    )
    assert bytes(seen.cast("B")) == bytes(page)


@pytest.mark.parametrize("order", ORDERS)
def test_no_word_lies_outside_of_the_page(order: str) -> None:
    seen = words(memoryview(bytearray(16)), 4, order)
    assert len(seen) == 4
    with pytest.raises(IndexError):
        seen[4]
    with pytest.raises(IndexError):
        seen[4] = 1


def test_words_of_the_hosts_order_are_a_memoryview() -> None:
    assert isinstance(words(memoryview(bytearray(16)), 8, sys.byteorder), memoryview)
