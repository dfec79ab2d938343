"""The hypervisor of x86-64 guests: which of its faults is an operation, a fill or the guest's own, and the real state.

Room: `paravirt/modes/x86`. The guest runs at real CPL 3 in four-level shadow tables. Parts of it stand beside this one:
`fast_calls` (SYSCALL without an exit), `ports` (ports and time), `stepping` (the trap flag), `requests`, `saved`.
"""

import mmap
from collections.abc import Callable, Mapping

from emulator.board.linux_boot import EntryState
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.protocol import Capabilities
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.isa.x86.decode import instruction_at, row_of
from emulator.isa.x86.delivery import interrupt, protected_or, raise_exception, software_interrupt, undefined_or
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.transfer import syscall
from paravirt import abi, layout
from paravirt.hypervisor import Action, Handlers, Prepared
from paravirt.mmu.views import USER_VIEW
from paravirt.modes import DEAR
from paravirt.modes.x86.chain import LEADING, Chain
from paravirt.modes.x86.crossing import Crossings
from paravirt.modes.x86.deliveries import QuickDeliveries
from paravirt.modes.x86.descriptors import DescriptorCopy
from paravirt.modes.x86.fast_calls import FastSystemCalls
from paravirt.modes.x86.ports import X86Ports
from paravirt.modes.x86.returns import QuickReturns
from paravirt.modes.x86.saved import X86Saving
from paravirt.modes.x86.shadow import X86Shadow
from paravirt.modes.x86.stepping import X86Stepping
from paravirt.modes.x86.vcpu import X86VirtualCpu
from paravirt.operations.x86 import PREPARE, pop_flags
from paravirt.translator import Hypercall

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_DE, _DB, _UD, _NM, _GP, _PF = 0, 1, 6, 7, 13, 14
_ERROR_PRESENT, _ERROR_WRITE, _ERROR_USER, _ERROR_FETCH, _ERROR_KEY = 1, 2, 4, 0x10, 0x20
_CODE64, _DATA = 0xA09B00, 0xC09300
_SYSTEM_ENTER = 1 << 11
"""Of CPUID's leaf 1, EDX."""
_FLAT = 0xFFFF_FFFF
_RET = 0xC3
_LOWER_BITS = 47
"""Bits of an address of the lower half, which is user code's."""


