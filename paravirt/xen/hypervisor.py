"""The driver of a Xen guest: its exits, dispatched to hypercalls, emulations or the guest's own handlers.

Room: `paravirt/xen`. The guest's kernel and user code run at level 3 on their own page tables; nothing is rewritten.
SYSCALL from the kernel is a hypercall, from user code a system call. Between an exit and the guest's next instruction
an event that waits is delivered, if the guest takes events.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any, Final

from emulator.board.board import Shutdown as BoardShutdown
from emulator.board.board import ShutdownKind
from emulator.driver import Driver
from emulator.engine.exit import SYSCALL, Exit, ExitKind
from emulator.errors import GuestFault
from emulator.machine import EndKind, Machine, Outcome
from paravirt.accounting import ExitTable
from paravirt.mmu.frame_types import Refused
from paravirt.xen import grants, public
from paravirt.xen.access import GuestAccess, in_hypervisor
from paravirt.xen.board import XenBoard
from paravirt.xen.builder import XenKernel, build
from paravirt.xen.console import Console
from paravirt.xen.descriptors import fault_local
from paravirt.xen.domain import Domain
from paravirt.xen.emulate import Emulator
from paravirt.xen.host import Host, scattered
from paravirt.xen.identity import identify
from paravirt.xen.public import XenError
from paravirt.xen.space import DESCRIPTOR_LIMIT
from paravirt.xen.store import Store
from paravirt.xen.stores import TableStores
from paravirt.xen.table import extended_handlers, handlers
from paravirt.xen.vcpu import CS, FLAT, SS, Crash

_CR0, _CR4, _EFER = 0x8005_0033, 0x628, 0xD01
_DB, _BP, _OF, _UD, _NM, _GP, _PF = 1, 3, 4, 6, 7, 13, 14
_WITH_ERROR: Final = frozenset({8, 10, 11, 12, 13, 14, 17})
_PRESENT, _WRITE, _USER = 1, 2, 4
_MASK: Final = (1 << 64) - 1
_EXITS: Final = Machine.EXITS
_WITHIN: Final = frozenset({ExitKind.PORT_READ, ExitKind.PORT_WRITE, ExitKind.IDENTIFY, ExitKind.TIME_STAMP})
_ENDS: Final = {
    public.Shutdown.POWEROFF: ShutdownKind.POWER_OFF,
    public.Shutdown.REBOOT: ShutdownKind.RESET,
    public.Shutdown.SOFT_RESET: ShutdownKind.RESET,
}


class XenHypervisor(Driver):
    """Runs one Xen guest on one machine."""

    board: XenBoard
    not_saved = (
        "a Xen guest can be neither saved nor recorded: what it shares by grants, event channels and the store is in "
        "no snapshot; leave that out, or run the same image with --virt inline"
    )

    def __init__(
        self,
        machine: Machine,
        pages: int,
        *,
        number: int = 1,
        order: Callable[[int], Any] = scattered,
        timed: bool = False,
        host: Host | None = None,
    ) -> None:
        """`pages` of memory for domain `number`, whose machine frames lie in this `order`."""
        super().__init__(machine)
        self.exits = ExitTable(timed)
        self.host = Host(machine.memory) if host is None else host
        self.domain = Domain(self.host, machine.engine, machine.clock, number, pages, order)
        self.neighbour = self.host.own(self.host.frame_count - self.host.taken) if host is None else None
        """A domain that never runs."""
        self.vcpu = self.domain.vcpu
        self.access: GuestAccess = self.domain.access
        self.store = Store(self.domain.events, number, self.host.store)
        self.console = Console(self.domain.events, machine.board.console)
        self._registers = machine.engine.registers
        self._gpr = self._registers.gpr
        self._view = self.host.view
        self.stores = TableStores(self)
        self._emulate = Emulator(self)
        self.extended = extended_handlers()
        self.samples: array[int] | None = None
        """Nanoseconds that each hypercall took, where somebody wants to know."""
        self.batches: dict[int, int] = {1: 0}
        """Calls of mmu_update by the number of updates in them."""
        self._calls = handlers(self)
        self.call_count = len(self._calls)
        self._cells = [self.exits.cell(name, "hypercall") for name, _ in self._calls]
        self.takes_turns = self.waiting = False
        """Other guests run when this one waits, which it does (`paravirt.xen.together`)."""
        self.console_log = machine.board.console
        """What the console's call, which needs no ring, prints to."""
        known = {
            ExitKind.FAULT: self._fault,
            ExitKind.SOFTWARE_INTERRUPT: self._software_interrupt,
            ExitKind.SYSTEM_CALL: self._make_system_call(),
            ExitKind.PORT_READ: self._port_read,
            ExitKind.PORT_WRITE: self._port_write,
            ExitKind.IDENTIFY: self._identify,
            ExitKind.TIME_STAMP: self._time_stamp,
            ExitKind.BUDGET: self._budget,
            ExitKind.BREAKPOINT: self._breakpoint,
        }
        self._dispatch = [known.get(kind, self._unexpected) for kind in ExitKind]
        self._within = [kind in _WITHIN for kind in ExitKind]
        self._quick_handle = self._make_handle()
        self._identify_cell = self.exits.cell("IDENTIFY_PROCESSOR", "exit")
        self._time_cell = self.exits.cell("READ_TIME_STAMP", "exit")

    # -- a run ----------------------------------------------------------------------------------

    def load(self, kernel: XenKernel) -> None:
        """Build the domain around a kernel, and set its virtual CPU to the entry. Raises `BadImage`."""
        domain = self.domain
        start = build(domain, kernel, self.store.port, self.console.port)
        self.store.connect(domain.page(start.store_frame))
        self.console.connect(domain.page(start.console_frame))
        domain.grants.permit(grants.STORE, 0, start.store_frame)
        domain.grants.permit(grants.CONSOLE, 0, start.console_frame)
        self.board.com1.console = self.console
        domain.set_wall_clock(self.board.start_date)
        self._enter(start.root, start.entry, start.start_info, start.stack)

    def _enter(self, root: int, entry: int, start_info: int, stack: int) -> None:
        vcpu, registers, engine = self.vcpu, self._registers, self.machine.engine
        self.domain.tables.use_root(root)
        vcpu.kernel_root = root
        self.access.use_root(root << 12)
        engine.set_root(root << 12)
        engine.set_control(_CR0, _CR4, _EFER)
        registers.set_table(0, public.DESCRIPTORS, DESCRIPTOR_LIMIT)
        registers.set_table(1, 0, 0)
        for number in range(16):
            self._gpr[number] = 0
        self._gpr[6], self._gpr[4] = start_info, stack
        for index in (0, 3, 4, 5, 6, 7):
            registers.set_segment(index, 0, 0, 0, 0)
        registers.set_segment(CS, public.FLAT_CODE64, *FLAT[public.FLAT_CODE64])
        registers.set_segment(SS, public.FLAT_DATA, *FLAT[public.FLAT_DATA])
        registers.privilege = 3
        registers.rflags = 0x202
        registers.rip = entry
        self.time_skipped()

    def enter(self, state: XenKernel) -> None:
        """As `load`."""
        self.load(state)

    @property
    def pc(self) -> int:
        """Guest-virtual address of the instruction that the guest is at."""
        return int(self._registers.rip)

    @property
    def state(self) -> tuple[Any, ...]:
        """Everything the guest can see of its processor, as a plain value."""
        return self.vcpu.state

    def counters(self) -> list[tuple[str, str]]:
        """Name and value of what is counted besides exits."""
        tables, domain = self.domain.tables, self.domain
        updates, calls = sum(size * count for size, count in self.batches.items()), sum(self.batches.values())
        return [
            ("tables", f"{tables.validated} validated, {tables.updates} entries updated"),
            ("batches", f"{updates} updates in {calls} calls, {updates / (calls or 1):.1f} each"),
            ("events", f"{domain.events.delivered} sent, {domain.timers_set} timers set"),
            (
                "refused",
                ", ".join(f"{reason.name.lower()} {n}" for reason, n in domain.owned.refused.items()) or "none",
            ),
            ("time stamps", f"{self.machine.engine.time_stamps_answered} answered without an exit"),
            ("code", f"forgotten {domain.watch.forgotten} times, {len(domain.watch.contents)} frames watched"),
        ]

    def _handler(self) -> Callable[[Exit], None]:
        if self.samples is not None:
            return self._sampled_handle
        return self.exits.handler(self._quick_handle)

    def _sampled_handle(self, exit_: Exit) -> None:
        call = exit_.kind is ExitKind.SYSTEM_CALL and self.vcpu.kernel_mode
        before = time.perf_counter_ns()
        self._quick_handle(exit_)
        if call and self.samples is not None:
            self.samples.append(time.perf_counter_ns() - before)

    def _handle(self, exit_: Exit) -> None:
        self._quick_handle(exit_)

    def _make_handle(self) -> Callable[[Exit], None]:
        """What every exit comes to: a closure over everything it touches."""
        vcpu, view, dispatch, within = self.vcpu, self._view, self._dispatch, self._within

        def handle(exit_: Exit) -> None:
            if self.trace is not None:
                self._trace_exit(exit_, vcpu.level, self._registers.rip)
            self._unlooked = unlooked = self._unlooked + 1
            if unlooked == _EXITS:
                self._end_if_over()
            kind = exit_.kind
            try:
                dispatch[kind](exit_)
                info = vcpu.info_at
                if view[info] and not view[info + 1]:
                    if within[kind]:
                        self.engine.set_deadline(self.engine.progress + 1)
                    elif vcpu.event_entry is not None:
                        self._deliver_event()
            except Crash as crash:
                self.crash(str(crash))

        return handle

    def _deliver_event(self) -> None:
        if self.stores.stepping:
            return
        self.exits.count("event delivered", "injection")
        self._event("event", 0, 0, self._registers.rip)
        self.vcpu.raise_event()

    def crash(self, why: str) -> None:
        """End the run: the guest cannot go on."""
        self.end(Outcome(EndKind.CRASHED, detail=why))

    def shut_down(self, reason: int) -> None:
        """End the run as the guest asks."""
        kind = _ENDS.get(public.Shutdown(reason))
        if kind is None:
            self.crash(f"it says so itself (shutdown by {public.Shutdown(reason).name.lower()})")
            return
        self.board.end(BoardShutdown(kind))
        self._end_if_over()

    def block(self) -> None:
        """The guest waits for an event; time passes to the next one."""
        board, view = self.board, self._view
        info = self.vcpu.info_at
        if self.takes_turns:
            if not view[info]:
                self.waiting = True
                self.end(Outcome(EndKind.STOPPED))
            return
        self.domain.events.on_event = self._wake
        board.intr = view[info] != 0
        self._wait_for_interrupt()
        self.domain.events.on_event = _nothing
        board.intr = False
        self.time_skipped()

    @property
    def has_event(self) -> bool:
        """An event is pending that the guest has not masked by its port."""
        return self._view[self.vcpu.info_at] != 0

    def _wake(self) -> None:
        self.board.intr = True

    def time_skipped(self) -> None:
        """The clock has jumped, or begins: the engine answers RDTSC by what it is from here on."""
        line = self.machine.clock.line
        if line is not None:
            self.machine.engine.answer_time_stamp(*line)

    def time_changed(self) -> None:
        """The clock's next event is another."""
        self.machine.arm()

    def raise_exception(self, vector: int, error: int | None = None, address: int = 0) -> None:
        """Take the guest to its handler. Raises `Crash`."""
        self._event("exception", vector, error or 0, self._registers.rip, address)
        self.vcpu.raise_exception(vector, error, address)

    # -- calls ----------------------------------------------------------------------------------

    def _make_system_call(self) -> Callable[[Exit], None]:
        """The hottest path: a closure over everything it touches."""
        vcpu, gpr, calls, exits = self.vcpu, self._gpr, self._calls, self.exits
        registers, cells, count, refusals = self._registers, self._cells, len(self._calls), self.domain.owned.refused
        advance, user_call, selector, flatten = (
            registers.advance,
            self._user_system_call,
            registers.selector,
            self._flatten,
        )
        flat = public.FLAT_CODE64
        no_call, invalid = -public.Errno.ENOSYS & _MASK, -public.Errno.EINVAL & _MASK

        def system_call(exit_: Exit) -> None:
            if not vcpu.kernel_mode or exit_.vector != SYSCALL:
                user_call(exit_)
                return
            advance(2)
            if selector(CS) != flat:
                flatten()
            number = gpr[0]
            if number >= count:
                exits.count("no such call", "hypercall")
                gpr[0] = no_call
                return
            cell = exits.last = cells[number]
            cell[0] += 1
            try:
                result = calls[number][1](gpr[7], gpr[6], gpr[2], gpr[10], gpr[8])
                if result is not None:
                    gpr[0] = result & _MASK
            except XenError as error:
                gpr[0] = -error.errno & _MASK
            except Refused as refused:
                refusals[refused.reason] += 1
                gpr[0] = invalid

        return system_call

    def _flatten(self) -> None:
        """SYSCALL has loaded code and stack segments, which a hypercall leaves there."""
        for index, segment in ((CS, public.FLAT_CODE64), (SS, public.FLAT_DATA)):
            self._registers.set_segment(index, segment, *FLAT[segment])

    def _user_system_call(self, exit_: Exit) -> None:
        vcpu = self.vcpu
        self.exits.count("SYSTEM_CALL", "fault")
        self._event("system call", self._gpr[0], 0, self._registers.rip)
        if vcpu.kernel_mode:
            vcpu.raise_exception(_GP, 0)
        elif exit_.vector != SYSCALL:
            vcpu.enter_system_call(vcpu.sysenter_entry, public.FLAT_CODE32, exit_.length)
        elif self._registers.segment(CS)[3] >> 21 & 1:
            vcpu.enter_system_call(vcpu.syscall_entry, public.FLAT_CODE64, exit_.length)
        else:
            vcpu.enter_system_call(vcpu.syscall32_entry, public.FLAT_CODE32, exit_.length)

    def count_within(self, number: int) -> None:
        """A call that came within another."""
        name = self._calls[number][0]
        self.exits.cell(name, "chained")[0] += 1

    def call(self, number: int, *arguments: int) -> int | None:
        """Make a hypercall; its result, or None where the registers are set already."""
        try:
            return self._calls[number][1](*arguments)
        except XenError as error:
            return -error.errno
        except Refused as refused:
            self.domain.owned.refused[refused.reason] += 1
            return -public.Errno.EINVAL

    # -- faults ---------------------------------------------------------------------------------

    def _fault(self, exit_: Exit) -> None:
        vector = exit_.vector
        if self.vcpu.breakpoints.passed_at >= 0:
            self.vcpu.breakpoints.interrupted(self._registers.rip)
        if vector == _PF:
            self._page_fault(exit_.address, exit_.error)
        elif vector == _DB and self.stores.stepping:
            self.stores.end_step()
        elif (vector == _GP and self._emulate.privileged()) or (vector == _UD and self._emulate.undefined()):
            return
        elif vector == _NM and self.vcpu.task_switched:
            self.set_task_switched(False)
            self._reflect(vector, None)
        else:
            if vector == _DB:
                self.vcpu.debug[6] |= exit_.error or 1 << 14
            if vector == _GP:
                vector = self._emulate.fault_of(exit_.error)
            self._reflect(vector, exit_.error if vector in _WITH_ERROR else None)

    def _breakpoint(self, exit_: Exit) -> None:
        """A breakpoint of code: the guest is before the instruction."""
        vcpu = self.vcpu
        vcpu.debug[6] |= vcpu.breakpoints.met(vcpu.debug, exit_.address)
        self._reflect(_DB, None)

    def _reflect(self, vector: int, error: int | None, address: int = 0) -> None:
        self.exits.count("exception to the guest", "fault")
        self.raise_exception(vector, error, address)

    def _page_fault(self, address: int, error: int) -> None:
        vcpu = self.vcpu
        if in_hypervisor(address) and not error & _PRESENT and fault_local(self.domain, address):
            self.exits.count("local descriptor table", "fill")
            return
        if vcpu.kernel_mode:
            if error & (_PRESENT | _WRITE) == _PRESENT | _WRITE and self.stores.emulate(address):
                return
            error &= ~_USER
        if self.stores.stepping:
            self.stores.abandon()
        self._reflect(_PF, error, address)

    def set_task_switched(self, on: bool) -> None:
        """CR0.TS."""
        self.vcpu.task_switched = on
        self.machine.engine.set_control(_CR0 | 8 if on else _CR0, _CR4, _EFER)

    def _software_interrupt(self, exit_: Exit) -> None:
        vcpu, vector = self.vcpu, exit_.vector
        self.exits.count("software interrupt", "fault")
        gate = vcpu.gates[vector]
        # Xen hands breakpoints and overflows on whatever level their gates have.
        if gate is None or (vector not in (_BP, _OF) and gate.level < (1 if vcpu.kernel_mode else 3)):
            self.raise_exception(_GP, vector * 8 + 2)
            return
        self._registers.advance(exit_.length)
        self._event("software interrupt", vector, 0, self._registers.rip)
        vcpu.bounce(gate.address, gate.masks)

    # -- within an instruction ------------------------------------------------------------------

    def _identify(self, exit_: Exit) -> None:
        self.exits.last = self._identify_cell
        self._identify_cell[0] += 1
        if self.vcpu.identify_faults and not self.vcpu.kernel_mode:
            exit_.refused = True
            return
        gpr = self._gpr
        gpr[0], gpr[3], gpr[1], gpr[2] = identify(gpr[0] & 0xFFFF_FFFF, gpr[1] & 0xFFFF_FFFF)

    def _time_stamp(self, _exit: Exit) -> None:
        self.exits.last = self._time_cell
        self._time_cell[0] += 1
        value, gpr = self.machine.clock.now(), self._gpr
        gpr[0], gpr[2] = value & 0xFFFF_FFFF, value >> 32

    def _port_read(self, exit_: Exit) -> None:
        self.exits.count("READ_PORT", "exit")
        if not self.vcpu.may_use_ports:
            exit_.refused = True
        else:
            exit_.value = self.board.ports.read(exit_.port, exit_.size)

    def _port_write(self, exit_: Exit) -> None:
        self.exits.count("WRITE_PORT", "exit")
        if not self.vcpu.may_use_ports:
            exit_.refused = True
        else:
            self.board.ports.write(exit_.port, exit_.size, exit_.value)

    def _budget(self, exit_: Exit) -> None:
        self.exits.count("tick", "budget")
        super()._budget(exit_)

    def _unexpected(self, exit_: Exit) -> None:
        raise GuestFault(f"the engine reports {ExitKind(exit_.kind).name} at {self.pc:#x} for a Xen guest")


def _nothing() -> None:
    """An event while the guest runs is seen behind the next exit."""
