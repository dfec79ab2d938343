"""The walk of a guest's four-level page table.

Room: `emulator/isa/x86`. Reads the guest's own tables in guest-physical memory as the processor would
(Intel SDM 3A 4.5): permissions, reserved bits, accessed and dirty bits. It trusts nothing: a table
outside memory reads as all ones, which is a reserved-bit fault. `LinearMemory` reads and writes through it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from emulator.isa.paging import GLOBAL as GLOBAL_PAGE
from emulator.isa.paging import PageWalk
from emulator.isa.x86.processor import Fault

PRESENT, WRITABLE, USER = 1, 2, 4
ACCESSED, DIRTY, LARGE, GLOBAL = 0x20, 0x40, 0x80, 0x100
NO_EXECUTE = 1 << 63
FRAME_MASK = 0x000F_FFFF_FFFF_F000
PHYSICAL_BITS = 36
RESERVED = FRAME_MASK & ~((1 << PHYSICAL_BITS) - 1)
"""Address bits that the processor shown to guests does not have."""

ERROR_PRESENT, ERROR_WRITE, ERROR_USER, ERROR_RESERVED, ERROR_FETCH = 1, 2, 4, 8, 16
_PAGE_FAULT = 14
_KERNEL, _ALL_RIGHTS, _READ_ONLY = 0o07, 0o77, 0o55
_KERNEL_WRITES, _EXECUTES = 0o02, 0o44
"""Of `PageWalk.rights`: a digit for user code, a digit for the kernel."""
_ALL_ONES = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(slots=True)
class GuestContext:
    """What a walk depends on besides the tables: the guest's control registers."""

    root: int = 0
    """Guest-physical address of the top-level table."""
    write_protect: bool = False
    """CR0.WP."""
    no_execute: bool = False
    """EFER.NXE; without it bit 63 is reserved."""


class Walker:
    """Walks one guest's tables."""

    def __init__(self, words: memoryview, size: int, context: GuestContext) -> None:
        self.words = words
        self._size = size
        self._context = context
        self.result = PageWalk()

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> PageWalk:
        """Translate a canonical `address` for the access; sets accessed and dirty bits.

        Returns the (reused) `PageWalk`; raises `Fault` 14 with the architectural error code.
        """
        context, words, size = self._context, self.words, self._size
        result = self.result
        entries, tables = result.entries, result.tables
        reserved = RESERVED if context.no_execute else RESERVED | NO_EXECUTE
        wrong = reserved | LARGE
        table = context.root
        in_all, in_any = _ALL_ONES, 0
        level, shift = 4, 39
        while True:
            tables[level] = table
            entry = words[(table >> 3) + (address >> shift & 511)] if table < size else _ALL_ONES
            if not entry & 1:
                raise self._fault(address, 0, write, user, fetch)
            if entry & wrong:
                raise self._fault(address, ERROR_PRESENT | ERROR_RESERVED, write, user, fetch)
            entries[level] = entry
            in_all &= entry
            in_any |= entry
            if level == 1:
                break
            if entry & LARGE:
                if entry & (((1 << shift) - 1) & FRAME_MASK & ~0x1000):
                    raise self._fault(address, ERROR_PRESENT | ERROR_RESERVED, write, user, fetch)
                break
            wrong = reserved
            table = entry & FRAME_MASK
            level -= 1
            shift -= 9
        writable, allowed, no_execute = in_all & WRITABLE, in_all & USER, in_any & NO_EXECUTE
        if (
            (user and not allowed)
            or (write and not writable and (user or context.write_protect))
            or (fetch and no_execute)
        ):
            raise self._fault(address, ERROR_PRESENT, write, user, fetch)
        if not in_all & ACCESSED or (write and not entry & DIRTY):
            self._mark(address, level, write)
            entry = entries[level]
        mask = (1 << shift) - 1
        result.frame = entry & FRAME_MASK & ~mask | (address & mask & ~0xFFF)
        result.level = level
        result.size = shift
        if not entry & DIRTY:
            rights = _READ_ONLY
        elif writable:
            rights = _ALL_RIGHTS
        else:
            rights = _READ_ONLY if context.write_protect else _READ_ONLY | _KERNEL_WRITES
        if not allowed:
            rights &= _KERNEL
        result.rights = rights & ~_EXECUTES if no_execute else rights
        result.attributes = GLOBAL_PAGE if entry & GLOBAL else 0
        result.address = address
        return result

    def _mark(self, address: int, leaf: int, write: bool) -> None:
        """Set the accessed bits of the path, and the dirty bit of the leaf for a write."""
        entries, tables, words = self.result.entries, self.result.tables, self.words
        for level in range(4, leaf - 1, -1):
            entry = entries[level]
            wanted = entry | (ACCESSED | DIRTY if write and level == leaf else ACCESSED)
            if wanted != entry:
                words[(tables[level] >> 3) + ((address >> (level * 9 + 3)) & 511)] = wanted
                entries[level] = wanted

    def _fault(self, address: int, code: int, write: bool, user: bool, fetch: bool) -> Fault:
        if write:
            code |= ERROR_WRITE
        if user:
            code |= ERROR_USER
        if fetch and self._context.no_execute:
            code |= ERROR_FETCH
        return Fault(_PAGE_FAULT, code, address)


class AnyWalker(Protocol):
    """The walk of any of x86's formats (`walk32` has the others)."""

    def walk(self, address: int, write: bool, user: bool, fetch: bool, /) -> PageWalk:
        """Translate `address` for the access; sets accessed and dirty bits. Raises `Fault` 14."""
        ...


_MASK = 0xFFFF_FFFF_FFFF_FFFF
_USER_KEY = 1 << 60


