"""The domain builder: puts a kernel into a domain's memory, maps it, and says where and how it is entered.

Room: `paravirt/xen`. The layout is that of `start_info` in Xen's public headers: kernel, what it is told, page tables
and stack one behind the other in a mapping that ends at 4 MiB; the list of frames and the initial file system behind
it, where the kernel's notes say that it finds them there. Whatever comes from the kernel's file is looked at here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from emulator.errors import BadImage
from paravirt.xen.domain import Domain
from paravirt.xen.public import MAGIC, SIF_MOD_START_PFN, StartInfo

_PRESENT, _WRITE, _USER, _ACCESSED, _DIRTY, _NO_EXECUTE = 1, 2, 4, 0x20, 0x40, 1 << 63
_TABLE: Final = _PRESENT | _WRITE | _USER | _ACCESSED
_DATA: Final = _TABLE | _DIRTY | _NO_EXECUTE
_TEXT: Final = _TABLE | _DIRTY
_END, _PADDING = 4 << 20, 512 << 10
"""The initial mapping ends at a multiple of the first, and the second at least lies behind the last thing in it."""
_HYPERCALLS, _STUB = 128, 32
_IRET: Final = 23


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the kernel's file."""

    physical: int
    """Where it lies in the guest's physical memory as linked."""
    data: memoryview
    size: int
    """Bytes in memory, the file's and zeros behind them."""
    executable: bool


@dataclass(frozen=True, slots=True)
class XenKernel:
    """A kernel with its notes."""

    path: str
    pieces: tuple[Piece, ...]
    entry: int
    """Guest-virtual."""
    virtual_base: int = 0
    """Where the initial mapping begins, that is pseudo-physical frame 0."""
    physical_offset: int = 0
    """What is taken from `Piece.physical` for the pseudo-physical address."""
    hypercall_page: int | None = None
    """Guest-virtual address of the page to fill with calls, where the kernel wants one."""
    frame_list: int | None = None
    """Where the kernel wants the list of frames, apart from the initial mapping."""
    module_by_frame: bool = False
    """It finds its initial file system by frame number, and need not have it mapped."""
    initrd: bytes = b""
    command_line: bytes = b""


@dataclass(slots=True)
class Start:
    """How the kernel is entered."""

    entry: int
    start_info: int
    """Guest-virtual, for RSI."""
    stack: int
    root: int
    """Machine frame of its root table, pinned."""
    store_frame: int
    """Machine frames of the pages shared with the store and the console."""
    console_frame: int


@dataclass(slots=True)
class _Layout:
    """Pseudo-physical frame numbers."""

    kernel_end: int = 0
    module: int = 0
    module_count: int = 0
    frame_list: int = 0
    frame_list_count: int = 0
    list_tables: int = 0
    list_table_count: int = 0
    start_info: int = 0
    store: int = 0
    console: int = 0
    tables: int = 0
    table_count: int = 0
    stack: int = 0
    mapped: int = 0
    """Frames of the initial mapping, from 0 on."""
    end: int = 0


def build(domain: Domain, kernel: XenKernel, store_port: int, console_port: int) -> Start:
    """Load `kernel` into `domain`. Raises `BadImage`."""
    return _Builder(domain, kernel).build(store_port, console_port)


