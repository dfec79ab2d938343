"""The engine's own pages in every address space: where a trap lands, and what the processor needs to get there.

Room: `emulator/engine/kvm`. One entry of the top-level page table is the engine's. Under it, for supervisor mode alone,
lie 256 handlers of one HLT each, an IDT that leads to them, a TSS with the stack, descriptor tables, the targets of
SYSCALL, a stub that stores for the engine, the code of its gates, and a window on physical memory. Tables that are a
guest's kernel's find another IDT and TSS there, since from them traps lead elsewhere.
"""

import mmap
import struct
from typing import Final

SLOT: Final = 257
"""Entry of the top-level table: Linux leaves it to hypervisors (Documentation/arch/x86/x86_64/mm.rst). Its
neighbour, 256, is taken by KVM itself on some hosts."""
PHYSICAL: Final = 1 << 38
"""Where the pages lie in physical memory: above all guests and hypervisors, within what every processor has."""
BASE: Final = 0xFFFF_0000_0000_0000 | SLOT << 39
_PAGE: Final = 4096
_SUPERVISOR: Final = 0x63
"""Present, writable, accessed, dirty; not for user mode."""
_LARGE: Final = 1 << 7
_NO_EXECUTE: Final = 1 << 63

# Pages of the window at BASE, by number.
_HANDLERS, _IDT, _TSS, _STACK, _STUB, _GATES = 0, 1, 2, 5, 7, 8
_GDT_NONE, _GDT_USER, _CALLS, _KERNEL_IDT, _KERNEL_TSS, _CALL = 16, 32, 48, 49, 50, 51
HANDLERS: Final = BASE
SPACING: Final = 16
"""Bytes from one handler to the next."""
HANDLERS_END: Final = BASE + 256 * SPACING
IDT: Final = BASE + _IDT * _PAGE
TSS: Final = BASE + _TSS * _PAGE
STACK_TOP: Final = BASE + (_STACK + 1) * _PAGE
SYSTEM_CALL: Final = BASE + _CALLS * _PAGE
"""Where SYSCALL of 64-bit code leads, and faults."""
SYSTEM_CALL_32: Final = SYSTEM_CALL + 64
SYSTEM_CALLS_END: Final = SYSTEM_CALL + 128
CALL: Final = BASE + _CALL * _PAGE
"""Where it leads instead while a way through gates is told (`gates.py`): code for user mode to read and execute."""
CALL_SITE: Final = CALL + 9
"""There it divides by zero, which is the cheapest trap."""
CALL_RARE: Final = CALL + 15
"""There it halts: a caller with TF or NT set is none for gates."""
CALL_END: Final = CALL + 16
_CALL_CODE: Final = bytes.fromhex("41f7c3 00410000 7506 f735 01000000 f4")
"""test r11d, TF | NT; jnz rare; div dword [behind]; rare: hlt"""
STUB: Final = BASE + _STUB * _PAGE
STUB_END: Final = STUB + _PAGE
GATES: Final = BASE + _GATES * _PAGE
"""Code that some traps lead to before their handlers (`gates.py`)."""
GATES_END: Final = GATES + _PAGE
MARKS: Final = BASE + 10 * _PAGE
"""Two pages: which of a hypervisor's tables map pages for user code alone, a byte each."""
GDT_NONE: Final = BASE + _GDT_NONE * _PAGE
"""A descriptor table in which user code finds nothing."""
GDT_USER: Final = BASE + _GDT_USER * _PAGE
"""A descriptor table with what `show` was given last."""
GDT_LIMIT: Final = 0xFFFF
CODE_SELECTOR: Final = 0xFFF0
DATA_SELECTOR: Final = 0xFFF8
TSS_SELECTOR: Final = 0xFFE0
LDT_SELECTOR: Final = 0
TSS_LIMIT: Final = 104 + 8192
_SHOWN: Final = 0xFFE0
"""Bytes of a descriptor table that can be shown; the engine's own descriptors follow."""
_CODE: Final = 0x00AF_9B00_0000_FFFF
_DATA: Final = 0x00CF_9300_0000_FFFF
_OPEN, _CLOSED = 104, 0xFFFF
_PORTS: Final = 102
"""Offset in the TSS of where its permission bitmap lies, in 16 bits."""

