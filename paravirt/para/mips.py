"""Para-virtual guests of MIPS32: page tables in the place of the software TLB, exceptions by their meaning.

Room: `paravirt/para`. The hypervisor walks the guest's tables: a root is a page of 1024 words, each 0 or the
guest-physical address of a table with bit 0 set; a table is 1024 words as EntryLo has them (V, D, PFN). The lower 2 GiB
have a root, KSEG2 the kernel's; KSEG0 and KSEG1 are as ever. A frame's `pc` is a branch when `flags` has bit 31 set:
then its delay slot was interrupted. THREAD_REGISTER is UserLocal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from emulator.board.malta_boot import EntryState
from emulator.engine.exit import Exit
from emulator.engine.mips import EXECUTE, READ, REFILL
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.mips import registers as r
from emulator.isa.mips.exceptions import MipsException
from paravirt.abi.calls import Status
from paravirt.abi.guests import (
    ACCESS_EXECUTE,
    ACCESS_PRESENT,
    ACCESS_READ,
    ACCESS_WRITE,
    CONVENTIONS,
    Convention,
    Trap,
)
from paravirt.modes.mips.hypervisor import MipsHypervisor
from paravirt.modes.mips.vcpu import KERNEL_LEVEL, USER_LEVEL, MipsVirtualCpu
from paravirt.para.calls import Refused
from paravirt.para.guest import ParaGuest

_VALID, _DIRTY = 2, 4
_TABLE: Final = 1
_READABLE: Final = 1 << 29 | 2
"""HWREna: UserLocal and SYNCI_Step."""
_MISSES: Final = frozenset({r.MOD, r.TLBL, r.TLBS})
_ADDRESS_ERRORS: Final = frozenset({r.ADEL, r.ADES})
_STORES: Final = frozenset({r.MOD, r.TLBS, r.ADES})
_SIMPLE: Final = {r.RI: Trap.UNDEFINED, r.BP: Trap.BREAKPOINT, r.SYS: Trap.UNDEFINED}
_INDEX: Final = {f"r{number}": number for number in range(32)}


class ParaMipsCpu(MipsVirtualCpu):
    """A processor whose mapped segments are translated by tables."""

    root = kernel_root = -1
    """Guest-physical addresses; -1 before they are known."""
    load: Callable[[int], int]
    """A word of guest memory; 0 outside of it."""

    def translate(self, address: int, store: bool, user: bool) -> tuple[int, bool, bool]:
        """As the base, by the guest's tables where that looks into the TLB."""
        if r.KSEG0 <= address < r.KSEG2:
            return super().translate(address, store, user)
        kernel = address >= r.KSEG2
        if kernel and user:
            raise MipsException(r.ADES if store else r.ADEL, 0, address)
        at = self.entry_address(address)
        entry = 0 if at < 0 else self.load(at)
        if not entry & _VALID:
            raise MipsException(r.TLBS if store else r.TLBL, REFILL, address)
        if store and not entry & _DIRTY:
            raise MipsException(r.MOD, 0, address)
        return (entry >> 6 << 12 & 0xFFFF_F000) | address & 0xFFF, entry & _DIRTY != 0, kernel

    def entry_address(self, address: int) -> int:
        """Guest-physical address of the last-level entry of a mapped address, or -1."""
        root = self.kernel_root if address >= r.KSEG2 else self.root
        if root < 0:
            return -1
        table = self.load(root + (address >> 22) * 4)
        return (table & ~0xFFF) + (address >> 12 & 0x3FF) * 4 if table & _TABLE else -1