class LinearMemory:
    """Linear addresses of one guest, read and written by software with the rights of the MMU.

    Keeps translations as a TLB does, until `forget_translations`.
    """

    def __init__(self, memory: memoryview, context: GuestContext) -> None:
        self._memory = memory
        self._memory_words = memory.cast("Q")
        self._size = memory.nbytes
        self._walker: AnyWalker = Walker(self._memory_words, memory.nbytes, context)
        self._reads: dict[int, int] = {}
        self._writes: dict[int, int] = {}
        self.before_write: Callable[[int], None] = lambda _frame: None
        """Called with a frame number before the first write to it since translations were forgotten."""

    def use_walker(self, walker: AnyWalker) -> None:
        """The format of the guest's tables changed."""
        self._walker = walker
        self.forget_translations()

    def forget_translations(self) -> None:
        """The TLB was flushed."""
        self._reads.clear()
        self._writes.clear()

    def forget_writes(self) -> None:
        """Writes must ask `before_write` again."""
        self._writes.clear()

    def _read_frame(self, address: int, user: bool) -> int:
        """Physical address of the page that holds `address`, for reading."""
        key = address >> 12 | _USER_KEY if user else address >> 12
        frame = self._reads.get(key)
        if frame is None:
            frame = self._walker.walk(address, False, user, False).frame
            self._reads[key] = frame
        return frame

    def _write_frame(self, address: int, user: bool) -> int:
        key = address >> 12 | _USER_KEY if user else address >> 12
        frame = self._writes.get(key)
        if frame is None:
            frame = self._walker.walk(address, True, user, False).frame
            if frame < self._size:
                self.before_write(frame >> 12)
            self._writes[key] = frame
        return frame

    def reach(self, address: int, write: bool) -> int:
        """Physical address of what the kernel has at `address`, to be read or written; raises `Fault`."""
        frame = self._write_frame(address, False) if write else self._read_frame(address, False)
        return frame | address & 0xFFF

    def words_at(self, address: int, count: int) -> list[int] | None:
        """64-bit words at an aligned linear address, within one page, with supervisor right; raises `Fault`. None where
        there is no memory."""
        physical = self._read_frame(address, False) | address & 0xFFF
        return self._memory_words[physical >> 3 : (physical >> 3) + count].tolist() if physical < self._size else None

    def put_words(self, address: int, words: Sequence[int]) -> bool:
        """Store 64-bit words at an aligned linear address, within one page, with supervisor right; raises `Fault`.
        Whether there is memory."""
        physical = self._write_frame(address, False) | address & 0xFFF
        if physical >= self._size:
            return False
        memory, at = self._memory_words, physical >> 3
        for word in words:
            memory[at] = word
            at += 1
        return True

    def read(self, address: int, size: int, user: bool = False) -> int:
        """`size` bytes at a linear address, with supervisor right unless `user`; raises `Fault`."""
        offset = address & 0xFFF
        if offset + size > 4096:
            return self._read_across(address, size, user)
        physical = self._read_frame(address, user) | offset
        if physical + size > self._size:
            return (1 << 8 * size) - 1
        if size == 8 and not offset & 7:
            return self._memory_words[physical >> 3]
        return int.from_bytes(self._memory[physical : physical + size], "little")

    def write(self, address: int, size: int, value: int, user: bool = False) -> None:
        """Store `size` bytes at a linear address, with supervisor right unless `user`; raises `Fault`."""
        offset = address & 0xFFF
        if offset + size > 4096:
            self._write_across(address, size, value, user)
            return
        physical = self._write_frame(address, user) | offset
        if physical + size > self._size:
            return
        if size == 8 and not offset & 7:
            self._memory_words[physical >> 3] = value & _MASK
        else:
            self._memory[physical : physical + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def read_user(self, address: int, size: int) -> int:
        """As `read`, with user right."""
        return self.read(address, size, True)

    def write_user(self, address: int, size: int, value: int) -> None:
        """As `write`, with user right."""
        self.write(address, size, value, True)

    def _read_across(self, address: int, size: int, user: bool) -> int:
        parts = (self.read(address + index & _MASK, 1, user) for index in range(size))
        return int.from_bytes(bytes(parts), "little")

    def _write_across(self, address: int, size: int, value: int, user: bool) -> None:
        self._write_frame(address, user)
        self._write_frame((address & ~0xFFF) + 4096 & _MASK, user)
        for index, byte in enumerate((value & ((1 << 8 * size) - 1)).to_bytes(size, "little")):
            self.write(address + index & _MASK, 1, byte, user)

    def fetch_bytes(self, address: int, size: int, user: bool) -> bytes:
        """Up to `size` bytes of code at `address`; fewer where the next page is not there."""
        out = b""
        while size > 0:
            step = min(size, 4096 - (address & 0xFFF))
            try:
                physical = self._read_frame(address, user) | address & 0xFFF
            except Fault:
                break
            out += bytes(self._memory[physical : physical + step])
            size -= step
            address = address + step & _MASK
        return out

    def read_page(self, address: int) -> bytes:
        """The page at `address` with supervisor right; raises the guest's `Fault`."""
        frame = self._read_frame(address, False)
        return bytes(self._memory[frame : frame + 4096]) if frame < self._size else b"\xff" * 4096

    def peek_page(self, address: int) -> bytes:
        """The page that holds `address`, with supervisor right; empty where nothing is mapped."""
        if (address + 0x8000_0000_0000) >> 48 & 0xFFFF:
            return b""
        try:
            frame = self._read_frame(address, False)
        except Fault:
            return b""
        return bytes(self._memory[frame : frame + 4096]) if frame < self._size else b""
