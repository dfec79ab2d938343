"""The virtual ARMv7-A processor: modes, banks, status and system registers that the guest believes in.

Room: `paravirt/modes/arm`. R0 to R15 are the engine's own, for the guest's current mode; the other modes' SP, LR and
SPSR are kept here. The guest's I bit is in the shared page while its kernel runs, and A, F and the mode are published
beside it, so that fixups read and change it without an exit. The real processor is always in User mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from emulator.engine.arm import ArmEngine
from emulator.isa.arm import exceptions as x
from emulator.isa.arm.exceptions import ArmException
from emulator.isa.arm.paging import SCTLR_EE, SCTLR_TE, SCTLR_V, TranslationContext, Walker
from paravirt import abi

USER, KERNEL = 0, 1
"""Privilege levels PL0 and PL1."""
_INTERRUPT: Final = abi.ARMV7.interrupt_state // 4
_STATUS: Final = abi.ARM_STATUS // 4
_BANK_OF: Final = {x.USR: x.USR, x.SYS: x.USR}
_RIGHTS: Final = abi.ARM_FLOATING_POINT // 4
_COPROCESSORS: Final = abi.ARM_FLOATING_POINT_BITS
FPEXC_EN: Final = 1 << 30
_PAGE: Final = 4096


class ArmVirtualCpu:
    """One virtual processor; see `paravirt.vcpu.VirtualCpu`."""

    def __init__(self, engine: ArmEngine, memory: memoryview, base: int, shared: memoryview) -> None:
        """`memory` begins at guest-physical `base`; `shared` is the page shared with the guest's kernel, as words."""
        self.engine = engine
        self.registers = engine.registers
        self.gpr = engine.registers.gpr
        self.memory = memory
        self.base = base
        self.shared = shared
        self.context = TranslationContext()
        self.walker = Walker(memory.cast("I"), base, self.context)
        self.before_write: Callable[[int], None] = lambda _frame: None
        self._told: set[int] = set()
        self.watch: Callable[[int, int, bool, bool], None] | None = None
        """Called before an access in the guest's place while pages are watched: address, size, write, as user code."""
        self.mode = x.SVC
        self.level = KERNEL
        self._masks = x.MASK_A | x.MASK_F
        """A and F."""
        self._banks: dict[int, list[int]] = {mode: [0, 0, 0] for mode in (x.USR, x.FIQ, x.IRQ, x.SVC, x.ABT, x.UND)}
        self._fast = [0, 0, 0, 0, 0]
        """R8 to R12 of FIQ mode, or of the others while FIQ mode is the current one."""
        self.system: dict[str, int] = {}
        """System registers that have no meaning here but their value, by name."""
        self.vbar = 0
        self.thread_places = abi.ARM_THREADS_PLAIN
        """Where each thread register is while the kernel runs: 0 and 1 are the real TPIDRURW and TPIDRURO of the
        kernel's world, -1 is the word in the shared page."""
        self.rights = shared[_RIGHTS : _RIGHTS + 2]
        """CPACR and FPEXC, of which the guest's kernel may have stored anything; cp10, cp11 and EN count."""
        self.interrupts_enabled = False
        self._publish()

    # -- place and status -----------------------------------------------------------------------

    @property
    def pc(self) -> int:
        """Address of the instruction that the guest is at."""
        return self.gpr[15]

    @pc.setter
    def pc(self, value: int) -> None:
        self.gpr[15] = value & 0xFFFF_FFFF

    @property
    def interrupts_enabled(self) -> bool:
        """Whether CPSR.I is clear. Whatever else a guest put into the shared word means set."""
        return self.shared[_INTERRUPT] == 0

    @interrupts_enabled.setter
    def interrupts_enabled(self, value: bool) -> None:
        self.shared[_INTERRUPT] = 0 if value else x.MASK_I

    def _publish(self) -> None:
        """Tell fixups mode, A and F, as a difference to what the real processor shows of them."""
        self.shared[_STATUS] = self.mode - x.USR + self._masks

    @property
    def masks(self) -> int:
        """CPSR.A, I and F."""
        return self._masks | (0 if self.interrupts_enabled else x.MASK_I)

    @property
    def cpsr(self) -> int:
        """CPSR as the guest must see it."""
        return self.registers.cpsr & ~(x.MODE | x.MASKS) | self.mode | self.masks

    @property
    def cpacr(self) -> int:
        """CPACR."""
        return self.system["CPACR"] & ~_COPROCESSORS | self.rights[0] & _COPROCESSORS

    @cpacr.setter
    def cpacr(self, value: int) -> None:
        self.system["CPACR"] = self.rights[0] = value

    @property
    def fpexc(self) -> int:
        """FPEXC."""
        return self.rights[1] & FPEXC_EN

    @fpexc.setter
    def fpexc(self, value: int) -> None:
        self.rights[1] = value & FPEXC_EN

    @property
    def system_registers(self) -> dict[str, int]:
        """`system`, with CPACR as it is now."""
        return {**self.system, "CPACR": self.cpacr}

    def write_status(self, value: int, bits: int) -> None:
        """Change `bits` of CPSR, as an MSR in a privileged mode does (no execution state: T, IT, J stay)."""
        if bits & x.FLAGS & 0xFFFF_FFFF or bits & x.BIT_E:
            real = self.registers.cpsr
            changed = bits & (x.FLAGS | x.BIT_E)
            self.registers.cpsr = real & ~changed | value & changed
        if bits & x.MASKS:
            masks = self.masks & ~bits | value & bits & x.MASKS
            self._masks = masks & (x.MASK_A | x.MASK_F)
            self.interrupts_enabled = not masks & x.MASK_I
            self._publish()
        if bits & x.MODE:
            self.enter_mode(value & x.MODE)

    def enter_mode(self, mode: int) -> None:
        """Change the mode, banks included. A field that names no mode is UNPREDICTABLE: it stays as it is."""
        if mode not in x.MODES or mode == self.mode:
            return
        gpr = self.gpr
        old, new = self._banks[_BANK_OF.get(self.mode, self.mode)], self._banks[_BANK_OF.get(mode, mode)]
        if (self.mode == x.FIQ) != (mode == x.FIQ):
            for number in range(5):
                gpr[8 + number], self._fast[number] = self._fast[number], gpr[8 + number]
        if old is not new:
            old[0], old[1] = gpr[13], gpr[14]
            gpr[13], gpr[14] = new[0], new[1]
        self.mode = mode
        self.level = USER if mode == x.USR else KERNEL
        self._publish()

    @property
    def spsr(self) -> int:
        """SPSR of the current mode; User and System have none, which is UNPREDICTABLE: 0 here."""
        return self._banks[self.mode][2] if self.mode in self._banks and self.mode != x.USR else 0

    @spsr.setter
    def spsr(self, value: int) -> None:
        if self.mode in self._banks and self.mode != x.USR:
            self._banks[self.mode][2] = value

    def banked(self, mode: int, which: int) -> int:
        """SP (0), LR (1) or SPSR (2) of a mode, the current one included."""
        bank = _BANK_OF.get(mode, mode)
        if which < 2 and bank == _BANK_OF.get(self.mode, self.mode):
            return self.gpr[13 + which]
        return self._banks[bank][which]

    def set_banked(self, mode: int, which: int, value: int) -> None:
        """Change SP, LR or SPSR of a mode, the current one included."""
        bank = _BANK_OF.get(mode, mode)
        if which < 2 and bank == _BANK_OF.get(self.mode, self.mode):
            self.gpr[13 + which] = value
        else:
            self._banks[bank][which] = value

    def high_register(self, number: int, fast: bool) -> int:
        """R8 to R12 of FIQ mode, or of the others."""
        if (self.mode == x.FIQ) == fast:
            return self.gpr[number]
        return self._fast[number - 8]

    def set_high_register(self, number: int, fast: bool, value: int) -> None:
        """Change R8 to R12 of FIQ mode, or of the others."""
        if (self.mode == x.FIQ) == fast:
            self.gpr[number] = value
        else:
            self._fast[number - 8] = value

    def advance(self, length: int) -> None:
        """Move PC over an instruction, and the IT state with it."""
        self.registers.advance(length)

    def condition_holds(self, condition: int) -> bool:
        """Whether an instruction with this condition is executed (ARM A8.3)."""
        if condition >= 14:
            return True
        flags = self.registers.cpsr >> 28
        n, z, c, v = flags >> 3 & 1, flags >> 2 & 1, flags >> 1 & 1, flags & 1
        holds = (z, c, n, v, c and not z, n == v, n == v and not z)[condition >> 1]
        return bool(holds) != bool(condition & 1)

    # -- exceptions -----------------------------------------------------------------------------

    def take(self, vector: int) -> None:
        """Enter an exception; PC is at the instruction that raised it, or that it comes before (ARM B1.8.3)."""
        entry = x.ENTRIES[vector]
        registers, gpr = self.registers, self.gpr
        thumb = registers.thumb
        status = self.cpsr
        back = gpr[15] + (entry.thumb if thumb else entry.arm)
        self.enter_mode(entry.mode)
        gpr[14] = back & 0xFFFF_FFFF
        self.spsr = status
        self._masks |= entry.masks
        self.interrupts_enabled = False
        self._publish()
        sctlr = self.context.sctlr
        wanted = bool(sctlr & SCTLR_TE)
        if thumb != wanted:
            registers.thumb = wanted
        if registers.it_state:
            registers.it_state = 0
        if bool(status & x.BIT_E) != bool(sctlr & SCTLR_EE):
            real = registers.cpsr
            registers.cpsr = real & ~x.BIT_E | (x.BIT_E if sctlr & SCTLR_EE else 0)
        gpr[15] = (0xFFFF_0000 if sctlr & SCTLR_V else self.vbar) + 4 * vector & 0xFFFF_FFFF

    def leave(self, address: int, status: int) -> None:
        """Return from an exception: CPSR := `status`, and go on at `address` (ARM B1.8.3, BranchWritePC)."""
        registers = self.registers
        self.enter_mode(status & x.MODE)
        self._masks = status & (x.MASK_A | x.MASK_F)
        self.interrupts_enabled = not status & x.MASK_I
        self._publish()
        thumb = status & x.BIT_T
        registers.cpsr = status & (x.FLAGS | x.IT | x.BIT_E | x.BIT_T) | x.USR
        registers.clear_exclusive()
        self.gpr[15] = address & (0xFFFF_FFFE if thumb else 0xFFFF_FFFC)

    # -- memory ---------------------------------------------------------------------------------

    @property
    def user(self) -> bool:
        """Whether accesses are made with user code's rights."""
        return self.level == USER

    def _place(self, address: int, write: bool, user: bool, fetch: bool = False) -> int:
        """Offset in memory of what an access reaches. Raises the guest's abort; an external one outside memory."""
        physical = self.walker.walk(address, write, user, fetch).physical | address & 0xFFF
        at = physical - self.base
        if not 0 <= at < len(self.memory):
            vector = x.PREFETCH_ABORT if fetch else x.DATA_ABORT
            raise ArmException(vector, x.EXTERNAL | (x.WRITE if write else 0), address)
        return at

    def offset_of(self, address: int) -> int:
        """Offset in memory of the code at `address`. Raises the guest's abort."""
        return self._place(address, False, self.user, True)

    def read(self, address: int, size: int, user: bool) -> int:
        """Read an aligned 1, 2 or 4 bytes as the guest would. Raises its abort."""
        at = self._place(address, False, user)
        if self.watch is not None:
            self.watch(address, size, False, user)
        return int.from_bytes(self.memory[at : at + size], "little")

    def write(self, address: int, size: int, value: int, user: bool) -> None:
        """Write an aligned 1, 2 or 4 bytes as the guest would. Raises its abort."""
        at = self._place(address, True, user)
        if self.watch is not None:
            self.watch(address, size, True, user)
        frame = at >> 12
        if frame not in self._told:
            self.before_write(frame)
            self._told.add(frame)
        self.memory[at : at + size] = value.to_bytes(size, "little")

    def forget_writes(self) -> None:
        """From now on `before_write` must be asked again."""
        self._told.clear()

    def fetch(self, address: int, size: int) -> bytes:
        """Up to `size` bytes of the guest's own code at `address`."""
        try:
            at = self._place(address, False, self.user, True)
            room = _PAGE - (address & 0xFFF)
            code = bytes(self.memory[at : at + min(size, room)])
            if size > room:
                at = self._place((address + room) & 0xFFFF_FFFF, False, self.user, True)
                code += bytes(self.memory[at : at + size - room])
        except ArmException:
            return b""
        return code

    def peek_page(self, address: int) -> bytes:
        """The page that holds `address` as the guest's kernel would read it; empty where nothing is mapped."""
        try:
            at = self._place(address & 0xFFFF_F000, False, False)
        except ArmException:
            return b""
        return bytes(self.memory[at : at + _PAGE])

    # -- state ----------------------------------------------------------------------------------

    @property
    def state(self) -> tuple[object, ...]:
        """Everything the guest can see of its processor, as a plain value."""
        context = self.context
        return (
            tuple(self.gpr),
            self.cpsr,
            tuple((mode, *(self.banked(mode, which) for which in range(3))) for mode in sorted(self._banks)),
            tuple(self._fast),
            (context.sctlr, context.ttbr0, context.ttbr1, context.ttbcr, context.dacr, self.vbar),
            tuple(sorted(self.system_registers.items())),
            self.fpexc,
        )
