"""Stores of a guest's kernel into its page tables: tables are mapped read-only, and what is stored is validated.

Room: `paravirt/xen`. MOV and XCHG of a word and changes of single bits, which is nearly all of them, are done here
from the decoded instruction; any other runs alone, by the trap flag, on a mapping that is writable for it, and what it
changed is looked at before anything else runs. A store that is refused reaches the guest as its page fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paravirt.mmu.frame_types import TABLE_1, Refused
from paravirt.xen.access import GuestAccess, NotMapped

if TYPE_CHECKING:
    from paravirt.xen.hypervisor import XenHypervisor

_TF = 0x100
_FRAME = 0x000F_FFFF_FFFF_F000
_MASK = (1 << 64) - 1
Decoded = tuple[str, int, int]
"""What it is ("register", "immediate", "exchange", "and", "or", "clear", "set" or "other"), its length, and the number
of a register, a value, a byte or a bit."""
_BITS = frozenset({"and", "or", "clear", "set"})
_CARRY, _PARITY, _ADJUST, _ZERO, _SIGN, _OVERFLOW = 1, 4, 0x10, 0x40, 0x80, 0x800


class TableStores:
    """The emulation of one guest's stores."""

    def __init__(self, hypervisor: XenHypervisor) -> None:
        self._hypervisor = hypervisor
        self._domain = hypervisor.domain
        self._access: GuestAccess = hypervisor.access
        self._registers = hypervisor.machine.engine.registers
        self._decoded: dict[bytes, Decoded] = {}
        exits = hypervisor.exits
        self._cells = {
            kind: exits.cell(f"STORE_TABLE_ENTRY ({kind})", "fault") for kind in ("mov", "xchg", "bits", "step")
        }
        self._step: tuple[int, int, bytes, tuple[int, ...], int, int] | None = None

    @property
    def stepping(self) -> bool:
        """An instruction runs alone."""
        return self._step is not None

    def emulate(self, address: int) -> bool:
        """The kernel stores at guest-virtual `address`, which is not writable: done, if it is in a table of pages."""
        try:
            place = self._access.entry_address(address)
        except NotMapped:
            return False
        entry = self._domain.host.words[place >> 3]
        frame = (entry & _FRAME) >> 12
        frames = self._domain.frames
        if (
            not entry & 1
            or not self._domain.owns(frame)
            or frames.kind[frame - frames.first] != TABLE_1
            or not frames.uses[frame - frames.first]
        ):
            return False
        kind, length, operand = self._decode()
        if kind == "other" or (address & 7 and kind not in ("and", "or")):
            self._begin_step(place, frame)
            return True
        registers = self._registers
        at = (frame << 9) + (address >> 3 & 511)
        old = self._domain.host.words[at]
        flags = registers.rflags
        if kind in _BITS:
            value, flags = change_bits(kind, old, operand, address & 7, flags)
        else:
            value = operand if kind == "immediate" else registers.gpr[operand]
        try:
            self._domain.tables.store(frame, at & 511, value)
        except Refused as refused:
            self._domain.owned.refused[refused.reason] += 1
            return False
        if kind == "exchange":
            registers.gpr[operand] = old
        elif kind in _BITS:
            registers.rflags = flags
        registers.advance(length)
        self._domain.settle_tables()
        self._count("xchg" if kind == "exchange" else "bits" if kind in _BITS else "mov")
        return True

    def _count(self, kind: str) -> None:
        cell = self._cells[kind]
        cell[0] += 1
        self._hypervisor.exits.last = cell

    def _decode(self) -> Decoded:
        """The instruction at RIP."""
        rip = self._registers.rip
        try:
            code = self._access.read(rip, 15)
        except NotMapped:
            code = self._access.read(rip, 4096 - (rip & 4095))
        known = self._decoded.get(code)
        if known is None:
            known = self._decoded[code] = decode(code, rip)
        return known

    # -- one instruction alone ------------------------------------------------------------------

    def _begin_step(self, place: int, frame: int) -> None:
        registers, words = self._registers, self._domain.host.words
        flags = registers.rflags
        before = bytes(self._domain.page(frame))
        self._step = place, frame, before, tuple(registers.gpr), registers.rip, flags
        words[place >> 3] |= 2
        registers.rflags = flags | _TF
        self._domain.flush()
        self._count("step")

    def _close(self) -> tuple[int, bytes, tuple[int, ...], int, int]:
        assert self._step is not None
        place, frame, before, gpr, rip, flags = self._step
        self._step = None
        self._domain.host.words[place >> 3] &= ~2
        self._registers.rflags = self._registers.rflags & ~_TF | flags & _TF
        self._domain.flush()
        return frame, before, gpr, rip, flags

    def end_step(self) -> None:
        """The instruction is done: validate what it has changed."""
        self._hypervisor.exits.count("STORE_TABLE_ENTRY (done)", "fault")
        frame, before, gpr, rip, flags = self._close()
        page = self._domain.page(frame)
        after = bytes(page)
        if after == before:
            return
        page[:] = before
        old, new = memoryview(before).cast("Q"), memoryview(after).cast("Q")
        registers = self._registers
        try:
            for index in range(512):
                if old[index] != new[index]:
                    self._domain.tables.store(frame, index, new[index])
        except Refused as refused:
            self._domain.owned.refused[refused.reason] += 1
            for number, value in enumerate(gpr):
                registers.gpr[number] = value
            registers.rip, registers.rflags = rip, flags
            self._hypervisor.raise_exception(14, 3, registers.control(2))
        self._domain.settle_tables()

    def abandon(self) -> None:
        """The instruction faulted: it has stored nothing."""
        self._close()


