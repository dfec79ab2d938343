"""Page tables of the KVM engine: which one is walked, and how KVM comes to know that entries were changed.

Room: `emulator/engine/kvm`. KVM without nested paging keeps what it has read of the tables; the ways by which it lets
go are those that were found to work.
"""

from collections.abc import Sequence
from typing import Final

from emulator.engine.kvm import api, room
from emulator.engine.kvm.processor import KvmProcessor
from emulator.engine.kvm.stub import AT_ONCE
from emulator.engine.protocol import WHOLE_TABLE
from emulator.isa.x86 import registers as r

_BY_PAGE: Final = 2
"""Up to so many changed entries it is cheaper to take their pages away than to have them stored again."""


class Translations(KvmProcessor):
    """What the processor translates by."""

    def set_root(self, physical: int) -> None:
        """Switch to the page table at `physical`, and put the engine's own entry into it."""
        self.registers.root = physical
        if physical not in self._gates.pair:
            self._gates.close()
        self._own_root(physical)
        self._words[api.W_CR3] = physical
        self._dirty = True

    def set_control(self, cr0: int, cr4: int, efer: int) -> None:
        """Load the real control registers. What user mode needs to be contained is added."""
        registers, words = self.registers, self._words
        registers.set_control(0, cr0)
        registers.set_control(4, cr4)
        registers.set_msr(api.MSR_EFER, efer)
        words[api.W_CR0] = cr0 | r.CR0_NE | r.CR0_ET
        words[api.W_CR4] = cr4 & ~r.CR4_PGE | self._umip | self._flip
        words[api.W_EFER] = efer | r.EFER_SCE | r.EFER_NXE
        self._dirty = True

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None:
        """Entries of page tables in use were changed: these, by physical address, with the page that each mapped."""
        if changes is None:
            self._gates.close()  # the tables that it leads to may be no more
            self._kernel_roots.clear()
        if self.findings.flush_by_control:
            self.flip_control()
        elif changes is None:
            self._changes.clear()
            self.forget_translations()
        elif not (
            len(changes) <= _BY_PAGE
            and self.findings.flush_by_page
            and all(self.take_page(page) for _, page in changes)
        ):
            self._changes.update(changes)

    def forget_translations(self) -> None:
        """Forget all that is cached of page tables, whatever it costs."""
        self._vm.forget_translations(room.PHYSICAL + room.SIZE)

    def flip_control(self) -> None:
        """Change CR4.PGE."""
        self._flip ^= r.CR4_PGE
        self._words[api.W_CR4] ^= r.CR4_PGE
        self._dirty = True

    def take_page(self, page: int) -> bool:
        """Take a page from KVM, contents kept, and with it every translation that leads there."""
        found = self._vm.find(page) if page >= 0 else None
        return found is not None and found[3] and self._vm.take_page(page)

    def store_entry(self, at: int) -> None:
        """Have the processor store an entry again."""
        self._changes[at] = -1

    def forget_table(self, at: int) -> None:
        """Have the processor store a part of an entry again, by which KVM takes the table for something else and
        forgets all that it has of it."""
        self._changes[at] = WHOLE_TABLE

    def _store_changes(self) -> None:
        """Make the changes that wait known to KVM, before the guest goes on. Its registers are in `registers` and go
        into KVM's page afterwards, but for an exception or an access under way, which only KVM knows."""
        few = self._few()
        self._changes.clear()
        if self._incomplete or self._midway:
            self.forget_translations()
            return
        if not self._dirty:
            self._get()
        self._dirty = True
        if few is None or not self._stub.store(*few):
            self.forget_translations()

    def _few(self) -> tuple[list[int], list[int]] | None:
        """What is to be stored again: entries, and of which tables a part, since much of them was changed. None where
        that does not help."""
        if len(self._changes) <= AT_ONCE and WHOLE_TABLE not in self._changes.values():
            return list(self._changes), []
        by_table: dict[int, list[int]] = {}
        tables = []
        for at, page in self._changes.items():
            if page == WHOLE_TABLE:
                tables.append(at)
            else:
                by_table.setdefault(at >> 12, []).append(at)
        if tables and not self.findings.flush_by_table:
            return None
        for at in tables:
            by_table.pop(at >> 12, None)
        entries: list[int] = []
        for table, places in by_table.items():
            if len(places) > AT_ONCE and self.findings.flush_by_table:
                tables.append(table << 12)
            else:
                entries += places
        return entries, tables

    def code_changed(self, address: int, size: int) -> None:
        """Nothing: an x86 processor sees stores to code."""

    def flush_code(self) -> None:
        """Nothing: an x86 processor sees stores to code."""

    def guard_code(self, enabled: bool = True) -> None:
        """Not to be had: the engine has no execute-only pages."""
