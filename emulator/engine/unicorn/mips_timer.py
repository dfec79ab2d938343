"""Count, Compare and Random of Unicorn's MIPS at full privilege, done by whoever drives the engine.

Room: `emulator/engine/unicorn`. Unicorn's Count reads 0 and its timer is gone; Random follows a number that all engines
of a process share. The functions that emulated code calls for them begin with a jump to a callback here instead, which
knows by its first argument whose engine calls; the others get what Unicorn gives. x86-64 hosts only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from emulator.engine.unicorn.state_search import read_memory
from emulator.errors import EngineMissing

_READ = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint64)
_WRITE = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint32)
_FUNCTIONS: Final = {
    "helper_mfc0_count": (_READ, "31c0c3"),
    "helper_mtc0_count": (_WRITE, "c3"),
    "helper_mtc0_compare": (_WRITE, "c3"),
    "helper_mfc0_random": (_READ, "e9"),
    "cpu_mips_get_random": (_READ, "488b87c82b0000"),
}
"""Name without the byte order, its kind, and how its code begins in the wheel that this is written for."""
_RDHWR: Final = "helper_rdhwr_cc"
_RDHWR_CODE: Final = bytes.fromhex("4883ec08488b542408f687942b000010")
_RDHWR_REFUSED: Final = 0x22
"""Offset in RDHWR's function of its refusal, which wants the stack as it is after the first instruction."""
_TLB: Final = 0x2BC8
"""In the registers: the address of the TLB, which begins with its size and how many entries are in use."""


class Counters(NamedTuple):
    """What an engine's driver does in place of the processor."""

    read_count: Callable[[], int]
    write_count: Callable[[int], None]
    write_compare: Callable[[int], None]
    random: Callable[[bool], int]
    """The entry that TLBWR replaces next; True when it does so now."""
    fail: Callable[[BaseException], None]


_counters: dict[int, Counters] = {}
"""By the host address of the registers."""
_kept: dict[str, list[Any]] = {}
"""Callbacks and machine code, by byte order: the library jumps to them as long as the process lives."""


_AT_BLOCK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_WATCH: Final = bytes.fromhex(
    "8b813c050000"  # mov eax,[rcx+0x53c]   Status
    "89c2 83e207"  # mov edx,eax; and edx,7
    "83fa01 7519"  # cmp edx,1; jne out     IE, and neither EXL nor ERL
    "23814c050000"  # and eax,[rcx+0x54c]   Cause
    "a900ff0000 740c"  # test eax,0xff00; jz out
    "48b8"  # mov rax,
)


class InterruptWatch:
    """A callback of blocks that calls another one where the processor would take an interrupt."""

    def __init__(self, found: Callable[..., None]) -> None:
        """`callback` is for a hook of blocks, with the address of the registers as its data."""
        self._found = _AT_BLOCK(found)
        target = ctypes.cast(self._found, ctypes.c_void_p).value or 0
        self._page: Any = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(_WATCH + target.to_bytes(8, "little") + bytes.fromhex("ffe0 c3"))
        self.callback = ctypes.addressof(ctypes.c_char.from_buffer(self._page))


def attach(library: ctypes.CDLL, suffix: str, registers: int, counters: Counters) -> None:
    """Let an engine's counters be `counters`. Raises `EngineMissing` where the library is another."""
    if suffix not in _kept:
        _kept[suffix] = _redirect(library, suffix)
    _counters[registers] = counters


def detach(registers: int) -> None:
    """The engine is closed."""
    _counters.pop(registers, None)


def set_tlb_size(registers: int, expected: int, size: int) -> None:
    """Give the processor's TLB `size` entries. Raises `EngineMissing` where it is elsewhere."""
    pointer = ctypes.c_uint64.from_address(registers + _TLB).value
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        found = read_memory(descriptor, pointer, 4) if 0x10000 <= pointer < 1 << 47 else b""
    finally:
        os.close(descriptor)
    if found not in (expected.to_bytes(4, "little"), size.to_bytes(4, "little")):
        raise EngineMissing(
            "the unicorn engine keeps its MIPS TLB where retrap does not find it: install unicorn==2.1.4"
        )
    words = (ctypes.c_uint32 * 2).from_address(pointer)
    words[0] = words[1] = size


