"""Decoding a page: at once and in parts, from any start, half-patched code included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Decoder, FlowControl

from bt.pagescan import PAGE, offsets_of
from bt.tactics.x86.pagescan import branch_targets, rescan_page, scan_page, with_entry

COMMON = [
    b"\x90", b"\x55", b"\xfa", b"\xfb", b"\x9c", b"\x9d", b"\xc3", b"\xcc", b"\x48\x89\xe5", b"\x0f\x1f\x44\x00\x00",
    b"\xe8\x10\x00\x00\x00", b"\x74\x05", b"\xeb\xf0", b"\x0f\x84\x20\x00\x00\x00", b"\x48\xb8" + bytes(range(8)),
    b"\x0f\x01\x00", b"\x0f\xa2", b"\x48\x8b\x05\x00\x01\x00\x00", b"\xc7\x04\x25\x00\x00\x00\x00\x01\x02\x03\x04",
    b"\x0f\xff\xff", b"\x06", b"\x2e\xe8\x00\x00\x00\x00",
]  # fmt: skip
streams = st.lists(st.sampled_from(COMMON), min_size=40, max_size=80).map(
    lambda pieces: (b"".join(pieces) * (2 * PAGE // max(1, sum(map(len, pieces))) + 1))[: PAGE + 15],
)


@given(streams, st.integers(0, 14))
@settings(max_examples=40, deadline=None)
def test_boundaries_are_those_of_linear_decoding(data: bytes, start: int) -> None:
    scan = scan_page(data[:PAGE], data[PAGE:], start)
    expected, at = [], start
    while at < PAGE:
        expected.append(at)
        instruction = Decoder(64, data[at:], ip=at).decode()
        at += instruction.len if instruction else 1
    assert offsets_of(scan.boundaries).tolist() == expected
    assert scan.overflow == min(at - PAGE, 15)
    assert scan.start == start


@given(streams, st.lists(st.tuples(st.integers(0, PAGE + 14), st.binary(min_size=1, max_size=12)), max_size=6))
@settings(max_examples=80, deadline=None)
def test_decoding_only_what_changed_gives_what_decoding_all_gives(
    data: bytes, changes: list[tuple[int, bytes]]
) -> None:
    new = bytearray(data)
    for at, patch in changes:
        new[at : at + len(patch)] = patch[: len(data) - at]
    before = scan_page(data[:PAGE], data[PAGE:], 0)
    assert rescan_page(data, before, bytes(new)) == scan_page(bytes(new[:PAGE]), bytes(new[PAGE:]), 0)


@given(streams)
@settings(max_examples=40, deadline=None)
def test_branch_targets_are_those_the_decoder_gives(data: bytes) -> None:
    scan = scan_page(data[:PAGE], data[PAGE:], 0)
    begins = np.append(offsets_of(scan.boundaries), PAGE + scan.overflow)
    found = set(branch_targets(np.frombuffer(data, np.uint8), begins).tolist())
    expected = set()
    for at in offsets_of(scan.boundaries).tolist():
        instruction = Decoder(64, data[at : at + 15], ip=at).decode()
        direct = (FlowControl.CALL, FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH)
        if instruction.flow_control in direct:
            target = instruction.near_branch64
            expected.add(target - (1 << 64) if target >> 63 else target)
    assert found == expected


def page(code: bytes) -> bytes:
    return code.ljust(PAGE, b"\x90")


def test_an_int3_over_a_longer_instruction_is_skipped_whole_where_the_original_is_known() -> None:
    """`text_poke_bp` half done: the first byte is INT3, the other four are the new displacement, F4 FA 9C CF."""
    original = page(b"\x90\xe8\x11\x22\x33\x44\xfa")
    half = page(b"\x90\xcc\xf4\xfa\x9c\xcf\xfa")
    pristine = scan_page(original, b"", 0).boundaries
    scan = scan_page(half, b"", 0, pristine)
    assert [site.offset for site in scan.sites] == [6]
    assert rescan_page(original, scan_page(original, b"", 0), half, pristine) == scan
    assert [site.offset for site in scan_page(half, b"", 0).sites] == [2, 3, 4, 5, 6], "without it, data is patched"


def test_int3_behind_a_return_is_one_byte_even_where_the_original_was_longer() -> None:
    """`jmp __x86_return_thunk` became `ret; int3; int3; int3; int3`: no boundary of the original is inside."""
    pristine = scan_page(page(b"\xe9\x00\x00\x00\x00\xfa"), b"", 0).boundaries
    scan = scan_page(page(b"\xc3\xcc\xcc\xcc\xcc\xfa"), b"", 0, pristine)
    assert [site.offset for site in scan.sites] == [5]


def test_undecodable_bytes_end_at_the_originals_next_boundary() -> None:
    pristine = scan_page(page(b"\x48\xb8" + bytes(8) + b"\xfa"), b"", 0).boundaries
    scan = scan_page(page(b"\x06" + b"\xfa" * 9 + b"\xfa"), b"", 0, pristine)
    assert [site.offset for site in scan.sites] == [10]


def test_where_execution_begins_is_a_boundary() -> None:
    hidden = page(b"\xb8\xfa\xfb\x90\x90\xfa")  # mov eax, imm32 whose bytes are cli; sti; nop; nop
    scan = scan_page(hidden, b"", 0)
    assert [site.offset for site in scan.sites] == [5]
    entered = with_entry(scan, hidden, b"", 1)
    assert [site.offset for site in entered.sites] == [1, 2, 5]
    assert with_entry(scan, hidden, b"", 0) is scan


@pytest.mark.parametrize("length", [0, 1, 14])
def test_an_instruction_across_the_end_is_decoded_with_what_follows(length: int) -> None:
    whole = b"\x90" * (PAGE - 1) + b"\x0f" + b"\xa2".ljust(15, b"\x90")
    scan = scan_page(whole[:PAGE], whole[PAGE : PAGE + length], 0)
    assert [site.offset for site in scan.sites] == ([PAGE - 1] if length else [])
