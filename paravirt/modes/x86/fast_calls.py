"""SYSCALL and SYSRET of an x86-64 guest without an exit: when user code may call its kernel so, and what follows.

Room: `paravirt/modes/x86`, a part of the hypervisor. `Crossings` is how the engine does it; here is whether somebody or
something needs the hypervisor to see the call, and what of its own state follows once the guest has crossed.
"""

from collections.abc import Callable
from typing import Final, cast

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.protocol import Capabilities
from emulator.engine.x86 import CrossingEngine
from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.machine import Outcome
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes import without_exit
from paravirt.modes.x86.chain import Chain
from paravirt.modes.x86.crossing import Crossings
from paravirt.modes.x86.requests import X86Requests
from paravirt.modes.x86.vectors import MOST, Vectors

_GP: Final = 13

_IN_VAIN: Final = 16
"""Writes of CR3 in a row for which the way is opened although it was not used behind the last."""


class FastSystemCalls(X86Requests):
    """Of the hypervisor of an x86 guest, what lets user code and its kernel call and return by themselves."""

    _chain: Chain | None
    """What follows at an address of the kernel's, where exits are dear."""
    _return_cell: list[int]
    """Where IRETQs are counted."""

    def _make_fast_calls(self, able: Capabilities) -> None:
        self._crossings: Crossings | None = None
        """How user code calls the kernel without an exit, where the engine can do that."""
        self._threads: dict[int, int] = {}
        """By CR3, the FS base with which user code was entered last."""
        self._went_back = False
        """The exit that is about to be handed up was an IRETQ, and is done."""
        self._used = -1, 0
        """How often the way was used when CR3 was written last, and how many writes there were since."""
        self._inside = {
            (operation.name, "inside"): self.exits.cell(operation.name, "inside")
            for operation in (Operation.SYSTEM_CALL, Operation.RETURN_FROM_SYSTEM_CALL)
        }
        self._returns_inside = self.exits.cell(Operation.RETURN_FROM_EXCEPTION.name, "inside")
        self._invalidations = self.exits.cell(Operation.INVALIDATE_PAGE.name, "inside")
        self._segments_inside = self.exits.cell(Operation.WRITE_SEGMENT_SELECTOR.name, "inside")
        self._swaps_inside = self.exits.cell(Operation.SWAP_GS.name, "inside")
        self._faults_inside = self.exits.cell("page fault to the guest", "inside")
        if able.crosses:
            self.exits.add_from(Operation.SYSTEM_CALL.name, "inside", self._counted)
        self._vectors = Vectors(self.engine) if able.wide_vectors else None

    def _handler(self) -> Callable[[Exit], None]:
        handle = super()._handler()
        return self.exits.handler(self._handle_noted) if self.engine.capabilities.crosses else handle

    def _handle_noted(self, exit_: Exit) -> None:
        """An exit, before which the guest may have noted what was done without one."""
        crossings = self._crossings
        if crossings is not None:
            if crossings.noted:
                crossings.drain()
            if self._registers.rip == crossings.trapped and exit_.kind is ExitKind.FAULT:
                crossings.untrap()
        self._handle(exit_)

    def _show_view(self, view: int) -> None:
        """Ports, descriptors and memory as they are in a view."""
        raise NotImplementedError

    def _make_crossings(self) -> Crossings | None:
        """Made when the guest is entered: what serves it is in place then."""
        able = self.engine.capabilities
        if self._chain is None or Operation.RETURN_FROM_SYSTEM_CALL not in without_exit(able):
            return None
        window, calls = self.code.window_bytes(), self.code.hypercalls
        engine = cast(CrossingEngine, self.engine)
        return Crossings(engine, self.vcpu, self.shadow, window, calls, self._crossed)

    def _open_crossings(self, crossings: Crossings) -> None:
        """User code is about to run: let it call the kernel, if nobody and nothing needs the hypervisor to see that."""
        thread = self._registers.segment_base(r.FS)
        if self._ordinary():
            if len(self._threads) > MOST:
                self._threads.clear()
            self._threads[self.vcpu.cr3] = thread
            self.shadow.fill_user()
            crossings.open(thread)
        else:
            crossings.close()

    def _ordinary(self) -> bool:
        """Whether nobody and nothing needs the hypervisor to see how user code is left and entered."""
        watched = self.observe is not None or self.trace is not None or self.around is not None
        early = self._early and self.vcpu.cr0 & r.CR0_TS
        shown = self.descriptors.shown and not self.descriptors.loads
        return shown and not (watched or early) and self.shadow.technique.name == "snapshot"

    def root_loaded(self) -> None:
        """CR3 was written: the kernel is likely to go on with the thread that ran last in that address space."""
        super().root_loaded()
        crossings, thread = self._crossings, self._threads.get(self.vcpu.cr3)
        if crossings is None or thread is None or not crossings.leads or not self._ordinary():
            return
        used, (before, times) = crossings.used, self._used
        self._used = used, times + 1 if used == before else 0
        if self._used[1] > _IN_VAIN:
            return  # a kernel that patches its text goes to and fro, and not to user code
        if self._vectors is not None:
            self._vectors.enter((self.vcpu.cr3, thread))
        self.shadow.freshen_user()
        self.shadow.fill_user()
        crossings.open(thread)

    def _crossed(self, user: bool) -> None:
        """The guest has perhaps gone from user code to its kernel or back, without an exit."""
        crossings = self._crossings
        if crossings is not None and crossings.noted:
            crossings.drain()
        if crossings is None or (user and self._view_level == 3) or crossings.stays(self._registers.rip):
            return
        if not user and self._view_level == 3 and self._goes_back(crossings):
            return
        crossings.segments(user)
        if self._view_level != self.vcpu.level:
            self._view_level = self.vcpu.level
            self._show_view(USER_VIEW if user else KERNEL_VIEW)

    def _goes_back(self, crossings: Crossings) -> bool:
        """Do the IRETQ at which the kernel stands, to which user code came without an exit: then nothing of what serves
        user code has changed since it was entered, and neither the kernel's view is shown here nor user code's again.
        Whether that was done; the exit itself is over then."""
        registers = self._registers
        known, thread = self._actions.get(registers.rip), registers.segment_base(r.FS)
        if known is None or known[1] is not self._return_cell or self.returns is None:
            return False
        if self._in_shadow or self._stepping is not None or registers.trap_flag:
            return False
        if cast(CrossingEngine, self.engine).raw_vector != _GP or not self._ordinary():
            return False
        if self._threads.get(self.vcpu.cr3) != thread or not crossings.leads_back(thread) or not self.returns.again():
            return False
        self._count(known[1])
        self.shadow.enter_again()
        self._returned()
        crossings.switched(True)
        self._went_back = True
        return True

    def _returned(self) -> None:
        """The guest's handler of a page fault has returned, and the access comes again: fill what it will miss."""
        raise NotImplementedError

    def _counted(self) -> int:
        """Somebody looks at the exit table: what more of them there are is in their cells then."""
        self._count_crossings()
        return 0

    def _count_crossings(self) -> None:
        """Have what was done without an exit in the exit table."""
        if self._crossings is not None:
            into, back = self._crossings.counts
            self._faults_inside[0] = self._crossings.faults
            self._returns_inside[0] = self._crossings.returns
            self._invalidations[0] = self._crossings.invalidations
            self._segments_inside[0], self._swaps_inside[0] = self._crossings.traps
            for (operation, _), cell in self._inside.items():
                cell[0] = back if operation == Operation.RETURN_FROM_SYSTEM_CALL.name else into

    def _refault(self, crossings: Crossings) -> tuple[int, int] | None:
        """A page fault of user code is not one of those that reach the kernel without an exit, or something is wrong on
        the way: go back to user code, to where it was raised. Error code and address; None for a divide error."""
        seen = self._view_level == 3
        found = crossings.refault()
        if seen:
            self.shadow.enter_again()
        else:
            self._view_level = 3
            self._show_view(USER_VIEW)
        return found

    def descriptors_changed(self) -> None:
        """A descriptor-table register was loaded."""
        if self._crossings is not None:
            self._crossings.tables_changed()
        super().descriptors_changed()

    def _hold_crossings(self) -> None:
        """Something makes a difference to how user code is entered: do that here, next time."""
        if self._crossings is not None:
            self._crossings.hold()

    def _forget_crossings(self) -> None:
        """Memory, tables and the processor were restored: what was known of them goes."""
        if self._crossings is None:
            self._crossings = self._make_crossings()
        if self._crossings is not None:
            self._crossings.forget()
            self._crossings.begin(self._view_level == 3)
            self.descriptors.keeps = False

    def end(self, outcome: Outcome) -> None:
        """End the run after this exit."""
        self._count_crossings()
        super().end(outcome)

    def _learn_crossings(self, crossings: Crossings, chain: Chain) -> None:
        """The kernel was entered with an exit: see whether its first instructions are such as can be done without."""
        crossings.learn(chain.after(self.vcpu.lstar))
        self.descriptors.keeps = crossings.leads

    def _cannot_deliver(self) -> None:
        waits = self._crossings is not None and not self._in_shadow and self._in_fixup(self.vcpu.rip)
        if self.vcpu.level == 3 or waits:
            # User code with IOPL 3 may open its flag without an exit, and a fixup may be about to go back to user code
            # without one: look again at the next block.
            self.engine.set_deadline(self.engine.progress + 2)

    def _code_changed(self, page: int) -> None:
        super()._code_changed(page)
        if self._crossings is not None and self._crossings.code_changed(page):
            self.descriptors.keeps = False
