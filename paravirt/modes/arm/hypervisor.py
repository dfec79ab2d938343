"""The hypervisor of ARMv7 guests: which exceptions are an operation, a fill or the guest's own, and the real state.

Room: `paravirt/modes/arm`. Kernel and user code run in real User mode, the kernel in the engine's other world, so that
a switch needs no flush. It is the `Context` of `paravirt.operations.arm`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from emulator.board.arm_boot import ArmEntry, ArmVirt
from emulator.engine.arm import FULL, OTHER, ArmEngine
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.arm import exceptions as x
from emulator.isa.arm.exceptions import ArmException
from emulator.isa.arm.identity import IDENTITY
from emulator.isa.arm.row import A32, T32
from emulator.isa.arm.system_registers import SYSTEM_REGISTERS
from emulator.isa.arm.table import TABLES, instruction
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.operation import Operation
from emulator.machine import EndKind, Machine, Outcome
from paravirt import abi, layout
from paravirt.hypervisor import Handlers, Prepared
from paravirt.mmu.views import USER_VIEW
from paravirt.modes.arm import debug, single
from paravirt.modes.arm.alone import ArmAlone
from paravirt.modes.arm.code import WORLD
from paravirt.modes.arm.shadow import ArmShadow
from paravirt.modes.arm.single import SingleInstruction
from paravirt.modes.arm.vcpu import FPEXC_EN, USER, ArmVirtualCpu
from paravirt.operations.arm import Instruction, action_for
from paravirt.operations.arm.registers import read_thread
from paravirt.translator import Translator

_THREAD = abi.ARM_THREAD // 4
_CACHE_TYPE = abi.ARM_CACHE_TYPE // 4
_USER_LIMIT = abi.ARM_USER_LIMIT // 4
_WIDEST = 7
_ENTRY_T32 = b"\x78\x47\x00\xbf"
"""BX PC and a NOP: how a fixup of a T32 site begins, behind what was moved there at most."""
_REAL_SCTLR = 0x00C5_0079


class ArmHypervisor(ArmAlone):
    """Runs one ARMv7 guest. `Context` of the operations, and handler of the engine's exits."""

    WINDOW = abi.ARMV7
    LAYOUT = layout.ARMV7
    FOLLOWS_STORES = True
    USER_LEVEL = USER
    LONGEST = 4

    engine: ArmEngine
    board: ArmVirt
    vcpu: ArmVirtualCpu
    shadow: ArmShadow

    def __init__(self, machine: Machine, translator: Translator, *, timed: bool = False) -> None:
        super().__init__(machine, translator, timed=timed)
        if getattr(translator, "exchanges_threads", False):
            self.vcpu.thread_places = abi.ARM_THREADS_EXCHANGED

    def _make(self) -> None:
        memory = self.machine.memory
        self._registers = self.engine.registers
        self.vcpu = ArmVirtualCpu(self.engine, memory.view, memory.base, self.shared)
        self.shadow = ArmShadow(self.engine, memory, self.vcpu.context)
        self.shadow.on_limit = self._limit_changed
        for register in SYSTEM_REGISTERS:
            if register.read_operation is Operation.IDENTIFY_PROCESSOR:
                self.vcpu.system[register.name] = self._registers.system(register.name)
        self.vcpu.system |= {**IDENTITY, "FPSID": 0x4102_3075, "MVFR0": 0x1011_0222, "MVFR1": 0x1111_1111}
        self.vcpu.cpacr = 0
        self.shared[_CACHE_TYPE] = self.vcpu.system["CTR"]
        self._debug = debug.DebugEvents(self.engine, self.vcpu)
        self._single = SingleInstruction(self.engine, self.shadow, self._executed)
        self.shadow.frames.on_user_store = self._user_code_stored

    def _own_memory(self) -> Mapping[int, memoryview]:
        return {layout.ARMV7.tables: memoryview(self.shadow.pool.memory), single.PHYSICAL: self._single.memory}

    def _handlers(self) -> Handlers:
        return {
            ExitKind.FAULT: self._fault,
            ExitKind.SYSTEM_CALL: self._system_call,
            ExitKind.HALT: self._halted_by_itself,
            ExitKind.UNBACKED: self._unbacked,
            ExitKind.BREAKPOINT: self._breakpoint,
        }

    def enter(self, state: ArmEntry) -> None:
        """Set the virtual CPU up as the boot protocol says."""
        vcpu, gpr = self.vcpu, self.vcpu.gpr
        self._make_ready()
        for world in (FULL, OTHER):
            self.engine.set_threads(world, 0, 0)
        self._registers.cpsr = x.USR
        for number in range(15):
            gpr[number] = 0
        gpr[1], gpr[2] = 0xFFFF_FFFF, state.device_tree
        vcpu.context.sctlr = 0x00C5_0078
        vcpu.pc = state.pc
        self._view_level = vcpu.level
        self.shadow.load_root()

    def _make_ready(self) -> None:
        for world in (FULL, OTHER):
            self.engine.enable_translation(world, _REAL_SCTLR)
            self.engine.set_domains(0, world)
        self.engine.ask_floating_point(self.vcpu.rights)
        self._registers.fpexc = FPEXC_EN

    # -- delivery -------------------------------------------------------------------------------

    def _take_interrupt(self) -> None:
        self._event("interrupt", x.INTERRUPT, 0, self.vcpu.pc)
        self.vcpu.take(x.INTERRUPT)

    def _inject(self, fault: ArchitecturalException) -> None:
        vcpu = self.vcpu
        if fault.vector == x.DATA_ABORT:
            vcpu.system["DFSR"], vcpu.system["DFAR"] = fault.error or 0, fault.address
        elif fault.vector == x.PREFETCH_ABORT:
            vcpu.system["IFSR"], vcpu.system["IFAR"] = fault.error or 0, fault.address
        vcpu.take(fault.vector)

    def _switch(self, view: int) -> None:
        """Carry the thread registers over: the user's own are in the real ones of its world, while the kernel runs its
        own and one of the user's are in those of the other world (see `abi`)."""
        engine, vcpu = self.engine, self.vcpu
        if view == USER_VIEW:
            engine.set_threads(WORLD[USER_VIEW], self.shared[_THREAD], read_thread(vcpu, "TPIDRURO"))
        else:
            self.shared[_THREAD] = engine.threads(WORLD[USER_VIEW])[0]
        self.shadow.use(view)

    def _line_changed(self, level: bool) -> None:
        super()._line_changed(level)
        self.shadow.guard_shared(level)

    def _limit_changed(self, address: int) -> None:
        self.shared[_USER_LIMIT] = max(0, address - _WIDEST)

    # -- operations at a site -------------------------------------------------------------------

    def _entry_of(self, page: int) -> int:
        """As the base; bit 0 says that it is entered in T32 state. A page may begin within an instruction."""
        if not self._registers.thumb:
            return super()._entry_of(page)
        pc = self.vcpu.pc
        if pc >> 12 != page >> 12:
            pc = pc + 4 if pc + 4 >> 12 == page >> 12 else page
        return pc | 1

    def _fetch(self, pc: int) -> bytes:
        return self.vcpu.fetch(pc, 2 if self._registers.thumb and pc & 0xFFF == 0xFFE else 4)

    def _prepare_instruction(self, pc: int, code: bytes) -> Prepared | None:
        thumb = self._registers.thumb
        if len(code) < (2 if thumb else 4):
            return None
        if thumb:
            first, second = int.from_bytes(code[:2], "little"), int.from_bytes(code[2:4], "little")
            word, size = instruction(first, second)
            if size == 4 and len(code) < 4:
                code = self.vcpu.fetch(pc, 4)
                word = first << 16 | int.from_bytes(code[2:4], "little")
        else:
            word, size = int.from_bytes(code[:4], "little"), 4
        row = TABLES[T32 if thumb else A32].row_of(word, size)
        if row is None or row.operation in (Operation.RAISE_UNDEFINED, Operation.BREAKPOINT):
            return None
        decoded = Instruction(row, row.name.removesuffix(" (T32)"), word, size, thumb)
        return Prepared(row.operation, size, action_for(self, decoded))

    # -- exits ----------------------------------------------------------------------------------

    def _fault(self, exit_: Exit) -> None:
        vector = exit_.vector
        if vector == x.UNDEFINED:
            self._undefined()
        elif vector == x.DATA_ABORT:
            self._data_abort(exit_.address, exit_.error)
        elif exit_.error & 0x40F != x.DEBUG_EVENT:
            self._prefetch_abort(exit_.address)
        elif self.vcpu.pc == self._single.behind:
            self._end_own_store()
        elif not self._trapped_across():
            self._debug.note(debug.INSTRUCTION)
            self._refuse(ArmException(x.PREFETCH_ABORT, x.DEBUG_EVENT, exit_.address), "exception to the guest")

    def _trapped_across(self) -> bool:
        """A planted BKPT stands for a T32 instruction that reaches into the next page: whether it was that, and not the
        guest's own."""
        registers, pc = self._registers, self.vcpu.pc
        if self.vcpu.level == USER or not registers.thumb or pc & 0xFFF != 0xFFE:
            return False
        own = self._fetch(pc)
        if own[1:2] == b"\xbe":
            return False
        state = registers.it_state
        if state & 0xF and not self.vcpu.condition_holds(state >> 4):
            self.exits.count("planted trap", "skipped")
            self.vcpu.advance(4)
            return True
        return self._perform(pc)

    def _breakpoint(self, exit_: Exit) -> None:
        self._debug.note(debug.BREAKPOINT)
        self._refuse(ArmException(x.PREFETCH_ABORT, x.DEBUG_EVENT, exit_.address), "exception to the guest")

    def _undefined(self) -> None:
        pc = self.vcpu.pc
        if self.vcpu.level != USER and self._perform(pc):
            return
        self._refuse(x.undefined())

    def _data_abort(self, address: int, status: int) -> None:
        write = bool(status & x.WRITE)
        if status & 0x40F == x.ALIGNMENT:
            self._refuse(ArmException(x.DATA_ABORT, status & 0xC0F, address))
            return
        if address >> 12 in self.shadow.watched and self._watched(address, write):
            return
        if self._view_level != USER and self.WINDOW.base <= address < self.WINDOW.base + self.WINDOW.size:
            self._window_abort(address, write, status)
            return
        self._fill(address, write, False)

    def _window_abort(self, address: int, write: bool, status: int) -> None:
        """The hypervisor's window: not mapped yet, or the shared page is guarded and a fixup stores into it."""
        pc = self.vcpu.pc
        if status & 0xF in (x.TRANSLATION_SECTION, x.TRANSLATION_PAGE, x.DOMAIN_SECTION, x.DOMAIN_PAGE):
            if self._fill_window(address):
                return
        elif write and self._in_fixup(pc):
            if self.shadow.guarded:
                self._emulate_site(pc)
            else:
                self.engine.flush_world(OTHER)  # it is writable again, and was cached before
            return
        self._fill(address, write, False)

    def _emulate_site(self, pc: int) -> None:
        """A fixup's first store exits, since an interrupt waits: all is as at its site, so the site is done whole."""
        site = self._site_of(pc)
        self.vcpu.pc = site
        self._resume_state(pc)
        prepared = self._prepare_instruction(site, self._fetch(site))
        if prepared is None and self._registers.thumb:  # the instruction before it was moved, and is done
            self.vcpu.pc = site = site + 2
            prepared = self._prepare_instruction(site, self._fetch(site))
        if prepared is None:
            raise ValueError(f"the fixup at {pc:#x} stands for no sensitive instruction at {site:#x}")
        self.exits.count(prepared.operation.name, "guarded fixup")
        try:
            prepared.action()
        except ArchitecturalException as fault:
            self._raise(fault)

    def _prefetch_abort(self, address: int) -> None:
        if self._stepping is not None:
            if self._single.enter(address):
                return
            self._abandon_step()
        if self._view_level != USER and self.shadow.execute_again(address):
            # No exit: it comes where the engine has forgotten the page, and no interrupt may come with it.
            self._settled = self.vcpu.level != self._view_level or self.board.intr
            return
        if self._view_level != USER and self._fill_window(address):
            return
        self._fill(address, False, True)

    def _system_call(self, _exit: Exit) -> None:
        vcpu = self.vcpu
        self.exits.count("SYSTEM_CALL", "fault")
        vcpu.pc -= 2 if self._registers.thumb else 4
        if vcpu.level != USER and self._in_fixup(vcpu.pc):
            self._perform(vcpu.pc)
            return
        self._event("system call", vcpu.gpr[7], 0, vcpu.pc)
        vcpu.take(x.SUPERVISOR_CALL)

    def _halted_by_itself(self, _exit: Exit) -> None:
        """WFI runs in user mode: in the kernel it waits; user code's is a no-operation, as it may be."""
        self.exits.count("HALT", "exit")
        if self.vcpu.level != USER:
            self.halted()
        else:
            self.machine.arm()

    # -- fixups that are left in their midst -----------------------------------------------------

    def _raise(self, fault: ArchitecturalException) -> None:
        self._abandon_step()
        if self._in_fixup(self.vcpu.pc):
            self._resume_state(self.vcpu.pc)
        super()._raise(fault)

    def _resume_state(self, pc: int) -> None:
        """A fixup is left in its midst: go on in the state of its site. All of a fixup but its first bytes is A32."""
        self._site_of(pc)
        at = bisect_right(self._fixups, pc) - 1
        if at < 0 or self._registers.thumb:
            return
        first = self._fixups[at]
        words = (bytes(map(self.code.fixup_byte, range(start, start + 4))) for start in (first, first + 4))
        if _ENTRY_T32 in words:
            self._registers.thumb = True

    def _unbacked(self, exit_: Exit) -> None:
        self._refuse(ArmException(x.PREFETCH_ABORT, x.EXTERNAL, exit_.address))

    # -- what the operations ask for (`operations.arm.Context`) ---------------------------------

    @property
    def requested(self) -> bool:
        """Whether the board requests the processor."""
        return bool(self.board.intr)

    def halted(self) -> None:
        """WFI: time passes to the next interrupt, masked or not."""
        if self.machine.poll_input is None and not self.board.intr and self.board.next_wake() is None:
            self.end(Outcome(EndKind.HALTED, detail="waiting with no interrupt to come"))
            return
        self._wait_for_interrupt()

    def address_space_changed(self) -> None:
        """Another table, or the MMU was switched."""
        self.shadow.load_root()

    def asid_changed(self, asid: int) -> None:
        """CONTEXTIDR: address spaces are told apart by their tables, which are looked at when they are entered."""
        self.shadow.load_root()

    def domains_changed(self, old: int) -> None:
        """DACR."""
        self.shadow.domains_changed(old)

    def invalidate(self, address: int) -> None:
        """TLBIMVA."""
        self.shadow.invalidate(address)

    def invalidate_all(self) -> None:
        """TLBIALL, TLBIASID."""
        self.shadow.flush_all()

    def floating_point_changed(self) -> None:
        """CPACR or FPEXC were written."""
        self.engine.floating_point_changed()

    def read_timer(self, name: str) -> int:
        """The board's generic timer."""
        return self.board.timer.read(name)

    def write_timer(self, name: str, value: int) -> None:
        """The board's generic timer."""
        self.board.timer.write(name, value)
        self._device_written()

    def call_firmware(self) -> None:
        """PSCI (DEN 0022): function and arguments in R0 to R3."""
        gpr = self.vcpu.gpr
        gpr[0] = self.board.psci.call(gpr[0], [gpr[1], gpr[2], gpr[3]]) & 0xFFFF_FFFF
        self._device_written()