class _Builder:
    def __init__(self, domain: Domain, kernel: XenKernel) -> None:
        self.domain = domain
        self.kernel = kernel
        self.machine = np.asarray(domain.owned.machine_array[: domain.pages], dtype=np.uint64)
        self.words = np.frombuffer(domain.host.view, dtype=np.uint64)
        self.at = self._plan()
        self._numbers: dict[int, int] = {}
        """Frame numbers of the tables made so far, by the slot that leads to each."""

    def _refuse(self, what: str) -> BadImage:
        return BadImage(f"{self.kernel.path}: {what}")

    # -- where everything goes ------------------------------------------------------------------

    def _plan(self) -> _Layout:
        kernel, at = self.kernel, _Layout()
        if kernel.virtual_base & (1 << 21) - 1 or kernel.virtual_base >> 47 not in (0, 0x1FFFF):
            raise self._refuse(f"its virtual base {kernel.virtual_base:#x} cannot be one; build it again")
        ends = [piece.physical - kernel.physical_offset + piece.size for piece in kernel.pieces]
        if not ends or min(piece.physical - kernel.physical_offset for piece in kernel.pieces) < 0:
            raise self._refuse("its segments lie below the physical offset of its Xen notes; build it again")
        next_ = -(-max(ends) // 4096)
        pages = -(-len(kernel.initrd) // 4096)
        at.kernel_end, at.module_count = next_, pages
        at.frame_list_count = -(-self.domain.pages * 8 // 4096)
        if pages and not kernel.module_by_frame:
            at.module, next_ = next_, next_ + pages
        if kernel.frame_list is None:
            at.frame_list, next_ = next_, next_ + at.frame_list_count
        at.start_info, at.store, at.console, at.tables = next_, next_ + 1, next_ + 2, next_ + 3
        at.table_count = 4
        while True:
            at.stack = at.tables + at.table_count
            end = (at.stack + 1) * 4096
            at.mapped = -(-(end + _PADDING) // _END) * _END // 4096
            needed = sum(_tables_for(kernel.virtual_base, at.mapped))
            if needed <= at.table_count:
                break
            at.table_count = needed
        next_ = at.mapped
        if kernel.frame_list is not None:
            at.frame_list, next_ = next_, next_ + at.frame_list_count
            at.list_table_count = sum(_tables_for(kernel.frame_list, at.frame_list_count)[:-1])
            at.list_tables, next_ = next_, next_ + at.list_table_count
        if pages and kernel.module_by_frame:
            at.module, next_ = next_, next_ + pages
        at.end = next_
        if at.end > self.domain.pages:
            size = self.domain.pages * 4096 >> 20
            raise self._refuse(f"needs {-(-at.end * 4096 >> 20)} MiB of memory to start, and has {size} MiB; give more")
        return at

    # -- contents -------------------------------------------------------------------------------

    def _write(self, physical: int, data: bytes | memoryview) -> None:
        """Store bytes at a pseudo-physical address."""
        view, done, size = self.domain.host.view, 0, len(data)
        while done < size:
            frame, offset = int(self.machine[physical + done >> 12]), physical + done & 4095
            step = min(size - done, 4096 - offset)
            view[(frame << 12) + offset : (frame << 12) + offset + step] = data[done : done + step]
            done += step

    def _virtual(self, frame: int) -> int:
        return self.kernel.virtual_base + frame * 4096

    def build(self, store_port: int, console_port: int) -> Start:
        kernel, at = self.kernel, self.at
        for piece in kernel.pieces:
            self._write(piece.physical - kernel.physical_offset, piece.data)
        self._write_hypercalls()
        if kernel.initrd:
            self._write(at.module * 4096, kernel.initrd)
        listed = np.zeros(at.frame_list_count * 512, dtype="<u8")
        listed[: self.domain.pages] = self.machine
        self._write(at.frame_list * 4096, memoryview(listed.tobytes()))
        self._write_tables()
        self._write_start_info(store_port, console_port)
        self.domain.code_base, self.domain.code_end = kernel.virtual_base, at.kernel_end
        root = int(self.machine[at.tables])
        self.domain.tables.pin(root, 4)
        self.domain.settle_tables()
        return Start(
            kernel.entry,
            self._virtual(at.start_info),
            self._virtual(at.stack + 1),
            root,
            int(self.machine[at.store]),
            int(self.machine[at.console]),
        )

    def _write_hypercalls(self) -> None:
        page = self.kernel.hypercall_page
        if page is None:
            return
        physical = page - self.kernel.virtual_base
        if page & 4095 or not 0 <= physical < self.at.kernel_end * 4096:
            raise self._refuse(f"its hypercall page {page:#x} is not a page of it; build it again")
        self._write(physical, hypercall_page())

    def _write_start_info(self, store_port: int, console_port: int) -> None:
        kernel, at = self.kernel, self.at
        page = bytearray(4096)

        def put(offset: int, value: int, size: int = 8) -> None:
            page[offset : offset + size] = value.to_bytes(size, "little")

        page[StartInfo.MAGIC : StartInfo.MAGIC + len(MAGIC)] = MAGIC
        put(StartInfo.PAGES, self.domain.pages)
        put(StartInfo.SHARED_INFO, self.domain.shared_frame << 12)
        put(StartInfo.STORE_FRAME, int(self.machine[at.store]))
        put(StartInfo.STORE_PORT, store_port, 4)
        put(StartInfo.CONSOLE_FRAME, int(self.machine[at.console]))
        put(StartInfo.CONSOLE_PORT, console_port, 4)
        put(StartInfo.TABLES, self._virtual(at.tables))
        put(StartInfo.TABLE_COUNT, at.table_count)
        apart = kernel.frame_list
        put(StartInfo.FRAME_LIST, self._virtual(at.frame_list) if apart is None else apart)
        if kernel.initrd:
            put(StartInfo.MODULE, at.module if kernel.module_by_frame else self._virtual(at.module))
            put(StartInfo.MODULE_SIZE, len(kernel.initrd))
            put(StartInfo.FLAGS, SIF_MOD_START_PFN if kernel.module_by_frame else 0, 4)
        if apart is not None:
            put(StartInfo.FIRST_LIST_FRAME, at.frame_list)
            put(StartInfo.LIST_FRAMES, at.frame_list_count + at.list_table_count)
        line = kernel.command_line
        if len(line) >= StartInfo.COMMAND_LINE_SIZE:
            raise self._refuse(f"a command line of {len(line)} bytes is too long for Xen's 1023; shorten it")
        page[StartInfo.COMMAND_LINE : StartInfo.COMMAND_LINE + len(line)] = line
        self._write(at.start_info * 4096, bytes(page))

    # -- page tables ----------------------------------------------------------------------------

    def _write_tables(self) -> None:
        at, kernel = self.at, self.kernel
        entries = (self.machine[: at.mapped] << np.uint64(12)) | np.uint64(_DATA)
        for piece in kernel.pieces:
            if piece.executable:
                first = piece.physical - kernel.physical_offset >> 12
                last = piece.physical - kernel.physical_offset + piece.size - 1 >> 12
                entries[first : last + 1] &= np.uint64(~_NO_EXECUTE & (1 << 64) - 1)
        entries[at.tables : at.tables + at.table_count] &= np.uint64(~_WRITE & (1 << 64) - 1)
        spare = list(range(at.tables, at.tables + at.table_count))
        root = spare.pop(0)
        self._map(root, kernel.virtual_base, entries, spare)
        if kernel.frame_list is not None:
            frames = self.machine[at.frame_list : at.frame_list + at.frame_list_count]
            listed = (frames << np.uint64(12)) | np.uint64(_DATA)
            spare = list(range(at.list_tables, at.list_tables + at.list_table_count))
            self._map(root, kernel.frame_list, listed, spare)

    def _map(
        self, root: int, address: int, entries: np.ndarray[tuple[int], np.dtype[np.uint64]], spare: list[int]
    ) -> None:
        """Enter last-level entries from guest-virtual `address` on; tables are made of frames from `spare`."""
        done = 0
        while done < len(entries):
            table = root
            for shift in (39, 30, 21):
                slot = int(self.machine[table]) * 512 + (address >> shift & 511)
                if not self.words[slot]:
                    self.words[slot] = int(self.machine[spare[0]]) << 12 | _TABLE
                    self._numbers[slot] = spare.pop(0)
                table = self._numbers[slot]
            first = address >> 12 & 511
            count = min(512 - first, len(entries) - done)
            start = int(self.machine[table]) * 512 + first
            self.words[start : start + count] = entries[done : done + count]
            done, address = done + count, address + count * 4096


def _tables_for(address: int, pages: int) -> tuple[int, int, int, int]:
    """Tables of each level, last level first, that map so many pages from a guest-virtual address on."""
    first, last = address >> 12, (address >> 12) + pages - 1
    return tuple((last >> shift) - (first >> shift) + 1 for shift in (9, 18, 27, 36))  # type: ignore[return-value]


def hypercall_page() -> bytes:
    """The code of a hypercall page: entry n, 32 bytes on, makes call n."""
    page = bytearray(b"\xcc" * 4096)
    for number in range(_HYPERCALLS):
        code = b"\x51\x41\x53"  # push rcx ; push r11
        if number == _IRET:
            code += b"\x50"  # push rax
        code += b"\xb8" + number.to_bytes(4, "little") + b"\x0f\x05"  # mov eax, number ; syscall
        if number != _IRET:
            code += b"\x41\x5b\x59\xc3"  # pop r11 ; pop rcx ; ret
        page[number * _STUB : number * _STUB + len(code)] = code
    return bytes(page)


__all__: Sequence[str] = ["Piece", "Start", "XenKernel", "build", "hypercall_page"]
