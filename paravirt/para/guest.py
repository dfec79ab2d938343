"""The hypervisor of a para-virtual guest: calls in, frames out, whatever the instruction set.

Room: `paravirt/para`. `ParaGuest` is mixed into an instruction set's own hypervisor (`paravirt.para.modes`): views of
memory, translated code and the event loop are those; what replaces a processor's privileged half is here. Numbers and
layouts are `paravirt.abi.calls` and `paravirt.abi.guests`; nothing that a guest gives may harm anything but itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, ClassVar, Final

from emulator.isa.exceptions import ArchitecturalException, ProcessorShutdown
from emulator.machine import EndKind, Machine, Outcome
from paravirt.abi import calls as c
from paravirt.abi import guests as g
from paravirt.abi.calls import Call, Status
from paravirt.abi.guests import Convention, Trap
from paravirt.hypervisor import Action
from paravirt.para.events import Channels
from paravirt.para.saved import ParaSaving
from paravirt.para.tables import ShadowedTables, TableCalls
from paravirt.translator import Translator

_LONGEST_TIMER: Final = 1 << 32
"""Microseconds: what a 32-bit guest can ask for is never refused."""
_STORED: Final = 16
"""Bytes of an element of PTE_UPDATE."""


class Refused(Exception):
    """A call is not done: why."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class ParaGuest(ParaSaving):
    """What a para-virtual guest's hypervisor adds. Abstract: see `paravirt.para.modes`."""

    CONVENTION: ClassVar[Convention]
    KERNEL_LEVEL: ClassVar[int]
    """The privilege level of the guest's kernel, as the virtual CPU numbers it."""
    entry_bytes: int
    levels: int
    byte_order: Any = "little"

    def __init__(self, machine: Machine, translator: Translator, *, timed: bool = False) -> None:
        self.channels = machine.board = Channels(machine.board, machine.clock)
        self.traps = [0] * len(Trap)
        """The guest's handlers."""
        self.kernel_stack = 0
        """End of the stack for entries from user code."""
        super().__init__(machine, translator, timed=timed)
        word, window = self.CONVENTION.word, self.WINDOW
        self.channels.attach(self.shared, window.pending // word, word)
        self.shared[g.VERSION_OFFSET // word] = c.PARA_VERSION
        self._fpu_word = g.FPU_OFFSET // word
        self._flag_word = window.interrupt_state // word
        self._flag = window.enabled & window.last_address, window.disabled & window.last_address
        self._mask_of_word = (1 << 8 * word) - 1
        count = len(self.CONVENTION.frame) + len(g.TAIL)
        order = "<" if self.byte_order == "little" else ">"
        letter = "Q" if word == 8 else "I"
        self._frame = struct.Struct(f"{order}{count}{letter}")
        self._element = struct.Struct(f"{order}6{letter}")
        self._letter = letter
        self._order = order
        self._updates = struct.Struct(order + "QQ")
        self._plant()
        work = self._work()
        self._calls: dict[int, tuple[Callable[..., int | None], int, list[int]]] = {
            row.call: (work[row.call], len(row.arguments), self.exits.cell(row.call.name, "call")) for row in c.CALLS
        }
        self._unknown = self.exits.cell("UNKNOWN", "call")
        self._tables: TableCalls | None = None

    def _work(self) -> dict[Call, Callable[..., int | None]]:
        """What does each call: it gives the result, or None where the guest goes on elsewhere."""
        tables = self._table_calls
        return {
            Call.VERSION: lambda: c.PARA_VERSION,
            Call.CONSOLE_WRITE: self._console_write,
            Call.CONSOLE_READ: self._console_read,
            Call.SET_TRAP_TABLE: self._set_trap_table,
            Call.STACK_SWITCH: self._stack_switch,
            Call.RETURN: self._return,
            Call.EVENTS_DELIVER: lambda: 0,
            Call.EVENT_SEND: self._event_send,
            Call.TIMER_SET: self._timer_set,
            Call.TIME: self._time,
            Call.YIELD: self._yield,
            Call.BLOCK: self._block,
            Call.SHUTDOWN: self._shutdown,
            Call.MULTICALL: self._multicall,
            Call.THREAD_REGISTER: self._thread_register,
            Call.CODE_CHANGED: self._code_written,
            Call.PTE_UPDATE: self._pte_update,
            Call.PTE_READ: self._pte_read,
            Call.PTE_UPDATE_PAGE: self._pte_update_page,
            Call.PIN: lambda table, level: tables().pin(table, level),
            Call.UNPIN: lambda table: tables().unpin(table),
            Call.NEW_BASE: self._new_base,
            Call.FLUSH_PAGE: lambda address: tables().flush_page(address),
            Call.FLUSH_ALL: lambda: tables().flush_all(),
            Call.TABLE_OPEN: lambda table: tables().open_table(table),
            Call.TABLE_CLOSE: lambda table: tables().close_table(table),
        }

    # -- what an instruction set adds -----------------------------------------------------------

    def _registers_out(self) -> tuple[int, ...]:
        """The guest's registers in the order of the frame, and its arithmetic flags."""
        raise NotImplementedError

    def _registers_in(self, values: tuple[int, ...], flags: int) -> None:
        """Load registers as a frame has them. Whatever the values, the processor stays deprivileged."""
        raise NotImplementedError

    def _at_level(self, user: bool) -> None:
        """The virtual CPU is in user code from now on, or in the kernel."""
        raise NotImplementedError

    def _enter_handler(self, handler: int, frame: int) -> None:
        """In the kernel already: begin a handler as a function whose argument and stack are the frame."""
        raise NotImplementedError

    def _explain(self, fault: ArchitecturalException) -> tuple[Trap, int, int]:
        """What an exception of the processor is to the guest: trap, detail, address."""
        raise NotImplementedError

    def _begin_again(self) -> int:
        """Where the guest goes on when a trap has been dealt with."""
        return self.vcpu.pc

    def _get(self, register: str) -> int:
        """A general register by its name in the convention."""
        raise NotImplementedError

    def _set(self, register: str, value: int) -> None:
        raise NotImplementedError

    def _thread_register(self, value: int) -> int:
        """What user code finds its thread by."""
        raise NotImplementedError

    def _floating_point(self, enabled: bool) -> None:
        """Let the real processor follow the shared word; nothing to do where it does already."""
        raise NotImplementedError

    def _reach(self, address: int, write: bool) -> int:
        """Offset in guest memory of what the kernel has at an address. Raises the guest's exception, or
        `Refused` for what is no memory."""
        raise NotImplementedError

    # -- `TableMachine` -------------------------------------------------------------------------

    def is_memory(self, physical: int, size: int) -> bool:
        """Whether the guest-physical range is the guest's own memory."""
        memory = self.machine.memory
        return memory.base <= physical and physical + size <= memory.base + memory.size

    def is_root(self, value: int) -> bool:
        """Whether a root register may hold the value: a whole page of memory."""
        return not value & 0xFFF and self.is_memory(value, 4096)

    def entry_address(self, address: int) -> int | None:
        """Guest-physical address of the last-level entry for an address."""
        raise NotImplementedError

    def load(self, physical: int, size: int) -> bytes:
        """Guest memory."""
        return self.machine.memory.read_bytes(physical, size)

    def store(self, physical: int, data: bytes) -> None:
        """Store into guest memory for the guest."""
        self._put(physical - self.machine.memory.base, data)

    def load_root(self, value: int) -> None:
        """Change the address space."""
        raise NotImplementedError

    def forget_page(self, address: int) -> None:
        """Drop one translation."""
        raise NotImplementedError

    def forget_all(self) -> None:
        """Drop all."""
        raise NotImplementedError

    # -- entry points ---------------------------------------------------------------------------

    def _plant(self) -> None:
        """Make the entry points in the window."""
        convention = self.CONVENTION
        entries = {convention.call_entry: self._call, convention.return_entry: self._return_by_jump}
        for address, action in entries.items():
            offset = address - self.WINDOW.base
            trap = self._trap_bytes()
            self.code.window_bytes()[offset : offset + len(trap)] = trap
            self.code.fixup_sites[address] = address
            self._entries[address] = action, self._uncounted

    _entries: dict[int, tuple[Action, list[int]]]

    def _make(self) -> None:
        self._entries = {}
        self._uncounted = [0, 0]
        super()._make()

    def _trap_bytes(self) -> bytes:
        return self.CONVENTION.trap

    def _prepare(self, pc: int) -> tuple[Action, list[int]] | None:
        entry = self._entries.get(pc)
        if entry is None:
            return super()._prepare(pc)
        self._actions[pc] = entry
        return entry

    def _call(self) -> None:
        """The guest calls. Raises the guest's exception where there is no return address."""
        convention = self.CONVENTION
        get = self._get
        known = self._calls.get(get(convention.number))
        if known is None:
            self._count(self._unknown)
            resume = self._resume()
            result: int | None = -Status.UNKNOWN_CALL
        else:
            work, count, cell = known
            self._count(cell)
            resume = self._resume()
            arguments = [get(register) for register in convention.arguments[:count]]
            result = self._do(work, arguments)
        if resume >= 0 and result is not None:
            self._leave_call(resume)
            self._set(convention.result, result & self._mask_of_word)
        if self._eager is not None and self._eager.waits:
            self._eager.follow()

    def call(self, number: int, arguments: tuple[int, ...]) -> int | None:
        """Do a call as the guest would: its result, or None where it does not return."""
        known = self._calls.get(number)
        if known is None:
            return -Status.UNKNOWN_CALL
        return self._do(known[0], list(arguments[: known[1]]))

    def _do(self, work: Callable[..., int | None], arguments: list[int]) -> int | None:
        try:
            return work(*arguments)
        except Refused as refused:
            return -refused.status
        except ArchitecturalException:
            return -Status.BAD_ADDRESS

    def _resume(self) -> int:
        """Where the guest goes on behind the call that it is in."""
        convention = self.CONVENTION
        if convention.link:
            return self._get(convention.link)
        word = convention.word
        return int.from_bytes(self._peek(self._get(convention.stack), word), self.byte_order)

    def _leave_call(self, resume: int) -> None:
        convention = self.CONVENTION
        if not convention.link:
            self._set(convention.stack, self._get(convention.stack) + convention.word & self._mask_of_word)
        self.vcpu.pc = resume

    # -- the guest's memory ---------------------------------------------------------------------

    def _pieces(self, address: int, size: int, write: bool) -> list[tuple[int, int]]:
        """Offsets in guest memory and sizes of what the kernel has at `address`; all of it can be had."""
        if address + size > self.WINDOW.last_address + 1:
            raise Refused(Status.BAD_ADDRESS)
        pieces = []
        while size > 0:
            step = min(size, 4096 - (address & 0xFFF))
            pieces.append((self._reach(address, write), step))
            address += step
            size -= step
        return pieces

    def _peek(self, address: int, size: int) -> bytes:
        memory = self.machine.memory.view
        return b"".join([bytes(memory[at : at + step]) for at, step in self._pieces(address, size, False)])

    def _poke(self, address: int, data: bytes) -> None:
        done = 0
        for at, step in self._pieces(address, len(data), True):
            self._put(at, data[done : done + step])
            done += step

    def _put(self, at: int, data: bytes) -> None:
        self.shadow.written(at >> 12)
        self.machine.memory.view[at : at + len(data)] = data

    # -- frames ---------------------------------------------------------------------------------

    def _trap(self, trap: Trap, detail: int, address: int) -> None:
        """Enter the guest's handler; its PC is what the frame shall have."""
        handler = self.traps[trap]
        pc = self._begin_again()
        if not handler:
            raise ProcessorShutdown(f"{trap.name} at {pc:#x}, for which the guest has set no handler")
        convention, mask = self.CONVENTION, self._mask_of_word
        user = self.vcpu.level == self.USER_LEVEL
        *registers, flags = self._registers_out()
        stack = self.kernel_stack if user else self._get(convention.stack)
        frame = (stack - convention.frame_bytes) & mask & ~15
        state = (g.STATE_USER if user else 0) | (g.STATE_INTERRUPTS if self._open() else 0)
        tail = (pc, flags, state, trap, detail & mask, address & mask)
        try:
            if not convention.link:
                back = convention.return_entry.to_bytes(convention.room, "little")
                self._poke(frame - convention.room, back + self._frame.pack(*registers, *tail))
            else:
                self._poke(frame, self._frame.pack(*registers, *tail))
        except (ArchitecturalException, Refused):
            raise ProcessorShutdown(
                f"{trap.name} at {pc:#x}: the stack at {frame:#x}, where its frame belongs, is not there"
            ) from None
        if user:
            self._at_level(False)
        self._set_open(False)
        self._enter_handler(handler, frame)
        self._set(convention.handler, frame)
        self._set(convention.stack, frame - convention.room & mask)
        if convention.link:
            self._set(convention.link, convention.return_entry)

    def _open(self) -> bool:
        """Whether events may be delivered to the guest, as its virtual PSR says."""
        return bool(self.shared[self._flag_word] == self._flag[0])

    def _set_open(self, enabled: bool) -> None:
        self.shared[self._flag_word] = self._flag[0 if enabled else 1]

    def _may_deliver(self) -> bool:
        return self._stepping is None and self._open()

    def _return(self, frame: int) -> int | None:
        """RETURN. Nothing changes where the frame cannot be read."""
        words = self._frame.unpack(self._peek(frame, self._frame.size))
        count = len(self.CONVENTION.frame)
        pc, flags, state = words[count : count + 3]
        user = bool(state & g.STATE_USER)
        self._synchronise()
        if user:
            self._at_level(True)
        self._registers_in(words[:count], flags)
        self._set_open(bool(state & g.STATE_INTERRUPTS))
        self.vcpu.pc = pc
        return None

    def _return_by_jump(self) -> None:
        """A handler has returned: its frame is on top of the stack."""
        convention = self.CONVENTION
        self._count(self._calls[Call.RETURN][2])
        stack = self._get(convention.stack)
        room = convention.room if convention.link else 0  # where the return address lay there it was taken
        if self._do(self._return, [stack + room & self._mask_of_word]) is not None:
            raise ProcessorShutdown(f"a handler returned to the frame at {stack:#x}, which is not there")
        if self._eager is not None and self._eager.waits:
            self._eager.follow()

    def _synchronise(self) -> None:
        """The shared page's floating-point word becomes the processor's."""
        self._floating_point(self.shared[self._fpu_word] != 0)

    # -- events of the processor ----------------------------------------------------------------

    def _inject(self, fault: ArchitecturalException) -> None:
        trap, detail, address = self._explain(fault)
        if trap is Trap.FLOATING_POINT and self.vcpu.level != self.USER_LEVEL and self.shared[self._fpu_word]:
            self._synchronise()  # enabled since the last entry: this one makes it so, and the instruction comes again
            return
        self._trap(trap, detail, address)

    def _take_interrupt(self) -> None:
        ports = self.channels.take()
        self._event("interrupt", ports, 0, self.vcpu.pc)
        self._trap(Trap.EVENT, ports, 0)

    def _called_by_user(self, number: int) -> None:
        """User code has called; PC is behind the instruction."""
        self.exits.count("SYSTEM_CALL", "fault")
        self._event("system call", number, 0, self.vcpu.pc)
        self._trap(Trap.SYSTEM_CALL, 0, 0)

    def _line_changed(self, level: bool) -> None:
        """The board's own lines are no business of the guest's."""

    def _cannot_deliver(self) -> None:
        """The guest enables by a store and then calls."""

    def _interrupt_waits(self) -> None:
        if self._may_deliver():
            self.engine.set_deadline(self.engine.progress + 1)

    def _device_written(self) -> None:
        self.machine.arm()

    # -- calls ----------------------------------------------------------------------------------

    def _table_calls(self) -> TableCalls:
        tables = self._tables
        if tables is None:
            technique = getattr(self.shadow, "technique", None)
            tables = self._tables = getattr(technique, "calls", None) or ShadowedTables(self)
        return tables

    def _console_write(self, address: int, size: int) -> int:
        if size > c.MOST_BYTES:
            raise Refused(Status.TOO_MUCH)
        self.machine.console(self._peek(address, size))
        return size

    def _console_read(self, address: int, size: int) -> int:
        if size > c.MOST_BYTES:
            raise Refused(Status.TOO_MUCH)
        self._pieces(address, size, True)
        data = self.channels.typed(size)
        self._poke(address, data)
        return len(data)

    def _set_trap_table(self, address: int, count: int) -> int:
        if count > len(Trap):
            raise Refused(Status.TOO_MUCH)
        word = self.CONVENTION.word
        handlers = struct.unpack(f"{self._order}{count}{self._letter}", self._peek(address, count * word))
        self.traps[:] = [*handlers, *([0] * (len(Trap) - count))]
        return 0

    def _stack_switch(self, stack: int) -> int:
        self.kernel_stack = stack
        return 0

    def _event_send(self, port: int) -> int:
        if not g.FIRST_OWN_PORT <= port < g.PORTS:
            raise Refused(Status.INVALID)
        self.channels.send(port)
        return 0

    def _timer_set(self, microseconds: int, periodic: int) -> int:
        if microseconds >= _LONGEST_TIMER:
            raise Refused(Status.INVALID)
        self.channels.set_timer(microseconds * 1000, periodic != 0)
        self.machine.arm()
        return 0

    def _time(self, address: int) -> int:
        self._poke(address, (self.machine.clock.now() & (1 << 64) - 1).to_bytes(8, self.byte_order))
        return 0

    def _yield(self) -> int:
        return 0

    def _block(self) -> int:
        self._wait_for_interrupt()
        return 0

    def _shutdown(self, status: int) -> int | None:
        kind = EndKind.DEBUG_EXIT if status else EndKind.POWER_OFF
        self.end(Outcome(kind, min(status, 0xFF)))
        return 0

    def _code_written(self, address: int, size: int) -> int:
        """Code is followed by itself: a frame is written or executed, and never both."""
        if size > self.WINDOW.last_address - address:
            raise Refused(Status.INVALID)
        note = getattr(self.shadow, "code_written", None)
        if note is not None:
            note(address, size)
        return 0

    def _new_base(self, root: int, part: int) -> int | None:
        return self._table_calls().new_base(root, part)

    def load_kernel_root(self, root: int, part: int) -> int:
        """Of an instruction set whose kernel has a root of its own."""
        raise Refused(Status.INVALID)

    def _pte_update(self, address: int, count: int) -> int:
        if count > c.MOST_ELEMENTS:
            raise Refused(Status.TOO_MUCH)
        updates = list(self._updates.iter_unpack(self._peek(address, count * _STORED)))
        return self._table_calls().update(updates)

    def _pte_read(self, address: int, count: int) -> int:
        if count > c.MOST_ELEMENTS:
            raise Refused(Status.TOO_MUCH)
        self._pieces(address, count * _STORED, True)
        pointers = [pointer for pointer, _ in self._updates.iter_unpack(self._peek(address, count * _STORED))]
        values = self._table_calls().read(pointers)
        if isinstance(values, int):
            return values
        self._poke(address, b"".join(map(self._updates.pack, pointers, values)))
        return count

    def _pte_update_page(self, address: int, low: int, high: int) -> int:
        value = low if self.CONVENTION.word == 8 else low | high << 32
        return self._table_calls().update_page(address, value)

    def _multicall(self, address: int, count: int) -> int:
        if count > c.MOST_ELEMENTS:
            raise Refused(Status.TOO_MUCH)
        element = self._element
        self._pieces(address, count * element.size, True)
        mask = self._mask_of_word
        results = []
        for number, _, *arguments in element.iter_unpack(self._peek(address, count * element.size)):
            row = c.BY_NUMBER.get(number)
            if row is None or not row.batch:
                result: int | None = -(Status.UNKNOWN_CALL if row is None else Status.INVALID)
            else:
                result = self.call(number, tuple(arguments))
            results.append(((result or 0) & mask).to_bytes(element.size // 6, self.byte_order))
        for done, data in enumerate(results):
            self._poke(address + done * element.size + len(data), data)
        return count
