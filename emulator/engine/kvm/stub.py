"""Stores that the processor makes for the engine, at level 0: how a page-table entry is changed so that KVM sees it.

Room: `emulator/engine/kvm`. KVM without nested paging keeps translations of its own and watches the *guest's* stores to
its tables, as it must for any kernel; what the host writes there goes unnoticed. So the host writes first, and then has
a stub of the engine's room store the same words again. It works for every level of a table, on every host.
"""

import fcntl
from collections.abc import Callable, Sequence
from typing import Final

from emulator.engine.kvm import api, room
from emulator.engine.kvm.device import Vm
from emulator.engine.kvm.registers import segment_words
from emulator.engine.kvm.room import Room
from emulator.errors import GuestFault
from emulator.isa.x86 import registers as r

AT_ONCE: Final = len(room.STORE_REGISTERS)
"""Stores of one entry of the stub."""
MOST: Final = 16 * AT_ONCE
"""With more changes than these it is cheaper to forget everything."""
_DIRTY: Final = api.SYNC_REGISTERS | api.SYNC_SPECIAL
KVM_ORDER: Final = (0, 2, 3, 1, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15)
"""Place in `struct kvm_regs` of each general register, by encoding."""
LEVEL_0_CODE: Final = segment_words(room.CODE_SELECTOR, 0, 0xFFFF_FFFF, 0xA09B00)
LEVEL_0_DATA: Final = segment_words(room.DATA_SELECTOR, 0, 0xFFFF_FFFF, 0xC09300)
_CS, _SS = api.SEGMENT_WORDS[r.CS], api.SEGMENT_WORDS[r.SS]
_REGISTERS: Final = tuple(
    (api.W_REGISTERS + KVM_ORDER[pointer], api.W_REGISTERS + KVM_ORDER[source])
    for pointer, source in room.STORE_REGISTERS
)
"""Words of KVM's page for the address and the value of each store."""
_GIGABYTE: Final = 1 << 30
_Place = tuple[int, int, int, memoryview, int]
"""Physical addresses from one to another, the first address of the memory there, its words, and how far above its
physical address the stub reaches a word."""


class Stub:
    """The stub of one processor. `on_signal` is called when a signal ends a KVM_RUN of it."""

    def __init__(self, vm: Vm, own: Room, on_signal: Callable[[], None]) -> None:
        self._vm, self._room, self._on_signal = vm, own, on_signal
        view = memoryview(vm.run).cast("B")[:4096]
        self._bytes, self._words, self._halves = view, view.cast("Q"), view.cast("I")
        self._known: _Place = (0, 0, 0, view, 0)
        """Where the last word was: the tables are all in one memory."""

    def store(self, addresses: Sequence[int], tables: Sequence[int] = ()) -> bool:
        """Store the words at these physical addresses again, and a part of the first word of each of these tables; the
        registers in KVM's page are lost. Whether it was done: not where there are too many, or the stub does not reach
        one."""
        places = (*addresses, *tables)
        if len(places) > MOST:
            return False
        for first in range(0, len(places), AT_ONCE):
            some = places[first : first + AT_ONCE]
            whole = min(max(len(addresses) - first, 0), len(some))
            if not self._store(some, self._room.store_entries[whole, len(some) - whole]):
                return False
        return True

    def _store(self, places: Sequence[int], entry: int) -> bool:
        words = self._words
        first, end, base, memory, above = self._known
        for (address, value), at in zip(_REGISTERS, places, strict=False):
            if not first <= at < end:
                known = self._find(at)
                if known is None:
                    return False
                first, end, base, memory, above = self._known = known
            words[address], words[value] = at + above, memory[at - base >> 3]
        words[api.W_RIP], words[api.W_RFLAGS] = entry, r.FLAG_FIXED
        words[_CS], words[_CS + 1], words[_CS + 2] = LEVEL_0_CODE
        words[_SS], words[_SS + 1], words[_SS + 2] = LEVEL_0_DATA
        words[api.W_DIRTY] = _DIRTY
        self._run()
        return True

    def _find(self, at: int) -> _Place | None:
        """Where a word is; None where there is no memory, or the stub does not reach it."""
        found, address = self._vm.find(at), self._room.window(at)
        if found is None or address is None:
            return None
        gigabyte = at & -_GIGABYTE
        return max(found[0], gigabyte), min(found[1], gigabyte + _GIGABYTE), found[0], found[2], address - at

    def _run(self) -> None:
        words, bytes_ = self._words, self._bytes
        stopped = False
        while True:
            try:
                fcntl.ioctl(self._vm.cpu, api.RUN, 0)
                break
            except InterruptedError:
                self._on_signal()
                # Who stops the engine waits for the stub, which would end at its entry again and again.
                stopped |= bytes_[api.IMMEDIATE_EXIT] != 0
                bytes_[api.IMMEDIATE_EXIT] = 0
            finally:
                words[api.W_DIRTY] = 0
        if stopped:
            bytes_[api.IMMEDIATE_EXIT] = 1
        if self._halves[api.H_EXIT_REASON] != api.EXIT_HLT or not room.STUB < words[api.W_RIP] <= room.STUB_END:
            raise GuestFault(f"the engine lost the guest: its own stub ended at {words[api.W_RIP]:#x}")