WINDOW: Final = BASE + (1 << 38)
"""From here on physical memory, up to 256 GiB, for the stub's stores: a GiB at a time as it is asked for."""
SHOWN: Final = BASE + (1 << 37)
"""From here on physical memory as a guest's kernel may read it, in roots that are given `kernel_root_entry`."""
_DIRECTORIES: Final = 16
"""GiB of physical memory that the window can show."""

_PAGES: Final = 64
_FRAME_SHOWN: Final = 12
"""The stack's page once more, to be read in such roots."""
FRAME: Final = BASE + (_FRAME_SHOWN + 1) * _PAGE - 48
"""The bottom of a trap's frame there: error code, RIP, CS, RFLAGS, RSP, SS."""
_USER: Final = 4
_EXECUTABLE: Final = 1 | _USER | 0x20
_READABLE: Final = 1 | _USER | 0x20 | 1 << 63
_MOST_SHOWN: Final = 4
_MORE_SHOWN: Final = 3

_KERNELS: Final = 3 + _DIRECTORIES + _MOST_SHOWN + _MORE_SHOWN
_TABLES: Final = _KERNELS + 3
"""Tables in front of the pages: one each of levels 3, 2 and 1, the window's of level 2, those of what is shown, and
again one each of levels 3 to 1 for roots of a kernel's."""
SIZE: Final = (_TABLES + _PAGES) * _PAGE
_AT_IDT, _AT_KERNEL_IDT = ((_TABLES + page) * _PAGE >> 1 for page in (_IDT, _KERNEL_IDT))
_AT_PORTS, _AT_KERNEL_PORTS = ((_TABLES + page) * _PAGE + _PORTS >> 1 for page in (_TSS, _KERNEL_TSS))
"""Where they are in memory, in 16-bit words."""

HLT: Final = 0xF4
_STORES: Final = (
    (bytes.fromhex("488907"), bytes.fromhex("668907")),  # mov [rdi], rax; mov [rdi], ax
    (bytes.fromhex("48890e"), bytes.fromhex("66890e")),  # mov [rsi], rcx
    (bytes.fromhex("488913"), bytes.fromhex("668913")),  # mov [rbx], rdx
    (bytes.fromhex("4d8901"), bytes.fromhex("66458901")),  # mov [r9], r8
    (bytes.fromhex("4d8913"), bytes.fromhex("66458913")),  # mov [r11], r10
    (bytes.fromhex("4d896500"), bytes.fromhex("6645896500")),  # mov [r13], r12
    (bytes.fromhex("4d8937"), bytes.fromhex("66458937")),  # mov [r15], r14
)
"""The stub's stores, of a whole entry and of a part of one."""
STORE_REGISTERS: Final = ((7, 0), (6, 1), (3, 2), (9, 8), (11, 10), (13, 12), (15, 14))
"""Address and value register of each store of the stub, by encoding."""


