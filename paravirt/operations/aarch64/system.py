"""Interrupt masks, TLBI, AT, DC and IC, ERET, HVC, waiting, and LDTR with its like.

Room: `paravirt/operations`. Cache maintenance has no effect on memory that is coherent; what it says about code is
known already, since no page is writable and executable at a time.
"""

from __future__ import annotations

from typing import Final

from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.encoding import fields, named
from emulator.isa.aarch64.exceptions import AArch64Exception
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.operation import Operation
from emulator.isa.paging import GLOBAL
from emulator.isa.sensitive import SensitiveInstruction
from paravirt.operations.aarch64.context import Action, Context, handles

_ZERO_REGISTER: Final = 31
_PAR: Final = BY_NAME["PAR_EL1"].encoding
_NTWI, _NTWE, _DZE, _UCI = 1 << 16, 1 << 18, 1 << 14, 1 << 26
_LINE: Final = 64
_BY_SPACE, _ALL = 2, 0
_LAST_LEVEL: Final = (5, 7)
_ADDRESS: Final = (1 << 44) - 1


@handles(Operation.DISABLE_INTERRUPTS, Operation.ENABLE_INTERRUPTS)
def change_masks(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """MSR DAIFSet and DAIFClr."""
    if row.name.startswith("MSR ALLINT"):
        return None
    vcpu, bits = context.vcpu, (word >> 8 & 15) << 6
    registers = vcpu.registers
    sets = row.operation is Operation.DISABLE_INTERRUPTS

    def action() -> None:
        if vcpu.level == 0:
            raise x.undefined()
        masks = registers.daif
        registers.daif = masks | bits if sets else masks & ~bits
        registers.advance()

    return action


@handles(Operation.INVALIDATE_TRANSLATIONS)
def invalidate(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """TLBI of EL1. By address, the upper bits of which the operand has not got: bit 43 of it is bit 55."""
    _, op1, _, crm, op2 = fields(named(word))
    if op1 or crm not in (1, 3, 7):
        return None
    vcpu, source = context.vcpu, word & 31

    def action() -> None:
        if vcpu.level == 0:
            raise x.undefined()
        vcpu.advance()
        if op2 == _ALL:
            context.invalidate_all()
        elif op2 == _BY_SPACE:
            context.invalidate_space()
        else:
            operand = vcpu.gpr[source] & _ADDRESS if source != _ZERO_REGISTER else 0
            address = (operand | (0xFF_FFFF << 40 if operand >> 43 else 0)) << 12 & 0xFFFF_FFFF_FFFF_F000
            context.invalidate(address, op2 in _LAST_LEVEL)

    return action


@handles(Operation.TRANSLATE_ADDRESS)
def translate(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """AT S1E1R and its like: the result, or why there is none, is in PAR_EL1."""
    if row.note:
        return None
    vcpu, source = context.vcpu, word & 31
    _, _, _, _, op2 = fields(named(word))
    write, user = bool(op2 & 1), op2 >= 2

    def action() -> None:
        if vcpu.level == 0:
            raise x.undefined()
        address = vcpu.gpr[source] if source != _ZERO_REGISTER else 0
        try:
            walk = vcpu.walker.walk(address, write, user, False)
            result = 0xFF << 56 | walk.frame | 1 << 11 | 3 << 7
            assert walk.attributes in (0, GLOBAL)
        except AArch64Exception as fault:
            result = 1 | (fault.error or 0) & 0x3F << 0
            result = 1 | 1 << 11 | ((fault.error or 0) & 0x3F) << 1
        vcpu.system[_PAR] = result
        vcpu.advance()

    return action


@handles(Operation.MAINTAIN_CACHES)
def maintain(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """DC and IC. DC ZVA stores zeros, where the hardware is not let do it."""
    if "else undefined" in row.note:
        return None
    vcpu, source = context.vcpu, word & 31
    zeroes = row.name == "DC ZVA"
    allowed = _DZE if zeroes else _UCI if row.condition else 0

    def action() -> None:
        user = vcpu.level == 0
        if user and not vcpu.context.sctlr & allowed:
            raise x.undefined()
        if zeroes:
            address = (vcpu.gpr[source] if source != _ZERO_REGISTER else 0) & -_LINE
            physical = vcpu.translate(address, True, user)
            if vcpu.is_memory(physical):
                vcpu.write_memory(physical, _LINE, 0)
        vcpu.advance()

    return action


@handles(Operation.RETURN_FROM_EXCEPTION)
def return_from_exception(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """ERET."""
    if row.note:
        return None
    vcpu = context.vcpu

    def action() -> None:
        if vcpu.level == 0:
            raise x.undefined()
        vcpu.return_from_exception()

    return action


@handles(Operation.ENTER_HYPERVISOR)
def call(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """HVC: PSCI."""
    vcpu = context.vcpu

    def action() -> None:
        if vcpu.level == 0:
            raise x.undefined()
        vcpu.advance()
        context.call_firmware()

    return action


@handles(Operation.HALT, Operation.WAIT_FOR_EVENT)
def wait(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """WFI waits for an interrupt; WFE goes on, as if an event had come. At EL0 they trap while SCTLR_EL1 says so."""
    if row.note:
        return None
    vcpu = context.vcpu
    halts = row.operation is Operation.HALT
    allowed = _NTWI if halts else _NTWE
    trapped = x.WAITING

    def action() -> None:
        if vcpu.level == 0:
            if not vcpu.context.sctlr & allowed:
                raise AArch64Exception(trapped, 1 << 24 | 0xE << 20 | (0 if halts else 1))
            vcpu.advance()
            return
        vcpu.advance()
        if halts:
            context.halted()

    return action


@handles(Operation.ACCESS_AS_USER)
def access_as_user(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """LDTR, STTR and their like."""

    def action() -> None:
        context.access_as_user(word)

    return action
