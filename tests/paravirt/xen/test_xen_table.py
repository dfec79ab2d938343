"""The one table of hypercalls: every row says what is offered, and dispatch does what it says."""

from __future__ import annotations

import pytest

from emulator.machine import Machine
from paravirt.xen.board import XEN_PV
from paravirt.xen.host import Host
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.public import Errno
from paravirt.xen.stores import change_bits, decode
from paravirt.xen.table import HYPERCALLS, Offer, Operation


def rows() -> list[Operation]:
    return [*HYPERCALLS, *(one for call in HYPERCALLS for one in call.operations)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_row_has_a_handler_or_a_reason(row: Operation) -> None:
    if row.offer is Offer.REFUSED:
        assert row.why
    else:
        assert row.handler is not None


def test_numbers_are_unique() -> None:
    for table in (HYPERCALLS, *(call.operations for call in HYPERCALLS if call.operations)):
        numbers = [row.number for row in table]
        assert len(numbers) == len(set(numbers))


@pytest.fixture(scope="module")
def hypervisor() -> XenHypervisor:
    machine = Machine(Host.machine_size(4 << 20), lambda _data: None, platform=XEN_PV)
    return XenHypervisor(machine, 1024)


@pytest.mark.parametrize("call", [row for row in HYPERCALLS if row.offer is Offer.REFUSED], ids=lambda row: row.name)
def test_a_refused_call_returns_the_error_of_its_row(hypervisor: XenHypervisor, call: Operation) -> None:
    assert hypervisor.call(call.number, 0, 0, 0, 0, 0) == -call.errno


def test_a_number_without_a_row_is_no_call(hypervisor: XenHypervisor) -> None:
    known = {call.number for call in HYPERCALLS}
    for number in range(hypervisor.call_count):
        if number not in known:
            assert hypervisor.call(number, 0, 0, 0, 0, 0) == -Errno.ENOSYS


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("488907", ("register", 3, 0)),  # mov [rdi], rax
        ("4c8907", ("register", 3, 8)),
        ("48c70700000000", ("immediate", 7, 0)),
        ("48c707ffffffff", ("immediate", 7, (1 << 64) - 1)),
        ("488707", ("exchange", 3, 0)),  # xchg [rdi], rax
        ("f0488707", ("exchange", 4, 0)),
        ("f08027fd", ("and", 4, 0xFD)),  # lock and byte [rdi], fd
        ("800f02", ("or", 3, 2)),
        ("f0480fba3705", ("clear", 6, 5)),  # lock btr qword [rdi], 5
        ("480fba2f06", ("set", 5, 6)),
        ("f04c0fb117", ("other", 5, 0)),  # lock cmpxchg [rdi], r10
        ("8907", ("other", 2, 0)),  # four bytes only
        ("06", ("other", 0, 0)),  # no instruction
    ],
)
def test_stores_that_are_done_from_the_instruction(code: str, what: tuple[str, int, int]) -> None:
    found = decode(bytes.fromhex(code) + bytes(8), 0x1000)
    assert found[0] == what[0]
    if what[0] != "other":
        assert found == what


@pytest.mark.parametrize(
    ("kind", "old", "operand", "byte", "word", "flags"),
    [
        ("and", 0x8000_0000_0000_00FF, 0xFD, 0, 0x8000_0000_0000_00FD, 0x80),  # SF, an odd number of ones
        ("and", 0x100, 0x00, 1, 0, 0x44),  # ZF and PF
        ("or", 0, 3, 7, 0x0300_0000_0000_0000, 4),
        ("clear", 0x20, 5, 0, 0, 1),  # CF: it was set
        ("clear", 0, 5, 0, 0, 0),
        ("set", 0x40, 6, 0, 0x40, 1),
        ("set", 0, 0x46, 0, 0x40, 0),  # a bit's number is taken modulo 64
    ],
)
def test_bits_change_as_the_instruction_has_it(
    kind: str, old: int, operand: int, byte: int, word: int, flags: int
) -> None:
    arithmetic = 0x8D5 if kind in ("and", "or") else 1
    assert change_bits(kind, old, operand, byte, 0x246) == (word, 0x246 & ~arithmetic | flags)
