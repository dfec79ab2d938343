"""The hypervisor: runs a guest deprivileged on a machine, one event loop for every instruction set and engine.

Room: `paravirt`. It sees `Exit` values, never an engine by name. The guest's kernel and its user code both execute in
the real user mode, in two views of memory; kernel code runs from translated copies. Every exit ends in an operation, a
fill, or an event for the guest. What an instruction set adds is a subclass in a room of `paravirt.modes`.
"""

import mmap
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from emulator.driver import Driver
from emulator.engine.exit import Exit, ExitKind
from emulator.errors import GuestFault, UsageError
from emulator.isa.exceptions import ArchitecturalException, ProcessorShutdown
from emulator.isa.operation import Operation
from emulator.machine import EndKind, Machine, Outcome
from paravirt.abi import Window
from paravirt.accounting import ExitTable
from paravirt.code_access import CodeAccess
from paravirt.layout import Layout
from paravirt.mmu.code import CodePages
from paravirt.mmu.eager import Eager
from paravirt.mmu.guard import TableGuard
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.techniques import ALL_TECHNIQUES
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW, MemoryViews
from paravirt.translator import Hypercall, Translator
from paravirt.vcpu import VirtualCpu
from paravirt.words import words

Action = Callable[[], None]
"""Does an operation for the guest and moves its PC. Raises `ArchitecturalException` for what the guest did wrong."""
Handlers = Mapping[ExitKind, Callable[[Exit], None]]
_EXITS = Machine.EXITS


class Prepared(NamedTuple):
    """A sensitive instruction, decoded once: what is done each time that it traps."""

    operation: Operation
    length: int
    """Bytes of the instruction."""
    action: Action