class Room:
    """The pages of one engine."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, SIZE)
        self.words = memoryview(self.memory).cast("Q")
        self._halves = memoryview(self.memory).cast("H")
        self.frame = (self._at(_STACK) + _PAGE) // 8
        """Index in `words` behind a trap's frame: SS, RSP, RFLAGS, CS, RIP, error code come before it, at -1 to -6."""
        self._shown_gigabytes: dict[int, int] = {}
        self._shown = b""
        self._kept = 0, b""
        self._ports_open = self._apart = False
        self._fill_tables()
        self._fill_handlers()
        self._fill_segments()
        self.store_entries = self._fill_stub()
        """Address in the stub at which so many entries are stored, and then so many parts of entries."""

    @staticmethod
    def _at(page: int) -> int:
        return (_TABLES + page) * _PAGE

    @property
    def root_entry(self) -> int:
        """The entry that belongs at `SLOT` of every top-level table."""
        return PHYSICAL | _SUPERVISOR | _USER

    @property
    def kernel_root_entry(self) -> int:
        """The same in a table of a guest's kernel, which may read what is shown, and whose traps lead elsewhere."""
        return PHYSICAL + _KERNELS * _PAGE | _SUPERVISOR | _USER

    def _fill_tables(self) -> None:
        words = self.words
        # What of it level 3 may reach is said by the last entry.
        for top, differ in ((0, {}), (_KERNELS, {_IDT: _KERNEL_IDT, _TSS: _KERNEL_TSS})):
            middle, last = (top + 1, top + 2)
            words[top * 512] = PHYSICAL + middle * _PAGE | _SUPERVISOR | _USER
            words[middle * 512] = PHYSICAL + last * _PAGE | _SUPERVISOR | _USER
            for page in range(_PAGES):
                # The empty descriptor table is one page of nothing, again and again, and its last.
                shown = _GDT_NONE + 1 if _GDT_NONE <= page < _GDT_NONE + 15 else differ.get(page, page)
                words[last * 512 + page] = PHYSICAL + self._at(shown) | _SUPERVISOR
            words[last * 512 + _CALL] = PHYSICAL + self._at(_CALL) | _EXECUTABLE
        words[(_KERNELS + 2) * 512 + _FRAME_SHOWN] = PHYSICAL + self._at(_STACK) | _READABLE

    def _fill_handlers(self) -> None:
        for vector in range(256):
            self.memory[self._at(_HANDLERS) + vector * SPACING] = HLT
            handler = HANDLERS + vector * SPACING
            # All gates are closed to user code: INT n is a general-protection fault that names its vector.
            gate = handler & 0xFFFF, CODE_SELECTOR, 0, 0x8E, handler >> 16 & 0xFFFF, handler >> 32, 0
            for page in (_IDT, _KERNEL_IDT):
                struct.pack_into("<HHBBHII", self.memory, self._at(page) + 16 * vector, *gate)
        for target in (SYSTEM_CALL, SYSTEM_CALL_32):
            self.memory[self._at(0) + target - BASE] = HLT
        self.memory[self._at(_CALL) : self._at(_CALL) + len(_CALL_CODE)] = _CALL_CODE

    def _fill_segments(self) -> None:
        for page in (_TSS, _KERNEL_TSS):
            struct.pack_into("<IQ", self.memory, self._at(page), 0, STACK_TOP)
        self.memory[self._at(_TSS) + TSS_LIMIT] = 0xFF
        self._fill_ports()
        for last in (_GDT_NONE + 15, _GDT_USER + 15):
            struct.pack_into("<QQ", self.memory, self._at(last) + CODE_SELECTOR % _PAGE, _CODE, _DATA)

    def _fill_stub(self) -> dict[tuple[int, int], int]:
        code, entries, most = b"", {}, len(_STORES)
        for whole in range(most + 1):
            for parts in range(most + 1 - whole):
                entries[whole, parts] = STUB + len(code)
                kinds = [0] * whole + [1] * parts
                code += b"".join(store[kind] for store, kind in zip(_STORES, kinds, strict=False)) + bytes((HLT,))
        self.memory[self._at(_STUB) : self._at(_STUB) + len(code)] = code
        return entries

    def page(self, address: int) -> memoryview:
        """The 4096 bytes of one of the engine's pages."""
        at = self._at(address - BASE >> 12)
        return memoryview(self.memory)[at : at + _PAGE]

    def lead(self, vector: int, target: int | None, kernel: bool) -> None:
        """Have a vector's gate lead to code in the first 64 KiB of the window, or to its handler again: in roots of a
        kernel's, or in all others."""
        target = HANDLERS + vector * SPACING if target is None else target
        self._halves[(_AT_KERNEL_IDT if kernel else _AT_IDT) + 8 * vector] = target & 0xFFFF

    def open_ports(self, enabled: bool) -> None:
        """Whether user code may use ports: where the TSS says that its permission bitmap lies."""
        self._ports_open = enabled
        if not self._apart:
            self._fill_ports()

    def part_ports(self, apart: bool) -> None:
        """Have ports be open to kernels and closed to all others, by their roots; or as they were opened."""
        self._apart = apart
        self._fill_ports()

    def _fill_ports(self) -> None:
        others, kernels = (False, True) if self._apart else (self._ports_open, self._ports_open)
        self._halves[_AT_PORTS] = _OPEN if others else _CLOSED
        self._halves[_AT_KERNEL_PORTS] = _OPEN if kernels else _CLOSED

    def show(self, table: bytes) -> None:
        """Let `GDT_USER` hold these descriptors, which must be of user segments."""
        if table == self._shown:
            return
        size = max(len(table), len(self._shown))
        kept = table[:_SHOWN].ljust(min(size, _SHOWN), b"\0")
        self.memory[self._at(_GDT_USER) : self._at(_GDT_USER) + len(kept)] = kept
        self._shown = bytes(table)
        self._show_kept()

    def descriptor(self, selector: int) -> int:
        """The descriptor that user code finds for a selector; 0 for none."""
        offset = selector & 0xFFF8
        return int(self.words[(self._at(_GDT_USER) + offset) // 8]) if not selector & 4 and offset < _SHOWN else 0

    def show_memory(self, size: int) -> int | None:
        """Show the first `size` bytes of physical memory; where that is. None where there is too much."""
        blocks = size + (1 << 21) - 1 >> 21
        if blocks > _MOST_SHOWN * 512:
            return None
        for block in range(blocks):
            table = 3 + _DIRECTORIES + (block >> 9)
            self.words[table * 512 + (block & 511)] = block << 21 | _READABLE | _LARGE
            self.words[_KERNELS * 512 + 128 + (block >> 9)] = PHYSICAL + table * _PAGE | _SUPERVISOR | _USER
        return SHOWN

    def show_more(self, number: int, physical: int, size: int) -> int:
        """Show another region likewise, the first, second or third; where that is. It begins at a block of 2 MiB."""
        table = 3 + _DIRECTORIES + _MOST_SHOWN + number
        for block in range(size + (1 << 21) - 1 >> 21):
            self.words[table * 512 + block] = physical + (block << 21) | _READABLE | _LARGE
        self.words[_KERNELS * 512 + 128 + _MOST_SHOWN + number] = PHYSICAL + table * _PAGE | _SUPERVISOR | _USER
        return SHOWN + (_MOST_SHOWN + number << 30)

    def marks(self) -> memoryview:
        """The bytes that say which tables map pages for user code."""
        at = self._at(MARKS - BASE >> 12)
        return memoryview(self.memory)[at : at + 2 * _PAGE]

    def keep_descriptors(self, selector: int, descriptors: tuple[int, ...]) -> None:
        """Have descriptors from a selector on in the table that is shown, whatever `show` is given."""
        self._kept = selector & 0xFFF8, struct.pack(f"<{len(descriptors)}Q", *descriptors)
        self._show_kept()

    def _show_kept(self) -> None:
        at, kept = self._at(_GDT_USER) + self._kept[0], self._kept[1]
        self.memory[at : at + len(kept)] = kept

    def window(self, physical: int) -> int | None:
        """Where the stub reaches a physical address; None where it does not."""
        number = physical >> 30
        if number not in self._shown_gigabytes:
            if number >= 256 or len(self._shown_gigabytes) == _DIRECTORIES:
                return None
            table = 3 + len(self._shown_gigabytes)
            for index in range(512):
                self.words[table * 512 + index] = (number << 30) + (index << 21) | _SUPERVISOR | _LARGE | _NO_EXECUTE
            for top in (0, _KERNELS):
                self.words[top * 512 + 256 + number] = PHYSICAL + table * _PAGE | _SUPERVISOR
            self._shown_gigabytes[number] = table
        return WINDOW + physical