class MipsPara(ParaGuest, MipsHypervisor):
    """One para-virtual MIPS32 guest."""

    CONVENTION: ClassVar[Convention] = CONVENTIONS["mips32"]
    KERNEL_LEVEL: ClassVar[int] = KERNEL_LEVEL
    ROOTS: ClassVar[tuple[str, ...]] = ("root", "kernel_root")
    CPU = ParaMipsCpu
    entry_bytes = 4
    levels = 2
    vcpu: ParaMipsCpu

    def _make(self) -> None:
        super()._make()
        self.byte_order: Any = self.machine.engine.byte_order
        self.vcpu.load = self._word
        self.shadow.window[self.WINDOW.base] = (self.LAYOUT.window, READ | EXECUTE)

    def _word(self, physical: int) -> int:
        return int.from_bytes(self.load(physical, 4), self.byte_order) if self.is_memory(physical, 4) else 0

    def _trap_bytes(self) -> bytes:
        return int.from_bytes(super()._trap_bytes(), "little").to_bytes(4, self.byte_order)

    def enter(self, state: EntryState) -> None:
        """As the boot monitor leaves it, out of the error level."""
        super().enter(state)
        self.vcpu.write("HWREna", _READABLE)
        self._set_open(False)

    # -- registers ------------------------------------------------------------------------------

    def _get(self, register: str) -> int:
        return int(self.vcpu.gpr[_INDEX[register]])

    def _set(self, register: str, value: int) -> None:
        self.vcpu.gpr[_INDEX[register]] = value

    def _registers_out(self) -> tuple[int, ...]:
        registers = self._registers
        return (*self.vcpu.gpr[1:32], registers.hi, registers.lo, r.CAUSE_BD if registers.in_delay_slot else 0)

    def _registers_in(self, values: tuple[int, ...], flags: int) -> None:
        gpr, registers = self.vcpu.gpr, self._registers
        for number, value in enumerate(values[:31], 1):
            gpr[number] = value
        registers.hi, registers.lo = values[31:33]
        self.vcpu.break_link()

    def _begin_again(self) -> int:
        return int(self._registers.restart_address)

    def _at_level(self, user: bool) -> None:
        vcpu = self.vcpu
        vcpu.status = vcpu.status & ~r.STATUS_UM | (r.STATUS_UM if user else 0)

    def _enter_handler(self, handler: int, frame: int) -> None:
        self.vcpu.break_link()
        self.vcpu.pc = handler

    def _floating_point(self, enabled: bool) -> None:
        vcpu = self.vcpu
        if bool(vcpu.status & r.STATUS_CU1) != enabled:
            vcpu.status ^= r.STATUS_CU1

    def _thread_register(self, value: int) -> int:
        self.vcpu.write("UserLocal", value)
        return 0

    # -- memory ---------------------------------------------------------------------------------

    def _reach(self, address: int, write: bool) -> int:
        physical = self.vcpu.translate(address, write, False)[0]
        if not self.is_memory(physical, 1):
            raise Refused(Status.BAD_ADDRESS)
        return physical

    def entry_address(self, address: int) -> int | None:
        """By the guest's tables as they are now."""
        if r.KSEG0 <= address < r.KSEG2:
            return None
        at = self.vcpu.entry_address(address)
        return at if at >= 0 and self.is_memory(at, 4) else None

    def load_root(self, value: int) -> None:
        """Of the lower 2 GiB: what was mapped there goes."""
        self.vcpu.root = value
        self.shadow.space_changed()

    def load_kernel_root(self, root: int, part: int) -> int:
        """Of KSEG2."""
        if part != 1 or not self.is_root(root):
            raise Refused(Status.INVALID)
        self.vcpu.kernel_root = root
        self.forget_all()
        return 0

    def forget_page(self, address: int) -> None:
        """In both views."""
        self.shadow.translation_replaced(address & ~0xFFF, 4096)

    def forget_all(self) -> None:
        """Of both mapped segments."""
        self.shadow.translation_replaced(0, r.KSEG0)
        self.shadow.translation_replaced(r.KSEG2, (1 << 32) - r.KSEG2)

    # -- exceptions -----------------------------------------------------------------------------

    def _fault(self, exit_: Exit) -> None:
        if exit_.vector == r.SYS and self.vcpu.level == USER_LEVEL:
            self.vcpu.advance()
            self._called_by_user(self.vcpu.gpr[2])
            return
        super()._fault(exit_)

    def _explain(self, fault: ArchitecturalException) -> tuple[Trap, int, int]:
        code, address = fault.vector, fault.address
        wild = code in _ADDRESS_ERRORS and address >= r.KSEG0 and self.vcpu.level == USER_LEVEL
        if code in _MISSES or wild:
            access = ACCESS_WRITE if code in _STORES else ACCESS_READ
            if access == ACCESS_READ and address == self._registers.pc:
                access = ACCESS_EXECUTE
            return Trap.PAGE_FAULT, access | (ACCESS_PRESENT if wild or code == r.MOD else 0), address
        if code == r.CPU:
            return (Trap.FLOATING_POINT if fault.error else Trap.PRIVILEGED), fault.error or 0, 0
        trap = _SIMPLE.get(code)
        return (Trap.OTHER, code, fault.error or 0) if trap is None else (trap, 0, 0)
