"""Rows of the coprocessor instructions, for both states: those of T32 are those of A32 with condition AL.

Room: `emulator/isa/arm`, data. Made from `system_registers`: one row a register and direction, and one for all that
have no name. In user mode an access without a right is UNDEFINED (ARM B3.15.3), so these are the privileged rows.
"""

from __future__ import annotations

from emulator.isa.arm.row import BEHAVIOUR, BOTH, CALL, CONTROL, INLINE, LEAKS, NEVER, T32, TRAP, TRAPS, row
from emulator.isa.arm.system_registers import BARRIERS, FLOATING_POINT, SYSTEM_REGISTERS, SystemRegister
from emulator.isa.operation import Operation
from emulator.isa.sensitive import Pattern, Route, SensitiveInstruction

_OTHER_NOTE = "All that the manual gives no name, or leaves to the implementation."
_INLINE = {"TPIDRURO", "TPIDRPRW", "TPIDRURW", "CTR", "CPACR", "FPEXC"}
"""Registers whose accesses another word or a fixup can do, besides cache maintenance."""


def _place(state: str, mask: int, value: int, unless: tuple[tuple[int, int], ...] = ()) -> Pattern:
    """The pattern of a coprocessor instruction in a state, from that of A32 without its condition."""
    if state == T32:
        return Pattern(mask | 0xF000_0000, value | 0xE000_0000, unless)
    return Pattern(mask, value, (NEVER, *unless))


def word_of(register: SystemRegister, read: bool) -> tuple[int, int]:
    """Mask and value of the access to a register, condition left open."""
    coprocessor = register.coprocessor << 8
    if register.wide:
        return 0x0FF0_0FFF, (0x0C50_0000 if read else 0x0C40_0000) | coprocessor | register.opc1 << 4 | register.crm
    value = 0x0E00_0010 | register.opc1 << 21 | register.crn << 16 | coprocessor | register.opc2 << 5 | register.crm
    return 0x0FFF_0FFF, value | (1 << 20 if read else 0)


def _example(register: SystemRegister, read: bool) -> str:
    name = {(0, 0): "mcr", (0, 1): "mrc", (1, 0): "mcrr", (1, 1): "mrrc"}[register.wide, read]
    if register.wide:
        return f"{name} p{register.coprocessor}, {register.opc1}, r0, r1, c{register.crm}"
    return f"{name} p{register.coprocessor}, {register.opc1}, r0, c{register.crn}, c{register.crm}, {register.opc2}"


def _manual(register: SystemRegister) -> str:
    if register.coprocessor == 14:
        return "C11.11" if register.opc1 == 0 else "A2.10"
    return "B4.1" if register.crn != 7 and register.crn != 8 else "B4.2"


def _access(state: str, register: SystemRegister, read: bool) -> SensitiveInstruction:
    allowed = ("r" if read else "w") in register.user
    operation = register.read_operation if read else register.write_operation
    sensitivity = BEHAVIOUR if read else CONTROL
    if operation is Operation.TRANSLATE_ADDRESS:
        sensitivity = BOTH
    mnemonic = {(0, 0): "MCR", (0, 1): "MRC", (1, 0): "MCRR", (1, 1): "MRRC"}[register.wide, read]
    return row(
        f"{mnemonic} {register.name}",
        (_place(state, *word_of(register, read)),),
        state,
        LEAKS if allowed and not register.condition else TRAPS,
        sensitivity,
        operation,
        INLINE if register.name in _INLINE or operation is Operation.MAINTAIN_CACHES else CALL,
        _example(register, read),
        _manual(register),
        register.condition if allowed else "",
        register.note,
    )


def _others(state: str, coprocessor: int, wide: bool, read: bool) -> SensitiveInstruction:
    """The accesses to what has no name."""
    mnemonic = {(0, 0): "MCR", (0, 1): "MRC", (1, 0): "MCRR", (1, 1): "MRRC"}[wide, read]
    named = [
        word_of(register, read)
        for register in SYSTEM_REGISTERS
        if register.coprocessor == coprocessor and register.wide == wide and (("r" if read else "w") in register.access)
    ]
    if not wide and coprocessor == 15 and not read:
        named += [(0x0FFF_0FFF, 0x0E07_0F10 | opc2 << 5 | crm) for crm, opc2 in BARRIERS]
    if wide:
        mask, value = 0x0FF0_0F00, (0x0C50_0000 if read else 0x0C40_0000) | coprocessor << 8
        example = f"{mnemonic.lower()} p{coprocessor}, 7, r0, r1, c15"
    else:
        mask, value = 0x0F10_0F10, 0x0E00_0010 | coprocessor << 8 | (1 << 20 if read else 0)
        # An opc1 of 5 or 6 with CRn 15 names nothing that a processor is known to have.
        example = f"{mnemonic.lower()} p{coprocessor}, 5, r0, c15, c15, 7"
    return row(
        f"{mnemonic} p{coprocessor}, other",
        (_place(state, mask, value, tuple(named)),),
        state,
        TRAPS,
        BEHAVIOUR if read else CONTROL,
        Operation.READ_SYSTEM_REGISTER if read else Operation.WRITE_SYSTEM_REGISTER,
        CALL,
        example,
        "B3.15" if coprocessor == 15 else "C6.4",
        note=_OTHER_NOTE,
    )


def _floating_point(state: str, name: str, number: int, read: bool) -> SensitiveInstruction:
    value = (0x0EF0_0A10 if read else 0x0EE0_0A10) | number << 16
    return row(
        f"{'VMRS' if read else 'VMSR'} {name}",
        (_place(state, 0x0FFF_0FFF, value),),
        state,
        TRAPS,
        BEHAVIOUR if read else CONTROL,
        Operation.READ_SYSTEM_REGISTER if read else Operation.WRITE_SYSTEM_REGISTER,
        INLINE if name in _INLINE else CALL,
        f"vmrs r0, {name.lower()}" if read else f"vmsr {name.lower()}, r0",
        "B9.3.21" if read else "B9.3.22",
    )


def _debug_channel(state: str, load: bool) -> SensitiveInstruction:
    """LDC and STC of the debug communications channel."""
    value = 0x0C10_5E00 if load else 0x0C00_5E00
    return row(
        f"{'LDC' if load else 'STC'} p14, c5",
        (_place(state, 0x0E50_FF00, value, ((0x01A0_0000, 0),)),),
        state,
        TRAPS,
        BOTH if load else BEHAVIOUR,
        Operation.ACCESS_DEBUG_CHANNEL,
        TRAP,
        f"{'ldc' if load else 'stc'} p14, c5, [r1], #4",
        "C6.4.1",
        "DBGDSCR.UDCCdis = 1",
    )


def coprocessor_rows(state: str) -> tuple[SensitiveInstruction, ...]:
    """All coprocessor rows of one state."""
    rows: list[SensitiveInstruction] = []
    for register in SYSTEM_REGISTERS:
        rows += [_access(state, register, letter == "r") for letter in register.access]
    for coprocessor in (15, 14):
        rows += [_others(state, coprocessor, wide, read) for wide in (False, True) for read in (True, False)]
    rows += [_debug_channel(state, load) for load in (True, False)]
    for name, number, access in FLOATING_POINT:
        rows += [_floating_point(state, name, number, letter == "r") for letter in access]
    assert all(one.routes[-1] is Route.TRAP for one in rows)
    return tuple(rows)
