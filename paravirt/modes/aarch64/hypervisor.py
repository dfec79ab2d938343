"""The hypervisor of AArch64 guests: which exceptions are an operation, a fill or the guest's own, and the real state.

Room: `paravirt/modes/aarch64`. Kernel and user code run at real EL0, in two views of the engine. Devices are not
mapped: an access is taken apart and done here, so that an interrupt it raises comes before the next instruction. It is
the `Context` of `paravirt.operations.aarch64`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from emulator.board.arm_boot import ArmEntry
from emulator.board.virt import UART, Virt
from emulator.clock import NANOSECONDS
from emulator.devices.arch_timer import FREQUENCY
from emulator.engine.aarch64 import MAY_CACHE, MAY_MASK, MAY_TYPE, MAY_ZERO, Passage, PassingAccess, QuietAccess
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.access import Access
from emulator.isa.aarch64.exceptions import AArch64Exception
from emulator.isa.aarch64.identity import IDENTITY
from emulator.isa.aarch64.paging import SCTLR_M
from emulator.isa.aarch64.registers import REGISTERS
from emulator.isa.aarch64.table import TABLE
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.operation import Operation
from emulator.isa.paging import USER_RIGHTS
from emulator.machine import EndKind, Machine, Outcome
from paravirt import abi, layout
from paravirt.hypervisor import Handlers, Prepared
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes.aarch64 import debug
from paravirt.modes.aarch64.emulated import UNMAPPED
from paravirt.modes.aarch64.saved import AArch64Saving
from paravirt.modes.aarch64.shadow import AArch64Shadow
from paravirt.modes.aarch64.vcpu import AArch64VirtualCpu
from paravirt.operations.aarch64 import prepare
from paravirt.translator import Translator

_REAL_SCTLR: Final = 0x30D0_0801
_REAL_TCR: Final = 16 | 16 << 16 | 2 << 30 | 2 << 32
"""Both halves of 48 bits by 4 KiB pages, 40-bit physical addresses."""
_REAL_MAIR: Final = 0xFF
_KERNEL_MAY: Final = MAY_ZERO | MAY_TYPE | MAY_CACHE
_USER_MAY: Final = MAY_ZERO | MAY_TYPE | MAY_CACHE
_NONE: Final = 0xFFFF_FFFF_FFFF_FFFF


class AArch64Hypervisor(AArch64Saving):
    """Runs one AArch64 guest. `Context` of the operations, and handler of the engine's exits."""

    WINDOW = abi.AARCH64
    LAYOUT = layout.AARCH64
    FOLLOWS_STORES = True
    USER_LEVEL = 0

    board: Virt

    def __init__(self, machine: Machine, translator: Translator, *, timed: bool = False) -> None:
        super().__init__(machine, translator, timed=timed)
        self._masks_native = getattr(translator, "mode", "") in ("inline", "auto")

    def _make(self) -> None:
        memory = self.machine.memory
        self._registers = self.engine.registers
        self.vcpu = AArch64VirtualCpu(self._registers, memory.view, memory.base, self.shared)
        self.shadow = AArch64Shadow(self.engine, memory, self.vcpu.context)
        for one in REGISTERS:
            if one.kind == "identification" and not one.feature and one.name != "CSSELR_EL1":
                self.vcpu.system[one.encoding] = self._registers.system(one.encoding)
        self.vcpu.system |= IDENTITY
        self._debug = debug.DebugEvents(self.engine, self.vcpu)
        self._devices: dict[int, int] = {}
        """Pages of devices in the kernel's view: guest-virtual page -> guest-physical page."""
        self._accesses: dict[int, Access | None] = {}
        """Words, taken apart."""
        self._access_at: dict[int, Access] = {}
        """What stands at addresses of the kernel's code that is executed now."""
        self._access_pages: set[int] = set()
        """The pages that these are in."""
        self._quiet: dict[tuple[int, int], QuietAccess] = {}
        """Accesses to the serial port that the engine does without an exit, by place and address."""
        self._serial_status, self._serial_posts = -1, False
        self._late_writes = self.exits.cell("device write", "late")
        self._masks_native = False
        """The kernel's accesses to DAIF need no exit while no interrupt waits for them, nor do reads of the counter."""
        self._may = -1
        self._guest_words = memory.view.cast("Q")
        self._memory_base, self._memory_end = memory.base, memory.base + memory.view.nbytes
        self._passages: dict[int, tuple[int, int, int]] = {}
        """Pages of passage: generation of the walk, index of the page's entry in memory, and that entry."""
        self._passages_counted = self.exits.cell("access to a page of passage", "emulated")
        self._open_passage: Passage | None = None
        """The page of passage that the engine knows; and the accesses that it knows, by their places."""
        self._passers: dict[int, PassingAccess] = {}
        self.exits.add_from("READ_TIME_STAMP", "quiet", self.engine.take_answered)
        self.exits.add_from("access to a page of passage", "quiet", self.engine.take_passed)
        self._frame_kinds = self.shadow.frames.kind.data
        self.shadow.on_mapped = self._mapped
        self._mapped()

    def _own_memory(self) -> Mapping[int, memoryview]:
        return {layout.AARCH64.tables: memoryview(self.shadow.pool.memory)}

    def _handlers(self) -> Handlers:
        handlers = {ExitKind.FAULT: self._fault, ExitKind.HALT: self._waited, ExitKind.UNBACKED: self._unbacked}
        return {**handlers, ExitKind.BREAKPOINT: self._breakpoint}

    def enter(self, state: ArmEntry) -> None:
        """Set the virtual CPU up as the boot protocol says."""
        vcpu, gpr = self.vcpu, self.vcpu.gpr
        for number in range(32):
            gpr[number] = 0
        gpr[0] = state.device_tree
        registers = self._registers
        registers.nzcv, registers.daif = 0, x.MASKS
        registers.level = 0
        self.engine.set_control(_REAL_SCTLR, _REAL_TCR, _REAL_MAIR)
        vcpu.pc = state.pc
        self._view_level = vcpu.level
        self.shadow.use(KERNEL_VIEW)
        self._allow()
        self._listen()

    def _make_ready(self) -> None:
        self.engine.set_control(_REAL_SCTLR, _REAL_TCR, _REAL_MAIR)
        self._listen()

    def _listen(self) -> None:
        """Have the engine keep stores to the serial port, and know when it may."""
        self.engine.ask_floating_point(self.vcpu.rights)
        self.engine.hand_up_stores(self._store_late)
        self.engine.trust_mappings()
        word = self.shared[UNMAPPED : UNMAPPED + 1]
        self.engine.prepare_passages(self._memory_base, self.machine.memory.view, self._frame_kinds, word)
        self.board.uart.watch_quiet(self._serial_quiet)
        self.machine.clock.on_jump = self._time_jumped
        self._time_jumped()

    def _time_jumped(self) -> None:
        """The counter is another function of progress: the engine answers reads of it, where they need no exit."""
        line, per_tick = self.machine.clock.line, NANOSECONDS // FREQUENCY
        if self._masks_native and line is not None and per_tick & per_tick - 1 == 0:
            self.engine.answer_counter(*line, per_tick.bit_length() - 1)

    def _mapped(self) -> None:
        """A page was mapped: nothing is known to be unmapped any more."""
        self.shared[UNMAPPED] = _NONE

    # -- delivery -------------------------------------------------------------------------------

    def _allow(self) -> None:
        """Load what the guest may do without an exit: its masks, while its kernel runs and no interrupt waits."""
        if self.vcpu.level == 0:
            may = _USER_MAY & self.vcpu.context.sctlr
        else:
            may = _KERNEL_MAY | (MAY_MASK if self._masks_native and not self.board.intr else 0)
        state = may | self.vcpu.level
        if state != self._may:
            self._may = state
            self.engine.allow_user(may, self.vcpu.level == 1)

    def _settle(self) -> None:
        super()._settle()
        self._allow()

    def _line_changed(self, level: bool) -> None:
        super()._line_changed(level)
        self._allow()

    def _take_interrupt(self) -> None:
        self._event("interrupt", x.IRQ, 0, self.vcpu.pc)
        self.vcpu.take(x.IRQ)

    def _inject(self, fault: ArchitecturalException) -> None:
        self.vcpu.raise_exception(fault)

    def _switch(self, view: int) -> None:
        self.shadow.use(view)
        self._allow()
        if self.vcpu.stepping and view == USER_VIEW:
            self._registers.stepping = True

    # -- operations at a site -------------------------------------------------------------------

    def _fetch(self, pc: int) -> bytes:
        return self.vcpu.fetch(pc)

    def _prepare_instruction(self, pc: int, code: bytes) -> Prepared | None:
        if len(code) < 4:
            return None
        word = int.from_bytes(code, "little")
        row = TABLE.row_of(word)
        if row is None or row.operation in (Operation.SYSTEM_CALL, Operation.BREAKPOINT):
            return None
        action = prepare(self, word, row)
        return Prepared(row.operation, 4, action) if action is not None else None

    # -- exits ----------------------------------------------------------------------------------

    def _fault(self, exit_: Exit) -> None:
        kind = exit_.vector
        if kind in (x.UNKNOWN, x.SYSTEM_REGISTER, x.WAITING):
            self._undefined(kind)
        elif kind == x.DATA_LOWER:
            self._data_abort(exit_.address, exit_.error)
        elif kind == x.FETCH_LOWER:
            self._fetch_abort(exit_.address)
        elif kind == x.SVC:
            self._system_call(exit_)
        elif kind == x.STEP_LOWER:
            self._stepped()
        else:
            self._refuse(AArch64Exception(kind, exit_.error & 0x1FF_FFFF, exit_.address))

    def _undefined(self, kind: int) -> None:
        pc, vcpu = self._registers.pc, self.vcpu
        if vcpu.level:
            known = self._actions.get(pc) or self._prepare(pc)
            if known is not None:
                action, cell = known
                cell[0] += 1
                self.exits.last = cell
                try:
                    action()
                    if vcpu.stepping:
                        self._step_over()
                except ArchitecturalException as fault:
                    self._raise(fault)
                return
        elif self._perform_for_user(pc):
            return
        self._refuse(x.undefined())

    def _system_call(self, exit_: Exit) -> None:
        vcpu = self.vcpu
        pc = self._registers.pc - 4
        if vcpu.level and self.code.hypercalls and pc in self.code.hypercalls:
            vcpu.pc = pc
            self._perform(pc)
            return
        self.exits.count("SYSTEM_CALL", "fault")
        self._event("system call", vcpu.gpr[8], 0, pc)
        self._registers.clear_exclusive()
        vcpu.take(x.SYNCHRONOUS, exit_.error)

    def _waited(self, _exit: Exit) -> None:
        """WFI at real EL0 traps; an engine that lets it wait comes here."""
        self.exits.count("HALT", "exit")
        if self.vcpu.level:
            self.halted()

    def _breakpoint(self, _exit: Exit) -> None:
        self._refuse(AArch64Exception(x.BREAKPOINT_SAME, debug.ISS))

    def _unbacked(self, exit_: Exit) -> None:
        self._refuse(AArch64Exception(x.FETCH_SAME, x.EXTERNAL_ABORT, exit_.address))

    # -- memory ---------------------------------------------------------------------------------

    def _fetch_abort(self, address: int) -> None:
        if self.vcpu.level and self._fill_window(address):
            return
        self._fill(address, False, True)

    def _data_abort(self, address: int, syndrome: int) -> None:
        write = bool(syndrome & x.WNR)
        level = self.vcpu.level
        if syndrome & 0x3F == x.ALIGNMENT_FAULT:
            self._refuse(AArch64Exception(x.DATA_SAME, syndrome & 0x1FF_FFFF, address))
            return
        if self.shadow.watched and address >> 12 in self._debug.watched and self._watched(address, write):
            return
        if level:
            page = self._devices.get(address >> 12)
            if page is not None:
                self._device(page | address & 0xFFF, address, write)
                return
            if write and address >> 12 == self.shadow.clean_page and self._pass_store(address):
                return
            if self.WINDOW.base <= address < self.WINDOW.base + self.WINDOW.size:
                if syndrome & 0x3C == x.PERMISSION_FAULT or not self._fill_window(address):
                    self._refuse(AArch64Exception(x.DATA_SAME, syndrome & 0x1FF_FFFF, address))
                return
        try:
            walk = self.vcpu.walker.walk(address, write, level == 0, False)
        except ArchitecturalException as fault:
            self._refuse(fault, "page fault to the guest")
            return
        frame = walk.frame
        if not self.vcpu.is_memory(frame):
            if level:
                self._devices[address >> 12] = frame
            self._device(frame | address & 0xFFF, address, write)
            return
        if level and not walk.rights & USER_RIGHTS and not address >> 63 and self.vcpu.context.sctlr & SCTLR_M:
            self._kernel_page_below(address, frame, write)
            return
        if level and not write and self._reads_itself(address, frame):
            return
        if level and self._reused(address, frame, write, walk.entries[1]):
            return
        self.shadow.fill_walked(walk, write)
        self._own_stores()
        self.exits.count("page", "fill")

    def _serial_quiet(self, status: int, posts: bool) -> None:
        self._serial_status, self._serial_posts = status, posts
        self._forget_quiet()

    def _store_late(self, offset: int, data: bytes) -> None:
        """Stores to the serial port's DR that the engine kept, before what came behind them is told."""
        self._late_writes[0] += len(data)
        if self.board.mmio.trace is None:
            self.board.uart.transmit(data)
            return
        for value in data:  # whoever watches devices sees each of them
            self.board.mmio.write(UART + offset, 4, value)

    def _forget_accesses(self) -> None:
        """What stands where in the code may have changed."""
        self._access_at.clear()
        self._access_pages.clear()
        self._forget_quiet()
        if self._passers:
            self._passers.clear()
            self._close_passage()

    def _forget_quiet(self) -> None:
        """What accesses the serial port, and how, may have changed."""
        if self._quiet:
            self._quiet.clear()
            self.engine.be_quiet(())

    def _forget_devices(self) -> None:
        """What the guest has mapped where may have changed."""
        self.vcpu.context.generation += 1
        self._close_passage()
        self._devices.clear()
        self._forget_quiet()

    def _code_changed(self, page: int) -> None:
        if page >> 12 in self._access_pages:
            self._forget_accesses()
        super()._code_changed(page)

    def _code_stored(self, frame: int) -> None:
        self._forget_accesses()
        super()._code_stored(frame)

    # -- one instruction at a time --------------------------------------------------------------

    def _stepped(self) -> None:
        """An instruction is done that was to run alone."""
        vcpu = self.vcpu
        if self._stepping is not None:
            self._end_own_store()
            return
        if self._debug.passing >= 0:
            self.shadow.drop_page(self._debug.passing << 12)
            self._debug.passing = -1
            if not vcpu.stepping:
                self._registers.stepping = False
                return
        if vcpu.level and self._in_fixup(vcpu.pc):
            self._registers.stepping = True  # what the guest takes for one instruction is not done
            return
        self.exits.count("exception to the guest", "fault")
        self._registers.stepping = vcpu.stepping = vcpu.step_begins = False
        self._raise(AArch64Exception(x.STEP_SAME, 0x22 | 1 << 24))

    def _step_over(self) -> None:
        """An operation is done while steps are asked for: it was one, unless it asked for them."""
        vcpu = self.vcpu
        if vcpu.step_begins:
            vcpu.step_begins = False
        elif vcpu.level and self._stepping is None:
            self._stepped()

    def _begin_step(self) -> int:
        guest = int(self._registers.stepping)
        self._registers.stepping = True
        return guest

    def _end_step(self) -> None:
        self._registers.stepping = False

    def _guest_step(self) -> None:
        self._stepped()

    def _raise(self, fault: ArchitecturalException) -> None:
        self._abandon_table_store()
        if self._registers.stepping and self._stepping is None:
            self._registers.stepping = False
        super()._raise(fault)

    # -- what the operations ask for (`operations.aarch64.Context`) -----------------------------

    def halted(self) -> None:
        """WFI: time passes to the next interrupt, masked or not."""
        if self.machine.poll_input is None and not self.board.intr and self.board.next_wake() is None:
            self.end(Outcome(EndKind.HALTED, detail="waiting with no interrupt to come"))
            return
        self._wait_for_interrupt()

    def address_space_changed(self) -> None:
        """TTBR0_EL1 or TTBR1_EL1 were written."""
        self._forget_devices()
        self.shadow.load_root()

    def translation_changed(self) -> None:
        """SCTLR_EL1 or TCR_EL1 were written: everything may be translated otherwise."""
        self._forget_devices()
        self.shadow.change_guest(self.shadow.guest)

    def invalidate(self, address: int, last: bool) -> None:
        """TLBI by address, of the last level only or of all."""
        if not last:
            self.vcpu.context.generation += 1
            self._close_passage()
        if self._devices:
            self._devices.clear()
            self._forget_quiet()
        self.shadow.invalidate(address)

    def invalidate_space(self) -> None:
        """TLBI of one address space."""
        self._forget_devices()
        self.shadow.load_root()

    def invalidate_all(self) -> None:
        """TLBI of everything."""
        self._forget_devices()
        self.shadow.flush_all()

    def read_timer(self, name: str) -> int:
        """The board's generic timer."""
        return self.board.timer.read(name)

    def write_timer(self, name: str, value: int) -> None:
        """The board's generic timer."""
        self.board.timer.write(name, value)
        self._device_written()

    def floating_point_changed(self) -> None:
        """CPACR_EL1 was written."""
        self.engine.floating_point_changed()

    def debug_changed(self) -> None:
        """A debug register was written."""
        if self._debug.changed():
            self.shadow.watched = bool(self._debug.watched)
            self._forget_devices()
            self.shadow.reset()

    def call_firmware(self) -> None:
        """PSCI: function and arguments in X0 to X3."""
        gpr = self.vcpu.gpr
        gpr[0] = self.board.psci.call(gpr[0], [gpr[1], gpr[2], gpr[3]]) & 0xFFFF_FFFF_FFFF_FFFF
        self._device_written()
