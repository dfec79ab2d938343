"""The sweep: finds what single decoding finds, gives true page boundaries, survives any bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Code, Decoder, DecoderError

from emulator.isa.x86.decode import LONGEST, PAGE, REPORTED, Found, instruction_at, row_of, sensitive_in, sweep

BASE = 0xFFFF_FFFF_8100_0000
CLI, PUSHFQ, NOP, INT3 = b"\xfa", b"\x9c", b"\x90", b"\xcc"


def boundaries(code: bytes, start: int) -> tuple[list[Found], list[int], int]:
    """The same by one decoder and nothing clever: found, all boundaries, end."""
    found, starts = [], []
    end = len(code)
    decoder = Decoder(64, code[start:], ip=BASE + start)
    for instruction in decoder:
        offset = instruction.ip - BASE
        if decoder.last_error == DecoderError.NO_MORE_BYTES:
            end = offset
            break
        starts.append(offset)
        if instruction.code in REPORTED:
            found.append(Found(offset, instruction.len, instruction.code))
    return found, starts, end


def test_a_sensitive_instruction_is_found_with_offset_length_and_encoding() -> None:
    assert sensitive_in(NOP + CLI + b"\x0f\x20\xd8" + b"\xc3", BASE) == [
        Found(1, 1, Code.CLI),
        Found(2, 3, Code.MOV_R64_CR),
    ]


def test_a_sweep_begins_at_the_given_boundary() -> None:
    code = b"\xb8" + CLI * 4 + CLI  # mov eax, imm32; cli
    assert [found.offset for found in sensitive_in(code, BASE)] == [5]
    assert [found.offset for found in sensitive_in(code, BASE, 1)] == [1, 2, 3, 4, 5]


def test_int3_is_not_reported() -> None:
    assert sensitive_in(INT3 * 10 + CLI, BASE) == [Found(10, 1, Code.CLI)]


def test_fill_of_whole_pages_is_stepped_over_and_nothing_behind_it_is_lost() -> None:
    code = NOP * 100 + INT3 * (3 * PAGE) + CLI
    result = sweep(code, BASE)
    assert result.found == [Found(100 + 3 * PAGE, 1, Code.CLI)]
    assert result.page_starts == [0, PAGE, 2 * PAGE, 3 * PAGE]


def test_an_instruction_across_a_page_boundary_moves_the_next_pages_start() -> None:
    code = NOP * (PAGE - 2) + b"\xb8\xfa\xfa\xfa\xfa" + CLI
    result = sweep(code, BASE)
    assert result.page_starts == [0, PAGE + 3]
    assert result.found == [Found(PAGE + 3, 1, Code.CLI)]


def test_a_sensitive_instruction_across_a_page_boundary_is_found_once() -> None:
    code = NOP * (PAGE - 1) + b"\x0f\x01\x00" + NOP
    assert sensitive_in(code, BASE) == [Found(PAGE - 1, 3, Code.SGDT_M1664)]


def test_pages_are_those_of_the_address_not_of_the_offset() -> None:
    assert sweep(NOP * PAGE, BASE + 0x800).page_starts == [0, 0x800]


def test_an_instruction_cut_by_the_end_is_left_to_the_caller() -> None:
    result = sweep(NOP + b"\x0f\x01", BASE)
    assert result == ([], 1, [0])
    cut = sweep(NOP * (PAGE - 1) + b"\x48\xb8\x00", BASE)
    assert cut.end_offset == PAGE - 1
    assert cut.page_starts == [0, PAGE + 2], "no instruction begins in the second page"


def test_the_end_of_a_sweep_with_no_instruction_cut_is_the_end_of_the_code() -> None:
    assert sweep(NOP * 10, BASE).end_offset == 10
    assert sweep(b"", BASE) == ([], 0, [])


def test_code_at_the_very_top_of_the_address_space_is_swept() -> None:
    assert sensitive_in(NOP * (PAGE - 1) + CLI, (1 << 64) - PAGE) == [Found(PAGE - 1, 1, Code.CLI)]


@pytest.mark.parametrize(("address", "start"), [(-1, 0), ((1 << 64) - 3, 0), (BASE, -1), (BASE, 5)])
def test_code_outside_the_address_space_or_a_start_outside_the_code_is_refused(address: int, start: int) -> None:
    with pytest.raises(ValueError):
        sweep(NOP * 4, address, start)


fragments = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([CLI, PUSHFQ, b"\x0f\x22\xd8", b"\x48\xb8", b"\x66" * 14, INT3 * 70, NOP * 50, b"\x0f\x01\xf8"]),
)


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(fragments, max_size=30), shift=st.integers(0, PAGE - 1), pad=st.integers(0, 2 * PAGE))
def test_a_sweep_agrees_with_one_plain_decoder_on_any_bytes(parts: list[bytes], shift: int, pad: int) -> None:
    code = NOP * pad + b"".join(parts)
    found, starts, end = boundaries(code, 0)
    result = sweep(code, BASE + shift)
    assert result.found == found
    assert result.end_offset == end
    first = -(shift % PAGE)
    expected = [
        next((offset for offset in starts if offset >= page), len(code)) for page in range(first, len(code), PAGE)
    ]
    if end < len(code):  # the cut instruction's beginning is a boundary too
        expected = [
            end if start == len(code) and page <= end else start
            for start, page in zip(expected, range(first, len(code), PAGE), strict=True)
        ]
    assert result.page_starts == expected


def test_instruction_at_gives_none_for_bytes_that_are_no_instruction() -> None:
    assert instruction_at(b"\x06", BASE) is None
    assert instruction_at(b"", BASE) is None
    assert instruction_at(b"\x0f", BASE) is None


def test_instruction_at_looks_at_no_more_than_one_instruction() -> None:
    instruction = instruction_at(CLI + NOP * 1000, BASE)
    assert instruction is not None
    assert (instruction.ip, instruction.len) == (BASE, 1)
    assert LONGEST == 15


def test_an_innocuous_instruction_has_no_row() -> None:
    instruction = instruction_at(NOP, BASE)
    assert instruction is not None
    assert row_of(instruction) is None


@pytest.mark.parametrize("prefix", [b"\x66", b"\xf3", b"\x48", b"\x2e", b"\x4f"])
def test_a_prefixed_pushf_is_still_pushf(prefix: bytes) -> None:
    instruction = instruction_at(prefix + PUSHFQ, BASE)
    assert instruction is not None
    row = row_of(instruction)
    assert row is not None
    assert row.name == "PUSHF"