def _redirect(library: ctypes.CDLL, suffix: str) -> list[Any]:
    if platform.machine() != "x86_64":
        raise EngineMissing(
            f"the unicorn engine needs native callbacks, written for x86_64 only, not {platform.machine()}"
        )
    actions: dict[str, Any] = {
        "helper_mfc0_count": _reader(lambda counters: counters.read_count()),
        "helper_mtc0_count": _writer(lambda counters, value: counters.write_count(value)),
        "helper_mtc0_compare": _writer(lambda counters, value: counters.write_compare(value)),
        "helper_mfc0_random": _reader(lambda counters: counters.random(False)),
        "cpu_mips_get_random": _reader(lambda counters: counters.random(True)),
    }
    kept: list[Any] = []
    targets: dict[int, int] = {}
    descriptor = os.open("/proc/self/mem", os.O_RDWR)
    try:
        for name, (kind, begins) in _FUNCTIONS.items():
            place = _place(library, f"{name}_{suffix}", descriptor, bytes.fromhex(begins))
            callback = kind(actions[name])
            kept.append(callback)
            targets[place] = ctypes.cast(callback, ctypes.c_void_p).value or 0
        place = _place(library, f"{_RDHWR}_{suffix}", descriptor, _RDHWR_CODE)
        reader = targets[_place(library, f"helper_mfc0_count_{suffix}", descriptor, b"")]
        page, targets[place] = _checked(reader, place + _RDHWR_REFUSED)
        kept.append(page)
        for place, target in targets.items():
            os.pwrite(descriptor, b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0", place)  # mov rax; jmp rax
    finally:
        os.close(descriptor)
    return kept


def _place(library: ctypes.CDLL, name: str, descriptor: int, begins: bytes) -> int:
    function = getattr(library, name, None)
    place = (ctypes.cast(function, ctypes.c_void_p).value or 0) if function is not None else 0
    if not place or read_memory(descriptor, place, len(begins)) != begins:
        raise EngineMissing(f"the unicorn engine has no function {name} that retrap knows: install unicorn==2.1.4")
    return place


def _checked(reader: int, refused: int) -> tuple[Any, int]:
    """Machine code that asks `reader` where RDHWR may be executed, and goes to `refused` where not; its address."""
    code = (
        bytes.fromhex("f687942b000010 7516 f6870005000004 750d 4883ec08 488b542408 48b8")  # the library's own two tests
        + refused.to_bytes(8, "little")
        + bytes.fromhex("ffe0 48b8")
        + reader.to_bytes(8, "little")
        + bytes.fromhex("ffe0")
    )
    first, second, end = 7, 16, len(code) - 12
    code = code[: first + 1] + bytes([end - first - 2]) + code[first + 2 :]
    code = code[: second + 1] + bytes([end - second - 2]) + code[second + 2 :]
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    return page, ctypes.addressof(ctypes.c_char.from_buffer(page))


def _reader(action: Callable[[Counters], int]) -> Callable[[int], int]:
    def read(registers: int) -> int:
        counters = _counters.get(registers)
        if counters is None:
            return 0
        try:
            return action(counters)
        except BaseException as error:  # must not cross the C frames
            counters.fail(error)
            return 0

    return read


def _writer(action: Callable[[Counters, int], None]) -> Callable[[int, int], None]:
    def write(registers: int, value: int) -> None:
        counters = _counters.get(registers)
        if counters is None:
            return
        try:
            action(counters, value)
        except BaseException as error:  # must not cross the C frames
            counters.fail(error)

    return write
