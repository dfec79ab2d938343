"""What each para-virtual call does, whatever the instruction set.

Room: `paravirt/para`. `ParaCalls` is the part of `paravirt.para.guest` that does calls by number, with the guest's
memory as they reach it; nothing that a guest gives may harm anything but itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, ClassVar, Final

from emulator.isa.exceptions import ArchitecturalException
from emulator.machine import EndKind, Machine, Outcome
from paravirt.abi import calls as c
from paravirt.abi import guests as g
from paravirt.abi.calls import Call, Status
from paravirt.abi.guests import Convention, Trap
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


class ParaCalls(ParaSaving):
    """Of the hypervisor of a para-virtual guest, what does the guest's calls."""

    CONVENTION: ClassVar[Convention]
    entry_bytes: int
    levels: int
    byte_order: Any = "little"

    def __init__(self, machine: Machine, translator: Translator, *, timed: bool = False) -> None:
        super().__init__(machine, translator, timed=timed)
        word = self.CONVENTION.word
        self._mask_of_word = (1 << 8 * word) - 1
        self._order = "<" if self.byte_order == "little" else ">"
        self._letter = "Q" if word == 8 else "I"
        self._element = struct.Struct(f"{self._order}6{self._letter}")
        self._updates = struct.Struct(self._order + "QQ")
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

    def _return(self, frame: int) -> int | None:
        """RETURN: go on as a frame says."""
        raise NotImplementedError

    def _thread_register(self, value: int) -> int:
        """What user code finds its thread by."""
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

    def _reach(self, address: int, write: bool) -> int:
        """Offset in guest memory of what the kernel has at an address. Raises the guest's exception, or
        `Refused` for what is no memory."""
        raise NotImplementedError

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
