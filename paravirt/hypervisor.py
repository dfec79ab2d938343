"""The hypervisor: runs a guest deprivileged on a machine, one handler for every exit.

Room: `paravirt`. It sees `Exit` values and a register view, never an engine by name. The guest's
kernel and its user code both execute at real CPL 3 in shadow page tables of two views; kernel code
runs from translated copies. Every exit ends in an operation, a fill, or an event for the guest.
"""

import mmap
import time
from bisect import bisect_right
from collections.abc import Callable

from emulator.board.linux_boot import EntryState
from emulator.driver import Driver
from emulator.engine.exit import Exit, ExitKind
from emulator.errors import GuestFault
from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.isa.x86.decode import instruction_at, row_of
from emulator.isa.x86.delivery import interrupt, raise_exception, software_interrupt, undefined_or
from emulator.isa.x86.processor import Fault, TripleFault
from emulator.isa.x86.segments import port_permitted
from emulator.isa.x86.transfer import syscall
from emulator.machine import EndKind, Machine, Outcome
from paravirt import abi, layout
from paravirt.accounting import ExitTable
from paravirt.descriptors import DescriptorCopy
from paravirt.mmu.code import CodePages
from paravirt.mmu.shadow import KERNEL_VIEW, USER_VIEW, ShadowPaging
from paravirt.operations.x86 import PREPARE, Action, perform_identify, pop_flags
from paravirt.translator import Translator
from paravirt.vcpu import VirtualCpu

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_WINDOW_END = abi.SHARED_PAGE + 4096
_PENDING = abi.INTERRUPT_PENDING >> 3
_DB, _GP, _PF = 1, 13, 14
_TF = r.FLAG_TF
_BS = 1 << 14
_KEY_1 = 1 << 59
_WRITABLE = 2
_LONGEST = 15
_ERROR_KEY = 0x20
_CODE64, _DATA = 0xA09B00, 0xC09300
_FLAT = 0xFFFF_FFFF


_UNDER_WAY = (ExitKind.PORT_READ, ExitKind.PORT_WRITE, ExitKind.IDENTIFY, ExitKind.TIME_STAMP)
_WITHIN_AN_INSTRUCTION = [kind in _UNDER_WAY for kind in ExitKind]
"""By kind of exit: whether its instruction is still under way, so that nothing is delivered before the next block."""


