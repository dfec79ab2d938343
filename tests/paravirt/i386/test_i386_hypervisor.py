"""What is the hypervisor's own of 32-bit guests: a handler for every operation, and a window that no guest has."""

from __future__ import annotations

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.errors import GuestFault
from emulator.isa.x86.table import ROWS_32
from emulator.machine import Limits, Machine
from emulator.platforms import PLATFORMS
from paravirt import abi
from paravirt.modes.i386.hypervisor import I386Hypervisor
from paravirt.operations.i386 import PREPARE
from tests.paravirt.i386 import guest
from tests.paravirt.i386.test_small_guests import MACHINE_CODE, of

FLAGS_NAME = "flags and selectors"
STUB = "an interrupt that waited comes once behind a stub's STI"


def test_every_operation_of_the_table_has_a_handler() -> None:
    assert {row.operation for row in ROWS_32} - set(PREPARE) == set()


@pytest.mark.parametrize("paging", ["two levels", "PAE"])
def test_a_guest_that_maps_the_window_is_refused(paging: str) -> None:
    machine = Machine(guest.MEMORY, lambda _: None, platform=PLATFORMS["i386"], limits=Limits(host_seconds=20))
    try:
        view = machine.memory.view
        guest.fill(view, bytes.fromhex(MACHINE_CODE[FLAGS_NAME][paging]), b"")
        base = abi.I386.base
        if paging == "PAE":
            view.cast("Q")[(guest.POINTERS >> 3) + (base >> 30)] = guest.PAE_DIRECTORY | 1
            view.cast("Q")[(guest.PAE_DIRECTORY >> 3) + (base >> 21 & 511)] = 0xE7
        else:
            view.cast("I")[(guest.DIRECTORY >> 2) + (base >> 22)] = 0xE7
        hypervisor = I386Hypervisor(machine, LoadTimeTranslator("trap", isa="i386"))
        hypervisor.enter(guest.ENTRY)
        with pytest.raises(GuestFault, match="the hypervisor's window"):
            hypervisor.run()
    finally:
        machine.close()


@pytest.mark.parametrize("mode", ["native", "trap", "inline"])
def test_an_interrupt_behind_a_stub_comes_once_and_leaves_the_stack(mode: str) -> None:
    end = of(STUB, "two levels", mode)
    assert end.memory[guest.DATA] == 1
    assert end.general[4] == end.general[6] == guest.KERNEL_STACK
