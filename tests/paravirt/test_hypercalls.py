"""A hypercall that stands for a whole instruction does what a trap at its site would have done."""

from __future__ import annotations

import pytest

from emulator.isa.operation import Operation
from emulator.machine import EndKind
from paravirt import abi
from paravirt.translator import Fixup, Hypercall, Translation
from tests.emulator.guest_image import HALT, KERNEL
from tests.paravirt.tiny_guest import TinyGuest

SITE = KERNEL + 5
LENGTH = 5


class Calling:
    """A translator of one site, five bytes long: a jump to a fixup that calls the hypervisor and jumps back."""

    def __init__(self, operation: Operation, instruction: bytes) -> None:
        self.call = Hypercall(SITE, operation, abi.FIXUP_BASE + 1, instruction)
        back = SITE + LENGTH - (abi.FIXUP_BASE + 1 + LENGTH) & 0xFFFF_FFFF
        code = b"\xf4\xe9" + back.to_bytes(4, "little")
        self.fixups: tuple[Fixup, ...] = (Fixup(abi.FIXUP_BASE, code, SITE, {abi.FIXUP_BASE: self.call}),)

    def translate(self, address: int, code: bytes, before: bytes, after: bytes, entry: int) -> Translation:
        """The page with the jump in it."""
        patched = bytearray(code)
        fixups, self.fixups = self.fixups, ()
        if address <= SITE < address + 4096:
            there = abi.FIXUP_BASE - (SITE + LENGTH) & 0xFFFF_FFFF
            patched[SITE - address : SITE - address + LENGTH] = b"\xe9" + there.to_bytes(4, "little")
        return Translation(bytes(patched), fixups, 1)


def run(operation: Operation, instruction: str, rax: int = 0) -> TinyGuest:
    """Runs `mov eax, rax`, then the site, padded with NOPs, then the end."""
    code = bytes.fromhex(instruction)
    padded = code.ljust(LENGTH, b"\x90").hex()
    guest = TinyGuest(f"b8{rax.to_bytes(4, 'little').hex()} {padded} {HALT}", translator=Calling(operation, code))
    assert guest.run().kind is EndKind.HALTED
    return guest


def test_the_operation_is_done_and_the_fixup_goes_on_behind_the_call() -> None:
    guest = run(Operation.READ_CONTROL_REGISTER, "0f20c3 9090")  # mov rbx, cr0
    assert guest.vcpu.gpr[3] == guest.vcpu.cr0
    assert guest.hypervisor.exits.counts["READ_CONTROL_REGISTER", "hypercall"] == 1
    assert guest.events == []
    guest.close()


def test_a_fault_is_raised_at_the_site() -> None:
    guest = run(Operation.WRITE_CONTROL_REGISTER, "0f22c0")  # mov cr0, rax, with 0
    assert guest.events[0] == ("exception", 13, 0, SITE)
    guest.close()


@pytest.mark.parametrize("rax", [0, 0x40])
def test_the_call_is_counted_each_time_and_decoded_once(rax: int) -> None:
    guest = run(Operation.WRITE_DEBUG_REGISTER, "0f23c0", rax)  # mov dr0, rax
    assert guest.vcpu.debug[0] == rax
    prepared = guest.hypervisor._actions[abi.FIXUP_BASE]
    assert prepared[1] is guest.hypervisor.exits.cell("WRITE_DEBUG_REGISTER", "hypercall")
    guest.close()