class Hypervisor(CodeAccess, Driver):
    """Runs one guest on one machine: handler of the engine's exits. Abstract: see `paravirt.modes`."""

    WINDOW: ClassVar[Window]
    """Guest-virtual addresses of the interface to the guest."""
    LAYOUT: ClassVar[Layout]
    """Engine-physical addresses of the hypervisor's memory."""
    USER_LEVEL: ClassVar[int]
    """The privilege level of user code, as the virtual CPU numbers it; every other level is the guest's kernel."""
    LONGEST: ClassVar[int] = 4
    """Bytes of the longest instruction."""
    FOLLOWS_STORES: ClassVar[bool] = False
    """A store into a page table can run alone, so that its shadow follows at once."""
    WITHIN_AN_INSTRUCTION: ClassVar[frozenset[ExitKind]] = frozenset()
    """Kinds of exits in the midst of an instruction: nothing is delivered before the next block."""

    vcpu: VirtualCpu
    shadow: MemoryViews

    def __init__(self, machine: Machine, translator: Translator, *, timed: bool = False) -> None:
        super().__init__(machine)
        self.exits = ExitTable(timed)
        self.on_tick: Callable[[], None] | None = None
        """Called when the engine has come back at a deadline and what was due is done: between two blocks."""
        layout, abi = self.LAYOUT, self.WINDOW
        window = memoryview(mmap.mmap(-1, layout.window_size))
        code = memoryview(mmap.mmap(-1, layout.code_count << 12))
        shared_at = abi.shared_page - abi.base
        self.shared = words(window[shared_at : shared_at + 4096], abi.word, self._word_order)
        """The page shared with the guest's kernel, as words of its byte order."""
        self._pending = abi.pending // abi.word
        self._actions: dict[int, tuple[Action, list[int]]] = {}
        self._actions_by_page: dict[int, list[int]] = {}
        self._view_level = -1
        """The level that the real CPU's state is made for."""
        self._stepping: tuple[Any, int] | None = None
        """One instruction runs from the guest's own frame: the mapping that is undone, what the guest had asked for."""
        self._own_store = self._own_page = -1
        self._eager: Eager | None = None
        self._guard: TableGuard | None = None
        self._opened = 0
        self._fixups: list[int] = []
        self._first_fixup = abi.fixups
        self._armed: int | None = None
        self._settled = False
        """What `_settle` is called for next was done at a tick already, or is nothing that the guest's run may depend
        on."""
        self._make()
        self.code = CodePages(
            machine.memory.view, code, window, translator, self.vcpu.peek_page, self._entry_of, layout, abi
        )
        self.code.attach(self.shadow)
        self.code.on_change = self._code_changed
        self.code.on_activate = self.vcpu.forget_writes
        self.code.on_store = self._code_stored
        self.code.forget_code = self.engine.flush_code
        self.vcpu.before_write = self.shadow.written
        if isinstance(self.shadow, ShadowPaging):
            self.shadow.guest_state = lambda: self.vcpu.state
        for physical, own in {layout.window: window, layout.code: code, **self._own_memory()}.items():
            self.engine.map_memory(physical, own)
        self.engine.map_mmio(layout.open_bus, 4096, lambda _o, size: (1 << 8 * size) - 1, lambda _o, _s, _v: None)
        handlers = {ExitKind.BUDGET: self._budget, **self._handlers()}
        # Indexed by kind: an enumeration's members are slow to hash.
        self._dispatch = [handlers.get(kind, self._unexpected) for kind in ExitKind]
        self._within = [kind in self.WITHIN_AN_INSTRUCTION for kind in ExitKind]
        self.board.on_interrupt = self._line_changed
        machine.after_device_write = self._device_stored

    @property
    def _word_order(self) -> str:
        """The guest's byte order: "little" or "big"."""
        return "little"

    def choose_technique(self, name: str) -> None:
        """Virtualise memory so from the start on. Raises `UsageError` for what there is not for such guests."""
        isa = self.machine.platform.isa
        if not isinstance(self.shadow, ShadowPaging):
            raise UsageError(
                f"{isa} guests have a way of their own to virtualise memory; leave the technique {name!r} out"
            )
        if name == "eager" and not self.FOLLOWS_STORES:
            raise UsageError(f"the stores of {isa} guests cannot be followed one by one; take another than {name!r}")
        technique = self.shadow.technique = ALL_TECHNIQUES[name](self.shadow)
        begin = getattr(technique, "begin", None)
        if begin is not None:
            begin(self)
        if self.shadow.frames.guard is not None:
            self._guard = self.shadow.frames.guard
            self._guard.on_close = self.vcpu.forget_writes
        if isinstance(technique, Eager):
            self._eager = technique

    # -- what an instruction set adds -----------------------------------------------------------

    def _make(self) -> None:
        """Make the virtual CPU and the views of memory: `vcpu`, `shadow`."""
        raise NotImplementedError

    def _own_memory(self) -> Mapping[int, memoryview]:
        """Memory of the hypervisor's besides window and copies, by engine-physical address: its tables."""
        raise NotImplementedError

    def _handlers(self) -> Handlers:
        """The handler of each kind of exit that the instruction set's engines have."""
        raise NotImplementedError

    def _prepare_instruction(self, pc: int, code: bytes) -> Prepared | None:
        """Decode the guest's instruction `code` at `pc` and make the action for it; None where it is not sensitive."""
        raise NotImplementedError

    def _fetch(self, pc: int) -> bytes:
        """Up to `LONGEST` bytes of the guest's own code at `pc`."""
        raise NotImplementedError

    def _inject(self, fault: ArchitecturalException) -> None:
        """Take the guest to the handler of an exception; its PC is at the instruction that raised it."""
        raise NotImplementedError

    def _take_interrupt(self) -> None:
        """Take the guest to the handler of the interrupt that the board requests; tell who watches (`_event`)."""
        raise NotImplementedError

    def _switch(self, view: int) -> None:
        """The guest's level changed: make the real CPU's state that of `view`."""
        self.shadow.use(view)

    def _finish_hypercall(self, call: Hypercall) -> Action:
        """What is left to do of an operation that a fixup began."""
        raise ValueError(f"no fixup calls the hypervisor for {call.operation.name}")

    # -- a run ----------------------------------------------------------------------------------

    @property
    def pc(self) -> int:
        """Guest-virtual address of the instruction that the guest is at."""
        return self.vcpu.pc

    @property
    def state(self) -> tuple[Any, ...]:
        """Everything the guest can see of its processor, as a plain value."""
        return self.vcpu.state

    def _handler(self) -> Callable[[Exit], None]:
        return self.exits.handler(self._handle)

    def _handle(self, exit_: Exit) -> None:
        if self.trace is not None:
            self._trace_exit(exit_, self.vcpu.level, self.vcpu.pc)
        self._unlooked += 1
        if self._unlooked == _EXITS:
            self._end_if_over()
        kind = exit_.kind
        try:
            self._dispatch[kind](exit_)
            if self._within[kind]:
                if self.board.intr:
                    self._interrupt_waits()
            elif self.vcpu.level != self._view_level or self.board.intr:
                self._settle()
        except ProcessorShutdown as shutdown:
            self.end(Outcome(EndKind.TRIPLE_FAULT, detail=str(shutdown)))

    # -- between exit and resume ----------------------------------------------------------------

    def _settle(self) -> None:
        """Before the guest goes on: deliver a waiting interrupt if it may be, and enter the right view."""
        if self._settled:
            self._settled = False
            return
        vcpu = self.vcpu
        if self.board.intr:
            if self._may_deliver():
                self._deliver_waiting()
            else:
                self._cannot_deliver()
        if vcpu.level != self._view_level:
            self._view_level = vcpu.level
            self._switch(USER_VIEW if vcpu.level == self.USER_LEVEL else KERNEL_VIEW)

    def _interrupt_waits(self) -> None:
        """An interrupt waits within an instruction: look behind it, unless the guest opens its mask by an exit."""
        if self._may_deliver():
            self.engine.set_deadline(self.engine.progress + 1)
        else:
            self._cannot_deliver()

    def _may_deliver(self) -> bool:
        """Whether the guest takes an interrupt before its next instruction."""
        return self._stepping is None and self.vcpu.interrupts_enabled

    def _cannot_deliver(self) -> None:
        """An interrupt waits for the guest's mask, which it opens by an exit."""

    def _deliver_waiting(self) -> None:
        pc = self.vcpu.pc
        if self._in_fixup(pc):
            site = self.code.fixup_sites.get(pc)
            if site is None:  # inside a fixup: let it finish
                self.engine.set_deadline(self.engine.progress + 2)
                return
            self.vcpu.pc = site
        elif pc in self.code.hypercalls:  # where the guest comes back from a fixup that is far away
            self.engine.set_deadline(self.engine.progress + 1)
            return
        self.exits.count("interrupt delivered", "injection")
        self._take_interrupt()

    def _raise(self, fault: ArchitecturalException) -> None:
        """Deliver an exception to the guest."""
        pc = self.vcpu.pc
        if self._in_fixup(pc):
            self.vcpu.pc = pc = self._site_of(pc)
        self._event("exception", fault.vector, fault.error or 0, pc, fault.address)
        self._inject(fault)

    def _refuse(self, fault: ArchitecturalException, what: str = "exception to the guest") -> None:
        """An exit that is the guest's own exception: count it and deliver it."""
        self.exits.count(what, "fault")
        self._raise(fault)

    def _in_fixup(self, pc: int) -> bool:
        return 0 <= pc - self._first_fixup < self.WINDOW.fixup_size

    def _site_of(self, pc: int) -> int:
        """The patched instruction that the fixup around `pc` stands for."""
        starts = self._fixups
        if len(starts) != len(self.code.fixup_sites):
            starts = self._fixups = sorted(self.code.fixup_sites)
        at = bisect_right(starts, pc) - 1
        return self.code.fixup_sites[starts[at]] if at >= 0 else pc

    def own_address(self, pc: int) -> int:
        """Where the guest's own code is while the real PC is `pc`: for a fixup, which the guest does not see, what it
        stands for; for its call, or where it goes on behind one, the instruction that the call is for."""
        calls = self.code.hypercalls
        if pc in calls:
            return calls[pc].site
        if not self._in_fixup(pc):
            return pc
        return next((call.site for call in calls.values() if call.resume == pc), self._site_of(pc))

    def _unexpected(self, exit_: Exit) -> None:
        """What cannot happen to a guest that runs in user mode in tables of ours."""
        raise GuestFault(
            f"the engine reports {ExitKind(exit_.kind).name} at {self.vcpu.pc:#x} for a deprivileged guest"
        )

    def _count(self, cell: list[int]) -> None:
        """One exit more of a kind whose cell is kept."""
        cell[0] += 1
        self.exits.last = cell

    def _line_changed(self, level: bool) -> None:
        self.shared[self._pending] = 1 if level else 0

    def _device_written(self) -> None:
        if self.board.shutdown is not None:
            self._end_if_over()
        event = self.machine.clock.next_event()
        if event != self._armed:
            self._armed = event
            self.machine.arm()

    def _device_stored(self) -> None:
        """A store without an exit reached a device, in the midst of a block: what it requests comes behind the block,
        and not with the next exit, whenever that is."""
        self._device_written()
        if self.board.intr:
            self._interrupt_waits()

    def _budget(self, exit_: Exit) -> None:
        self.exits.count("tick", "budget")
        super()._budget(exit_)
        if self.on_tick is not None:
            if self.vcpu.level != self._view_level or self.board.intr:
                self._settle()
            self.on_tick()
            self._settled = self.vcpu.level != self._view_level or self.board.intr

    # -- operations -----------------------------------------------------------------------------

    def _perform(self, pc: int) -> bool:
        """Do the operation of the kernel's sensitive instruction, or of the hypercall, at `pc`; False for no such."""
        known = self._actions.get(pc) or self._prepare(pc)
        if known is None:
            return False
        action, cell = known
        cell[0] += 1
        self.exits.last = cell
        try:
            action()
        except ArchitecturalException as fault:
            self._raise(fault)
        return True

    def _prepare(self, pc: int) -> tuple[Action, list[int]] | None:
        """Make the action for what is at `pc`, and keep it until that page's code changes."""
        call = self.code.hypercalls.get(pc)
        if call is not None:
            known = self._hypercall(call), self.exits.cell(call.operation.name, "hypercall")
            self._actions[pc] = known
            return known
        prepared = self._prepare_instruction(pc, self._fetch(pc))
        if prepared is None:
            return None
        known = prepared.action, self.exits.cell(prepared.operation.name, "trap")
        self._actions[pc] = known
        page = pc >> 12
        self._actions_by_page.setdefault(page, []).append(pc)
        if pc + prepared.length - 1 >> 12 != page:
            self._actions_by_page.setdefault(page + 1, []).append(pc)
        return known

    def _hypercall(self, call: Hypercall) -> Action:
        """A fixup calls: the whole operation as if its instruction had trapped at its site, or what is left of it."""
        if not call.instruction:
            return self._finish_hypercall(call)
        prepared = self._prepare_instruction(call.site, call.instruction)
        if prepared is None:
            raise ValueError(f"the fixup of {call.site:#x} calls for {call.instruction.hex()}, which is not sensitive")
        vcpu, site, resume, action = self.vcpu, call.site, call.resume, prepared.action
        behind = site + prepared.length

        def perform() -> None:
            vcpu.pc = site
            action()
            if vcpu.pc == behind:
                vcpu.pc = resume

        return perform

    def _perform_for_user(self, pc: int) -> bool:
        """User code faulted where the guest's own privileges may allow what it did: False where that is not so."""
        prepared = self._prepare_instruction(pc, self._fetch(pc))
        if prepared is None:
            return False
        self.exits.count(prepared.operation.name, "user fault")
        try:
            prepared.action()
        except ArchitecturalException as fault:
            self._raise(fault)
        return True

    # -- memory ---------------------------------------------------------------------------------

    def _fill(self, address: int, write: bool, fetch: bool) -> bool:
        """Make memory accessible as the guest's tables say; False when the fault was the guest's own, delivered."""
        try:
            self.shadow.fill(address, write, fetch)
        except ArchitecturalException as fault:
            self._refuse(fault, "page fault to the guest")
            return False
        self._own_stores()
        what = "code page" if fetch and self.shadow.view == KERNEL_VIEW else "page"
        if self._guard is not None and self._guard.opened != self._opened:
            self._opened, what = self._guard.opened, "page table written"
        self.exits.count(what, "fill")
        return True

    def _own_stores(self) -> None:
        """A store for which a page was just filled may have to run alone."""
        if self._own_store >= 0:
            self._begin_own_store()
        if self._eager is not None and self._eager.waits:
            self._begin_table_store()

    def _fill_window(self, address: int) -> bool:
        """Map the hypervisor's window in the current address space; False for what is none of the guest's business."""
        if not self.WINDOW.base <= address < self.WINDOW.end:
            return False
        self.shadow.install_window()
        self.exits.count("hypervisor window", "fill")
        return True
