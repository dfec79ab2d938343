"""The page-table calls of a para-virtual guest, and how they are done where its tables are shadowed.

Room: `paravirt/para`. A technique of memory virtualisation that owns the guest's tables (direct paging) offers
`TableCalls` as its attribute `calls`; for every other one `ShadowedTables` stores what the guest asks for into its
memory, and the shadow follows as it does anyway. No method may raise for anything that a guest gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from emulator.isa.exceptions import ArchitecturalException
from paravirt.abi.calls import Status

if TYPE_CHECKING:
    from paravirt.para.machine import TableMachine

Update = tuple[int, int]
"""Guest-physical address of an entry, and its new value."""


class TableCalls(Protocol):
    """How page-table calls are done. Every result is 0 (or a count), or the negative of a `Status`."""

    def update(self, updates: Sequence[Update]) -> int:
        """Store entries in order, up to the first that is refused; how many, or why the first was refused."""
        ...

    def read(self, pointers: Sequence[int]) -> list[int] | int:
        """The entries at guest-physical addresses as the guest would have written them, or why not."""
        ...

    def update_page(self, address: int, value: int) -> int:
        """Store the last-level entry that translates `address` now, and flush that page."""
        ...

    def pin(self, table: int, level: int) -> int:
        """A guest-physical page is a table of that level (1: last) from now on, whether used or not."""
        ...

    def unpin(self, table: int) -> int:
        """It is one only as long as it is used."""
        ...

    def new_base(self, root: int, part: int = 0) -> int:
        """Load a root: the first, or the kernel's own where there is one."""
        ...

    def flush_page(self, address: int) -> int:
        """Forget one translation."""
        ...

    def flush_all(self) -> int:
        """Forget all."""
        ...

    def open_table(self, table: int) -> int:
        """Unhook a last-level table, so that the guest may write it."""
        ...

    def close_table(self, table: int) -> int:
        """Check it and hook it in again."""
        ...


class ShadowedTables:
    """Page-table calls over shadow tables: a table is memory, which the guest may write by itself as well."""

    def __init__(self, machine: TableMachine) -> None:
        self._machine = machine
        self._bytes = machine.entry_bytes
        self._limit = 1 << 8 * machine.entry_bytes

    def update(self, updates: Sequence[Update]) -> int:
        """Every entry within memory is stored: what it maps is looked at when it is used."""
        for done, (pointer, value) in enumerate(updates):
            status = self._store(pointer, value)
            if status:
                return done or status
        return len(updates)

    def read(self, pointers: Sequence[int]) -> list[int] | int:
        """What lies in memory."""
        size, machine = self._bytes, self._machine
        if any(pointer % size for pointer in pointers):
            return -Status.INVALID
        if not all(machine.is_memory(pointer, size) for pointer in pointers):
            return -Status.BAD_ADDRESS
        return [int.from_bytes(machine.load(pointer, size), machine.byte_order) for pointer in pointers]

    def update_page(self, address: int, value: int) -> int:
        """Fails where there is no last-level table for the address."""
        pointer = self._machine.entry_address(address)
        if pointer is None:
            return -Status.INVALID
        return self._store(pointer, value) or self.flush_page(address)

    def pin(self, table: int, level: int) -> int:
        """Shadowed tables have no types: nothing to keep."""
        known = 1 <= level <= self._machine.levels and self._machine.is_memory(table, 4096) and not table & 0xFFF
        return 0 if known else -Status.INVALID

    def unpin(self, table: int) -> int:
        """As `pin`."""
        return self.pin(table, 1)

    def new_base(self, root: int, part: int = 0) -> int:
        """The root must lie in memory."""
        if part:
            return self._machine.load_kernel_root(root, part)
        if not self._machine.is_root(root):
            return -Status.INVALID
        self._machine.load_root(root)
        return 0

    def flush_page(self, address: int) -> int:
        """INVLPG's like."""
        try:
            self._machine.forget_page(address)
        except ArchitecturalException:
            return -Status.INVALID
        return 0

    def flush_all(self) -> int:
        """All of the current address space, and what all share."""
        self._machine.forget_all()
        return 0

    def open_table(self, table: int) -> int:
        """A shadowed table is always open."""
        return self.pin(table, 1)

    def close_table(self, table: int) -> int:
        """What was written is noticed at the next flush."""
        return self.pin(table, 1)

    def _store(self, pointer: int, value: int) -> int:
        size = self._bytes
        if pointer % size or not 0 <= value < self._limit:
            return -Status.INVALID
        if not self._machine.is_memory(pointer, size):
            return -Status.BAD_ADDRESS
        self._machine.store(pointer, value.to_bytes(size, self._machine.byte_order))
        return 0