def change_bits(kind: str, old: int, operand: int, byte: int, flags: int) -> tuple[int, int]:
    """The word after AND or OR of one byte of it, or BTR or BTS of one bit; and the flags after that."""
    if kind in ("and", "or"):
        before = old >> 8 * byte & 0xFF
        after = before & operand if kind == "and" else before | operand
        flags &= ~(_CARRY | _PARITY | _ADJUST | _ZERO | _SIGN | _OVERFLOW)
        flags |= (_ZERO if not after else 0) | (after & _SIGN) | (0 if after.bit_count() & 1 else _PARITY)
        return old & ~(0xFF << 8 * byte) | after << 8 * byte, flags
    bit = 1 << (operand & 63)
    flags = flags | _CARRY if old & bit else flags & ~_CARRY
    return (old | bit if kind == "set" else old & ~bit), flags


def decode(code: bytes, address: int) -> Decoded:
    """What an instruction stores, where it is one of the simple ones."""
    from iced_x86 import Code, OpKind, RegisterExt

    from emulator.isa.x86.decode import instruction_at

    instruction = instruction_at(code, address)
    if instruction is None:
        return "other", 0, 0
    length = len(instruction)
    register = RegisterExt.number
    if instruction.code == Code.MOV_RM64_R64 and instruction.op0_kind == OpKind.MEMORY:
        return "register", length, register(instruction.op1_register)
    if instruction.code == Code.MOV_RM64_IMM32 and instruction.op0_kind == OpKind.MEMORY:
        return "immediate", length, instruction.immediate32to64 & _MASK
    if instruction.code == Code.XCHG_RM64_R64 and instruction.op0_kind == OpKind.MEMORY:
        return "exchange", length, register(instruction.op1_register)
    bits = {
        Code.AND_RM8_IMM8: "and",
        Code.OR_RM8_IMM8: "or",
        Code.BTR_RM64_IMM8: "clear",
        Code.BTS_RM64_IMM8: "set",
    }
    if instruction.code in bits and instruction.op0_kind == OpKind.MEMORY:
        return bits[instruction.code], length, instruction.immediate8
    return "other", length, 0