class X86Hypervisor(FastSystemCalls, X86Ports, X86Stepping, X86Saving):
    """Runs one x86-64 guest. `Context` of the operations, and handler of the engine's exits."""

    WINDOW = abi.X86_64
    LAYOUT = layout.X86_64
    USER_LEVEL = 3
    LONGEST = 15
    FOLLOWS_STORES = True
    WITHIN_AN_INSTRUCTION = frozenset({ExitKind.PORT_READ, ExitKind.PORT_WRITE, ExitKind.IDENTIFY, ExitKind.TIME_STAMP})

    DESCRIPTORS = DescriptorCopy
    FLAT = True
    """The kernel's code segment has no base: RIP is an address."""
    WORD = 8
    """Bytes of a return address."""

    def _make(self) -> None:
        self._registers = self.engine.registers
        # The shadow needs the guest's context and the vCPU the shadow's frame kinds: context first.
        able = self.engine.capabilities
        self._make_cpu(able)
        self.shadow.frames.execute_only = self._guarded = able.execute_only
        self.shadow.frames.coherent = able.coherent_aliases
        self.shadow.names_gained = able.names_gained
        self._descriptors = memoryview(mmap.mmap(-1, layout.DESCRIPTORS_SIZE))
        show = self.engine.show_segments if able.shows_segments else None
        self.descriptors = self.DESCRIPTORS(self.vcpu, self._descriptors, self.shadow, show)
        self._early = not able.task_switched_faults
        """No instruction can be had to fault for CR0.TS: the guest's handler runs before user code is entered."""
        self._make_ports(able)
        self._chain: Chain | None = None
        self._deliveries: QuickDeliveries | None = None
        if able.exit_cost >= DEAR:
            self._chain = Chain(self.exits, self._fetch, self._prepare_instruction, self._executed)
            self.returns = QuickReturns(self.vcpu)
            if self.WORD == 8:
                self._deliveries = QuickDeliveries(self.vcpu)
        self._leading = frozenset(id(self.exits.cell(operation.name, "trap")) for operation in LEADING)
        self._return_cell = self.exits.cell("RETURN_FROM_EXCEPTION", "trap")
        self._faulted: tuple[int, int, int, bool, bool] | None = None
        """The guest's own page fault that it handles, where exits are dear: RIP, level, address, write and fetch."""
        self._make_fast_calls(able)
        self._filled_ahead = self.exits.cell("page", "ahead")
        self._make_steps()
        self._faults: dict[int, Callable[[Exit], None]] = {
            _GP: self._general_protection,
            _PF: self._page_fault,
            _DB: self._debug,
        }

    def _make_cpu(self, able: Capabilities) -> None:
        """The virtual CPU and its shadow tables."""
        self.vcpu = X86VirtualCpu(self._registers, self.machine.memory.view, self.shared)
        self.shadow = X86Shadow(
            self.engine,
            self.machine.memory,
            self.vcpu.context,
            name_changes=able.names_changes,
            eager=able.exit_cost >= DEAR,
            reserved=able.reserved_root_slots,
        )

    def _own_memory(self) -> Mapping[int, memoryview]:
        own = {layout.TABLES_BASE: memoryview(self.shadow.pool.memory), layout.DESCRIPTORS_BASE: self._descriptors}
        if self.engine.capabilities.crosses:
            own[layout.KINDS_BASE] = self.shadow.frames.kinds_memory
            own[layout.SOURCES_BASE] = self.shadow.sources_memory
        return own

    def _handlers(self) -> Handlers:
        return {
            ExitKind.FAULT: self._fault,
            ExitKind.SOFTWARE_INTERRUPT: self._software_interrupt,
            ExitKind.SYSTEM_CALL: self._system_call,
            ExitKind.PORT_READ: self._port_read,
            ExitKind.PORT_WRITE: self._port_write,
            ExitKind.IDENTIFY: self._identify,
            ExitKind.TIME_STAMP: self._time_stamp,
        }

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
        for index in (4, 5, 6, 7):
            vcpu.set_segment(index, 0, 0, 0, 0)
        vcpu.rflags = state.rflags
        vcpu.rip = state.rip
        self._view_level = vcpu.level
        self._crossings = self._make_crossings()
        self._open_ports()
        self.shadow.use(0)
        self.real_controls_changed()
        self.descriptors_changed()
        self._registers.privilege = 3

    # -- delivery -------------------------------------------------------------------------------

    def _settle(self) -> None:
        vcpu = self.vcpu
        if self._early and vcpu.cr0 & r.CR0_TS and vcpu.level == 3 and self._view_level != 3:
            self._refuse(Fault(_NM), "device not available, early")
        super()._settle()

    def _may_deliver(self) -> bool:
        return self._stepping is None and not self._in_shadow and self.vcpu.interrupts_enabled

    def _deliver_waiting(self) -> None:
        # Where exits are dear the guest's next stop is a tenth of a millisecond away, in a fixup again, perhaps.
        pc = self.vcpu.rip
        within = self._chain is not None and self._in_fixup(pc) and pc not in self.code.fixup_sites
        if not (within and self._step_out()):
            super()._deliver_waiting()

    def _take_interrupt(self) -> None:
        if self._shown_time is not None:
            self._shown_time.look()  # the tick may have come within a fixup, which may read it
        vector = self.board.acknowledge()
        self._event("interrupt", vector, 0, self.vcpu.rip)
        if self._deliveries is None or not self._deliveries.done(vector, None, False):
            interrupt(self.vcpu, vector)

    def _inject(self, fault: ArchitecturalException) -> None:
        assert isinstance(fault, Fault)
        if self._deliveries is None or not self._deliveries.raised(fault):
            raise_exception(self.vcpu, fault)

    def _raise(self, fault: ArchitecturalException) -> None:
        if self._crossings is not None and self._crossings.within_fault(self.vcpu.rip):
            # The handler cannot be entered: what comes of that is raised where user code was.
            found = self._refault(self._crossings)
            own = self._own_fault(found[1], found[0]) if found is not None else Fault(_DE)
            if own is None:
                return  # tried again, it is another
            fault = own
        elif self._crossings is not None and self._crossings.abandon(self.vcpu.rip):
            return  # the hypervisor does the instruction, and sees what comes of that
        self._abandon_table_store()
        if self._in_shadow:
            self._end_shadow()
        super()._raise(fault)

    def _switch(self, view: int) -> None:
        if self._guarded:  # user code finds no protection keys, and what it might do to them is undone
            self.engine.guard_code(view != USER_VIEW)
        crossings, user = self._crossings, view == USER_VIEW
        if user and self._vectors is not None:
            self._vectors.enter((self.vcpu.cr3, self._registers.segment_base(r.FS)))
        self._show_view(view)
        if user:
            self._returned()
        if crossings is not None:
            crossings.switched(user)
            if user:
                self._open_crossings(crossings)

    def _show_view(self, view: int) -> None:
        """Ports, descriptors and memory as they are in a view."""
        self.engine.open_ports(view != USER_VIEW)
        if view == USER_VIEW:
            self.descriptors.enter_user()
            self.shadow.use(view)
            self.descriptors.withhold()
        else:
            self.descriptors.enter_kernel()
            self.shadow.use(view)

    # -- operations at a site -------------------------------------------------------------------

    def _fetch(self, pc: int) -> bytes:
        return self.vcpu.fetch(pc)

    def _executed(self, pc: int) -> int:
        page = pc & ~0xFFF
        copy = self.code.copy_of(page, self.shadow.frame_of(page))
        return copy[pc - page] if copy is not None else -1

    def _prepare_instruction(self, pc: int, code: bytes) -> Prepared | None:
        instruction = instruction_at(code, pc)
        row = row_of(instruction) if instruction is not None else None
        if instruction is None or row is None:
            return None
        return Prepared(row.operation, len(instruction), PREPARE[row.operation](self, instruction))

    def _finish_hypercall(self, call: Hypercall) -> Action:
        """STI's shadow is over when its fixup calls; POPF's fixup leaves the flags on the stack."""
        vcpu, resume = self.vcpu, call.resume
        if call.operation is Operation.RETURN_FROM_EXCEPTION and self._crossings is not None:
            return self._crossings.undo_return
        if call.operation is Operation.ENABLE_INTERRUPTS:

            def deliver() -> None:
                vcpu.rip = resume
                if self._in_fixup(resume):
                    self._return_from_stub()

            return deliver
        if call.operation is Operation.WRITE_FLAGS:

            def write_flags() -> None:
                stepped = self._registers.trap_flag
                pop_flags(self, 8)
                self._popped(call, stepped)

            return write_flags
        return super()._finish_hypercall(call)

    def _popped(self, call: Hypercall, stepped: bool) -> None:
        """POPF of a fixup is done: go on. Where it began the guest's steps (`stepped`: they had begun before), the
        first one ends behind the next instruction, and not behind the fixup's way back."""
        self.vcpu.rip = call.resume
        if self._registers.trap_flag and not stepped and self._in_fixup(call.resume):
            self._first_step = call.site + 1

    def _return_from_stub(self) -> None:
        """A stub calls right before it returns to its caller: return here, so that an interrupt finds the guest behind
        the call and not inside the stub."""
        vcpu = self.vcpu
        if self.code.fixup_byte(vcpu.rip) != _RET:
            return
        try:
            target = vcpu.read(vcpu.gpr[4], self.WORD)
        except Fault:
            return  # the stub's own return raises it
        vcpu.gpr[4] = vcpu.gpr[4] + self.WORD & _MASK >> 64 - 8 * self.WORD
        vcpu.rip = target

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

    # -- faults ---------------------------------------------------------------------------------

    def _fault(self, exit_: Exit) -> None:
        if self._went_back:
            self._went_back = False
            return
        if self.FLAT and exit_.vector == _GP and self.vcpu.level == 0 and not self._in_shadow:
            rip = self._registers.rip
            known = self._actions.get(rip)
            if known is not None:  # the hottest path of a run
                self._act(known)
                if self._chain is not None and id(known[1]) in self._leading:
                    self._follow(self._chain)
                    if self._crossings is not None:
                        self._crossings.trap(rip, self._chain)
                return
        handler = self._faults.get(exit_.vector)
        if exit_.vector == _DE and self._crossings is not None and self._registers.rip == self._crossings.leave:
            handler = self._general_protection  # the kernel's SYSRET: an operation like others
        if handler is not None:
            handler(exit_)
            return
        if exit_.vector == _UD and self._emulate_undefined():
            return
        if exit_.vector == _NM and self.vcpu.real_switched and not self.vcpu.cr0 & (r.CR0_TS | r.CR0_EM):
            self.exits.count("floating point enabled", "late")  # by a fixup: the processor follows, now that it matters
            self.real_controls_changed()
            return
        self.exits.count("exception to the guest", "fault")
        error = exit_.error if exit_.vector in (8, 10, 11, 12, 17) else None
        if exit_.vector in (10, 11, 12) and self._perform_for_user(self.vcpu.rip):
            return
        self._raise(Fault(exit_.vector, error))

    def _act(self, known: tuple[Action, list[int]]) -> None:
        """Do an operation of the kernel's, over which a guest may step."""
        action, cell = known
        cell[0] += 1
        self.exits.last = cell
        stepped = self._registers.trap_flag
        try:
            action()
        except Fault as fault:
            self._raise(fault)
            return
        if cell is self._return_cell and self.vcpu.level == self._view_level:
            self._returned()
        if stepped:
            self._single_stepped()

    def _general_protection(self, exit_: Exit) -> None:
        rip = self._registers.rip
        if self._crossings is not None and self._crossings.leaves_fault(rip):
            fault = self._refault(self._crossings)
            if fault is None:
                self.exits.count("exception to the guest", "fault")
                self._raise(Fault(_DE))
                return
            exit_.error, exit_.address = fault
            self._page_fault(exit_)
            return
        if self._in_shadow:
            self._end_shadow()
        if self.vcpu.level == 0:
            known = self._actions.get(rip) or self._prepare(rip)
            if known is not None:
                self._act(known)
                if self._chain is not None and id(known[1]) in self._leading:
                    self._follow(self._chain)
                return
            if self._crossings is not None and self._crossings.abandon(rip):
                return
        elif self.descriptors.reveal():
            if self._crossings is not None:
                self._crossings.close()
            return
        elif self._lacks(rip, exit_.error):
            self._refuse(Fault(_UD))
            return
        elif self._perform_for_user(rip):
            return
        self._refuse(Fault(_GP, exit_.error))

    def _lacks(self, rip: int, error: int) -> bool:
        """Whether user code was refused an instruction that the guest's processor does not have at all."""
        has_system_enter = self.vcpu.IDENTIFY(1, 0)[3] & _SYSTEM_ENTER != 0
        return not error and protected_or(self.vcpu.fetch(rip, 3), has_system_enter) is not None

    def _emulate_undefined(self) -> bool:
        """ICEBP and RDPMC arrive as invalid opcodes; whatever else is undefined is the guest's."""
        fault = undefined_or(self.vcpu, self.vcpu.fetch(self.vcpu.rip, 2))
        if fault is None:
            return False
        self._raise(fault)
        return True

    def _page_fault(self, exit_: Exit) -> None:
        address, error = exit_.address, exit_.error
        write, fetch = error & _ERROR_WRITE != 0, error & _ERROR_FETCH != 0
        if self._view_level == 0:
            if 0 <= address - self.WINDOW.base < self.WINDOW.size:
                if error & _ERROR_PRESENT or not self._fill_window(address):
                    self._refuse(Fault(_PF, error & ~_ERROR_USER, address), "page fault to the guest")
                return
        elif not error & _ERROR_USER and self.shadow.install_descriptors(address):
            self.exits.count("descriptor table", "fill")
            return
        if error & _ERROR_KEY and not write and self._read_code(address):
            return
        rip, level = self._registers.rip, self.vcpu.level
        ahead = self._chain is not None and self._view_level == 3 and self._shadows
        old = ahead and self._ordinary()
        if ahead and self._guard is None and self.shadow.fill_around(address, write, fetch, old=old):
            self.exits.count("page", "fill")
            if old:
                self.shadow.fill_elsewhere(address)
        elif self._fill(address, write, fetch):
            if self._view_level == 0 and self._crossings is not None:
                if not address >> _LOWER_BITS and self._shadows and self._ordinary():
                    self.shadow.fill_elsewhere(address)
                self._try_again(self._crossings, rip)
            if self._view_level == 3:
                if ahead:
                    self.shadow.fill_around(address, old=old)
                if old:
                    self.shadow.fill_elsewhere(address)
                self.descriptors.withhold()
        elif self._chain is not None:
            self._faulted = rip, level, address, write, fetch

    def _try_again(self, crossings: Crossings, rip: int) -> None:
        """A page was missed on the way between user code and its kernel: nobody sees the guest there, so it begins once
        more, or the hypervisor does what was to be done."""
        if crossings.within_fault(rip):
            self._refault(crossings)
        else:
            crossings.abandon(rip)

    def _own_fault(self, address: int, error: int) -> Fault | None:
        """What the guest's tables say of an access by user code that faulted."""
        try:
            self.shadow.guest.walk(address, error & _ERROR_WRITE != 0, True, error & _ERROR_FETCH != 0)
        except Fault as fault:
            return fault
        return None

    def _returned(self) -> None:
        """The guest's handler of a page fault has returned, and the access comes again: fill what it will miss."""
        if self._crossings is not None:
            self._faulted = self._crossings.new_fault() or self._faulted
        faulted, vcpu = self._faulted, self.vcpu
        if faulted is None or faulted[0] != vcpu.rip or faulted[1] != vcpu.level:
            return
        self._faulted = None
        ahead = vcpu.level == 3 and self._shadows
        if ahead and self._guard is None and self.shadow.fill_around(*faulted[2:]):
            self._filled_ahead[0] += 1
            if self._crossings is not None and self._crossings.goes_back:
                self.shadow.learn_block(faulted[2])
            return
        try:
            self.shadow.fill(*faulted[2:])
        except Fault:
            return
        self._filled_ahead[0] += 1
        self._own_stores()
        if ahead:
            self.shadow.fill_around(faulted[2])
        if vcpu.level == 3:
            self.descriptors.withhold()

    @property
    def _shadows(self) -> bool:
        """Whether there are tables of the hypervisor's own to be filled: those that are walked may be the guest's."""
        return isinstance(self.shadow, X86Shadow)

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
            return
        if self._chain is not None:
            if self._crossings is not None:
                self._learn_crossings(self._crossings, self._chain)
            self._follow(self._chain)

    def _follow(self, chain: Chain) -> None:
        """Do the sensitive instructions that come next, as long as there are some and nothing else is to be done."""
        vcpu = self.vcpu
        while not (vcpu.level or self._in_shadow or self._stepping is not None or self._registers.trap_flag):
            step = chain.after(vcpu.rip)
            if step is None:
                return
            at, action, cell = step
            vcpu.rip = at
            cell[0] += 1
            try:
                action()
            except Fault as fault:
                self._raise(fault)
                return

    def _code_changed(self, page: int) -> None:
        super()._code_changed(page)
        if self._chain is not None:
            self._chain.forget()