class Hypervisor(Driver):
    """Runs one guest on one machine. `Context` of the operations, and handler of the engine's exits."""

    def __init__(self, machine: Machine, translator: Translator, *, timed: bool = False) -> None:
        super().__init__(machine)
        self.exits = ExitTable(timed)
        window = memoryview(mmap.mmap(-1, layout.WINDOW_SIZE))
        code = memoryview(mmap.mmap(-1, layout.CODE_COUNT << 12))
        descriptors = memoryview(mmap.mmap(-1, layout.DESCRIPTORS_SIZE))
        shared_at = abi.SHARED_PAGE - abi.HYPERVISOR_BASE
        self.shared = window[shared_at : shared_at + 4096].cast("Q")
        guest = machine.memory.view
        registers = self.engine.registers
        # The shadow needs the guest's context and the vCPU the shadow's frame kinds: context first.
        self.vcpu = VirtualCpu(registers, guest, self.shared)
        self.shadow = ShadowPaging(self.engine, guest, self.vcpu.context)
        self.code = CodePages(guest, code, window, translator, self.vcpu.peek_page, self._entry_of)
        self.code.attach(self.shadow)
        self.code.on_change = self._code_changed
        self.code.on_activate = self.vcpu.forget_writes
        self.code.on_store = self._code_stored
        self.code.forget_code = self.engine.flush_code
        self.vcpu.before_write = self.shadow.written
        self.descriptors = DescriptorCopy(self.vcpu, descriptors, self.shadow)
        if self.engine.capabilities.execute_only:
            self.shadow.code_guard = _KEY_1
        self._map_own_memory(window, code, descriptors)
        self._registers = registers
        self._actions: dict[int, tuple[Action, list[int]]] = {}
        self._actions_by_page: dict[int, list[int]] = {}
        self._view_level = 0
        self._in_shadow = False
        """One instruction runs by a real trap flag before a waiting interrupt may be delivered."""
        self._stepping: tuple[int, int] | None = None
        self._own_store = self._own_page = -1
        self._fixups: list[int] = []
        self._armed: int | None = None
        self._faults: dict[int, Callable[[Exit], None]] = {
            _GP: self._general_protection,
            _PF: self._page_fault,
            _DB: self._debug,
        }
        handlers: dict[ExitKind, Callable[[Exit], None]] = {
            ExitKind.FAULT: self._fault,
            ExitKind.SOFTWARE_INTERRUPT: self._software_interrupt,
            ExitKind.SYSTEM_CALL: self._system_call,
            ExitKind.PORT_READ: self._port_read,
            ExitKind.PORT_WRITE: self._port_write,
            ExitKind.IDENTIFY: self._identify,
            ExitKind.TIME_STAMP: self._time_stamp,
            ExitKind.BUDGET: self._budget,
        }
        # Indexed by kind: an enumeration's members are slow to hash.
        self._dispatch = [handlers.get(kind, self._unexpected) for kind in ExitKind]
        self.board.on_interrupt = self._line_changed

    def _map_own_memory(self, window: memoryview, code: memoryview, descriptors: memoryview) -> None:
        """Give the engine the hypervisor's own memory, above all of the guest's."""
        engine = self.engine
        engine.map_memory(layout.TABLES_BASE, memoryview(self.shadow.pool))
        engine.map_memory(layout.CODE_BASE, code)
        engine.map_memory(layout.WINDOW_BASE, window)
        engine.map_memory(layout.DESCRIPTORS_BASE, descriptors)
        engine.map_mmio(layout.OPEN_BUS, 4096, lambda _o, size: (1 << 8 * size) - 1, lambda _o, _s, _v: None)

    # -- a run ----------------------------------------------------------------------------------

    def enter(self, state: EntryState) -> None:
        """Set the virtual CPU up as the boot protocol says."""
        vcpu = self.vcpu
        for number in range(16):
            vcpu.gpr[number] = 0
        vcpu.gpr[6], vcpu.gpr[4] = state.rsi, state.rsp
        vcpu.cr0, vcpu.cr4, vcpu.efer, vcpu.cr3 = state.cr0, state.cr4, state.efer, state.cr3
        vcpu.gdt_base, vcpu.gdt_limit = state.gdt_base, state.gdt_limit
        vcpu.idt_base, vcpu.idt_limit = 0, 0
        vcpu.set_segment(1, state.cs, 0, _FLAT, _CODE64)
        for index in (0, 2, 3):
            vcpu.set_segment(index, state.ds, 0, _FLAT, _DATA)
        for index in (4, 5):
            vcpu.set_segment(index, 0, 0, 0, 0)
        vcpu.set_segment(6, 0, 0, 0, 0)
        vcpu.set_segment(7, 0, 0, 0, 0)
        vcpu.rflags = state.rflags
        vcpu.rip = state.rip
        self.shadow.use(KERNEL_VIEW)
        self.real_controls_changed()
        self.descriptors_changed()
        self._registers.privilege = 3

    def _handler(self) -> Callable[[Exit], None]:
        return self._timed_handle if self.exits.timed else self._handle

    def _handle(self, exit_: Exit) -> None:
        if self.trace is not None:
            self._trace_exit(exit_, self.vcpu.level, self.vcpu.rip)
        self._unlooked += 1
        if self._unlooked == Machine.EXITS:
            self._end_if_over()
        try:
            self._dispatch[exit_.kind](exit_)
            if _WITHIN_AN_INSTRUCTION[exit_.kind]:
                if self.board.intr:
                    self.engine.set_deadline(self.engine.progress + 1)
            elif self.vcpu.level != self._view_level or self.board.intr:
                self._settle()
        except TripleFault as fault:
            self.end(Outcome(EndKind.TRIPLE_FAULT, detail=str(fault)))

    def _timed_handle(self, exit_: Exit) -> None:
        before = time.perf_counter_ns()
        self._handle(exit_)
        self.exits.spent(time.perf_counter_ns() - before)

    # -- between exit and resume ----------------------------------------------------------------

    def _settle(self) -> None:
        """Before the guest goes on: deliver a waiting interrupt if it may be, and enter the right view."""
        vcpu = self.vcpu
        if self.board.intr and self._stepping is None and not self._in_shadow and vcpu.interrupts_enabled:
            self._deliver_waiting()
        elif vcpu.level == 3 and self.board.intr:
            # User code with IOPL 3 may open its flag without an exit: look again at the next block.
            self.engine.set_deadline(self.engine.progress + 2)
        if vcpu.level != self._view_level:
            self._enter_view()

    def _deliver_waiting(self) -> None:
        vcpu = self.vcpu
        rip = vcpu.rip
        if abi.FIXUP_BASE <= rip < abi.SHARED_PAGE:
            site = self.code.fixup_sites.get(rip)
            if site is None:  # inside a fixup: let it finish
                self.engine.set_deadline(self.engine.progress + 2)
                return
            vcpu.rip = rip = site
        vector = self.board.acknowledge()
        self._event("interrupt", vector, 0, rip)
        self.exits.count("interrupt delivered", "injection")
        interrupt(vcpu, vector)

    def _enter_view(self) -> None:
        level = self.vcpu.level
        self._view_level = level
        if self.shadow.code_guard:  # user code finds no protection keys, and what it might do to them is undone
            self.engine.guard_code(level == 0)
        if level == 3:
            self.descriptors.enter_user()
            self.shadow.use(USER_VIEW)
            self.descriptors.withhold()
        else:
            self.descriptors.enter_kernel()
            self.shadow.use(KERNEL_VIEW)

    def _raise(self, fault: Fault) -> None:
        """Deliver an exception to the guest."""
        if self._in_shadow:
            self._end_shadow()
        rip = self.vcpu.rip
        if abi.FIXUP_BASE <= rip < abi.SHARED_PAGE:
            self.vcpu.rip = rip = self._site_of(rip)
        self._event("exception", fault.vector, fault.error or 0, rip)
        raise_exception(self.vcpu, fault)

    def _site_of(self, rip: int) -> int:
        """The patched instruction that the fixup around `rip` stands for."""
        starts = self._fixups
        if len(starts) != len(self.code.fixup_sites):
            starts = self._fixups = sorted(self.code.fixup_sites)
        at = bisect_right(starts, rip) - 1
        return self.code.fixup_sites[starts[at]] if at >= 0 else rip

    # -- faults ---------------------------------------------------------------------------------

    def _unexpected(self, exit_: Exit) -> None:
        """HALT and UNBACKED cannot happen to a guest that runs at level 3 in tables of ours."""
        raise GuestFault(
            f"the engine reports {ExitKind(exit_.kind).name} at {self.vcpu.rip:#x} for a deprivileged guest"
        )

    def _fault(self, exit_: Exit) -> None:
        handler = self._faults.get(exit_.vector)
        if handler is not None:
            handler(exit_)
            return
        if exit_.vector == 6 and self._emulate_undefined():
            return
        self.exits.count("exception to the guest", "fault")
        error = exit_.error if exit_.vector in (8, 10, 11, 12, 17) else None
        if exit_.vector in (10, 11, 12) and self._emulate_for_user():
            return
        self._raise(Fault(exit_.vector, error))

    def _general_protection(self, exit_: Exit) -> None:
        rip = self._registers.rip
        if self._in_shadow:
            self._end_shadow()
        if self.vcpu.level == 0:
            known = self._actions.get(rip)
            if known is None:
                known = self._prepare(rip)
            if known is not None:
                action, cell = known
                cell[0] += 1
                self.exits.last = cell
                stepped = self._registers.trap_flag
                try:
                    action()
                except Fault as fault:
                    self._raise(fault)
                    return
                if stepped:
                    self._single_stepped()
                return
        elif self._emulate_for_user():
            return
        self.exits.count("exception to the guest", "fault")
        self._raise(Fault(_GP, exit_.error))

    def _prepare(self, rip: int) -> tuple[Action, list[int]] | None:
        """Decode the guest's own instruction at `rip` and make the action for it."""
        call = self.code.hypercalls.get(rip)
        if call is not None:
            known = self._hypercall(call.operation, call.resume), self.exits.cell(call.operation.name, "hypercall")
            self._actions[rip] = known
            return known
        instruction = instruction_at(self.vcpu.fetch(rip), rip)
        row = row_of(instruction) if instruction is not None else None
        if instruction is None or row is None:
            return None
        action = PREPARE[row.operation](self, instruction)
        known = action, self.exits.cell(row.operation.name, "trap")
        self._actions[rip] = known
        page = rip >> 12
        self._actions_by_page.setdefault(page, []).append(rip)
        if rip + len(instruction) - 1 >> 12 != page:
            self._actions_by_page.setdefault(page + 1, []).append(rip)
        return known

    def _hypercall(self, operation: Operation, resume: int) -> Action:
        """A fixup calls: what is left to do of its operation. STI's shadow is over when its fixup calls."""
        vcpu = self.vcpu
        if operation is Operation.ENABLE_INTERRUPTS:

            def deliver() -> None:
                vcpu.rip = resume

            return deliver
        if operation is Operation.WRITE_FLAGS:

            def write_flags() -> None:
                pop_flags(self, 8)
                vcpu.rip = resume

            return write_flags
        raise ValueError(f"no fixup calls the hypervisor for {operation.name}")

    def _emulate_for_user(self) -> bool:
        """A user instruction faulted that the guest's own tables or privileges may allow."""
        rip = self.vcpu.rip
        instruction = instruction_at(self.vcpu.fetch(rip), rip)
        row = row_of(instruction) if instruction is not None else None
        if instruction is None or row is None:
            return False
        self.exits.count(row.operation.name, "user fault")
        try:
            PREPARE[row.operation](self, instruction)()
        except Fault as fault:
            self._raise(fault)
        return True

    def _emulate_undefined(self) -> bool:
        """ICEBP and RDPMC arrive as invalid opcodes; whatever else is undefined is the guest's."""
        fault = undefined_or(self.vcpu, self.vcpu.fetch(self.vcpu.rip, 2))
        if fault is None:
            return False
        self._raise(fault)
        return True

    def _debug(self, _exit: Exit) -> None:
        vcpu = self.vcpu
        if self._stepping is not None:
            self._end_own_store()
            return
        if self._in_shadow and not abi.FIXUP_BASE <= vcpu.rip < abi.SHARED_PAGE:
            self._end_shadow()
            return
        if abi.FIXUP_BASE <= vcpu.rip < abi.SHARED_PAGE:
            return  # the guest steps: a fixup is one instruction to it
        self.exits.count("exception to the guest", "fault")
        self._single_stepped()

    def _end_shadow(self) -> None:
        self._in_shadow = False
        self._registers.rflags &= ~_TF

    def _single_stepped(self) -> None:
        """An instruction that began with TF set is done: the guest's debug exception follows."""
        self.vcpu.debug[6] |= _BS
        self._event("exception", _DB, 0, self.vcpu.rip)
        raise_exception(self.vcpu, Fault(_DB))

    # -- page faults ----------------------------------------------------------------------------

    def _page_fault(self, exit_: Exit) -> None:
        address, error = exit_.address, exit_.error
        write, fetch = error & 2 != 0, error & 16 != 0
        if self._view_level == 0:
            if address >= abi.HYPERVISOR_BASE and self._window_fault(address, error):
                return
        elif not error & 4 and self.shadow.install_descriptors(address):
            self.exits.count("descriptor table", "fill")
            return
        if error & _ERROR_KEY and not write and self._read_code(address):
            return
        try:
            self.shadow.fill(address, write, fetch)
        except Fault as fault:
            self.exits.count("page fault to the guest", "fault")
            self._raise(fault)
            return
        if self._view_level == 3:
            self.descriptors.withhold()
        if self._own_store >= 0:
            self._begin_own_store()
        self.exits.count("code page" if fetch and self._view_level == 0 else "page", "fill")

    def _read_code(self, address: int) -> bool:
        """The guest reads code that executes from a copy: let it see its own bytes.

        A read from the page under RIP runs that one instruction from the guest's frame; any other maps the frame for
        reading until the page executes again (False: an ordinary fill).
        """
        frame = self.shadow.frame_of(address)
        page = self._page_executed_from(frame) if frame >= 0 else None
        if page is None:
            return False
        self._step_from_frame(page, frame, 0, "read of the executing page")
        return True

    def _window_fault(self, address: int, error: int) -> bool:
        """A fault in the hypervisor's window: not mapped yet in this address space, or none of the guest's business."""
        if not error & 1 and address < _WINDOW_END:
            self.shadow.install_window()
            self.exits.count("hypervisor window", "fill")
            return True
        self.exits.count("page fault to the guest", "fault")
        self._raise(Fault(_PF, error & ~4, address))
        return True

    def _code_changed(self, page: int) -> None:
        for rip in self._actions_by_page.pop(page >> 12, ()):
            self._actions.pop(rip, None)

    def _entry_of(self, page: int) -> int:
        """Where the page at `page` is entered: at RIP, or behind the instruction that reaches into it.

        An engine may fetch ahead, so RIP may be at an earlier instruction of the same straight-line code.
        """
        rip = self.vcpu.rip
        if rip >> 12 == page >> 12:
            return rip
        while page - 4096 <= rip < page:
            instruction = instruction_at(self.vcpu.fetch(rip), rip)
            if instruction is None:
                return page
            rip += len(instruction)
        return rip if rip >> 12 == page >> 12 else page

    def _code_stored(self, frame: int) -> None:
        page = self._page_executed_from(frame)
        if page is not None:
            self._own_store, self._own_page = frame, page

    def _page_executed_from(self, frame: int) -> int | None:
        """The page under RIP that executes from a copy of `frame`: RIP's own, or the next if the instruction may
        reach into it. Both must be there for it to complete."""
        rip = self.vcpu.rip
        for page in (rip & ~0xFFF, rip + _LONGEST - 1 & ~0xFFF & _MASK):
            if self.code.executes_from(page, frame):
                return page
        return None

    def _begin_own_store(self) -> None:
        """The guest stores into the page it executes from: run that one instruction from the frame itself."""
        frame, self._own_store = self._own_store, -1
        self._step_from_frame(self._own_page, frame, _WRITABLE, "store into the executing page")

    def _step_from_frame(self, page: int, frame: int, rights: int, what: str) -> None:
        """Execute one instruction of `page` from the guest's own frame, by the trap flag."""
        try:
            at = self.shadow.expose(page, frame, rights)
        except Fault as fault:  # the page itself is gone since it was fetched from
            self._raise(fault)
            return
        guest_trap = self._registers.rflags & _TF if self._stepping is None else self._stepping[1]  # it also stores
        self._stepping = at, guest_trap
        self._registers.rflags |= _TF
        self.engine.code_changed(page, 4096)
        self.exits.count(what, "step")

    def _end_own_store(self) -> None:
        assert self._stepping is not None
        at, guest_trap = self._stepping
        self._stepping = None
        self.shadow.drop(at)
        self.shadow.flush_tlb()
        if guest_trap:
            self._raise(Fault(_DB))
        else:
            self._registers.rflags &= ~_TF

    # -- events ---------------------------------------------------------------------------------

    def _software_interrupt(self, exit_: Exit) -> None:
        vcpu = self.vcpu
        if self._in_shadow:
            self._end_shadow()
        vector = exit_.vector
        self.exits.count("software interrupt", "fault")
        self._event("software interrupt", vector, 0, vcpu.rip)
        software_interrupt(vcpu, vector, exit_.length)

    def _system_call(self, exit_: Exit) -> None:
        vcpu = self.vcpu
        if self._in_shadow:
            self._end_shadow()
        self.exits.count("SYSTEM_CALL", "fault")
        self._event("system call", vcpu.gpr[0], 0, vcpu.rip)
        try:
            syscall(vcpu, exit_.length)
        except Fault as fault:
            self._raise(fault)

    def _port_read(self, exit_: Exit) -> None:
        if self.vcpu.level > self.vcpu.iopl and not port_permitted(self.vcpu, exit_.port, exit_.size):
            exit_.refused = True
            return
        self.exits.count("READ_PORT", "exit")
        exit_.value = self.board.ports.read(exit_.port, exit_.size)

    def _port_write(self, exit_: Exit) -> None:
        if self.vcpu.level > self.vcpu.iopl and not port_permitted(self.vcpu, exit_.port, exit_.size):
            exit_.refused = True
            return
        self.exits.count("WRITE_PORT", "exit")
        self.write_port(exit_.port, exit_.size, exit_.value)

    def _identify(self, _exit: Exit) -> None:
        self.exits.count("IDENTIFY_PROCESSOR", "exit")
        perform_identify(self.vcpu)

    def _time_stamp(self, _exit: Exit) -> None:
        self.exits.count("READ_TIME_STAMP", "exit")
        value, gpr = self.time_stamp(), self.vcpu.gpr
        gpr[0], gpr[2] = value & 0xFFFF_FFFF, value >> 32

    def _budget(self, _exit: Exit) -> None:
        self.exits.count("tick", "budget")
        self.machine.tick()
        self._end_if_over()
        self.machine.arm()

    def _line_changed(self, level: bool) -> None:
        self.shared[_PENDING] = 1 if level else 0

    # -- what the operations ask for (`operations.x86.Context`) ---------------------------------

    def shadow_begins(self) -> None:
        """STI: one more instruction runs before an interrupt that waits is delivered."""
        if self.board.intr and not self._registers.trap_flag:
            self._in_shadow = True
            self._registers.rflags |= _TF

    def halted(self) -> None:
        """HLT: time passes to the next interrupt."""
        if not self.vcpu.interrupts_enabled:
            self.end(Outcome(EndKind.HALTED, detail="halted with interrupts disabled"))
            return
        self._wait_for_interrupt()

    def root_loaded(self) -> None:
        """CR3 was written."""
        self.shadow.load_root()

    def translations_changed(self) -> None:
        """Every translation goes."""
        self.vcpu.forget_translations()
        self.shadow.flush_all()

    def real_controls_changed(self) -> None:
        """Carry the guest's floating-point bits into the real control registers."""
        vcpu = self.vcpu
        kept = r.CR0_MP | r.CR0_EM | r.CR0_TS | r.CR0_NE
        cr0 = r.CR0_PE | r.CR0_PG | r.CR0_WP | r.CR0_ET | (vcpu.cr0 & kept)
        cr4 = r.CR4_PAE | r.CR4_TSD | (vcpu.cr4 & (r.CR4_OSFXSR | r.CR4_OSXMMEXCPT))
        self.engine.set_control(cr0, cr4, r.EFER_LME | r.EFER_LMA | r.EFER_NXE | r.EFER_SCE)
        if self.shadow.code_guard:
            self.engine.guard_code()

    def descriptors_changed(self) -> None:
        """A descriptor-table register was loaded."""
        self.descriptors.reload(self._view_level)

    def invalidate(self, address: int) -> None:
        """INVLPG."""
        self.vcpu.forget_translations()
        if not (address + 0x8000_0000_0000) >> 48 & 0xFFFF:
            self.shadow.invalidate(address)

    def read_port(self, port: int, size: int) -> int:
        """IN by a planted trap."""
        return self.board.ports.read(port, size)

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT, however it arrived."""
        self.board.ports.write(port, size, value)
        if self.board.shutdown is not None:
            self._end_if_over()
        event = self.machine.clock.next_event()
        if event != self._armed:
            self._armed = event
            self.machine.arm()

    def time_stamp(self) -> int:
        """Virtual nanoseconds."""
        return self.machine.clock.now() & _MASK
