"""A crash inside Unicorn is an error of its run, and not the end of the process.

Room: `emulator/engine/unicorn`. The emulation is entered by a few instructions of ours, which remember the stack; a
handler of SIGSEGV and its like goes back there, where it strikes in native code of such a run. Nothing is spent while
guest code runs. A crash under Python's own feet (in a callback) goes the way it went before. x86-64 hosts only.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import signal
from typing import Any, Final

from emulator.errors import EngineMissing

SIGNALS: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGBUS)
"""What a crash is."""
_MOST: Final = 64
"""Runs that can be under way at once; further ones are not guarded."""

# start(handle, begin, until, timeout, count, slot): a slot holds thread, stack, uc_emu_start.
_START = bytes.fromhex(
    "55 53 4154 4155 4156 4157 4151"  # push rbp, rbx, r12..r15, r9
    "64488b042500000000"  # mov rax,fs:[0]   the thread
    "49896108 498901"  # mov [r9+8],rsp; mov [r9],rax
    "41ff5110"  # call [r9+16]
    # Back, or brought back by the handler with RAX = -signal:
    "4159 49c70100000000"  # pop r9; mov qword [r9],0
    "415f 415e 415d 415c 5b 5d c3"
)
_LANDING: Final = 32
"""Offset of what follows the call."""
# handler(signal, siginfo, context). R13 leads to the words below; a context has its registers from byte 28H on.
_HANDLER_BEGINS = bytes.fromhex("53 4154 4155 89fb 4989d4 49bd")  # push rbx, r12, r13; ebx = signal; r12 = context
_HANDLER = bytes.fromhex(
    "41ff5500 85c0 756b"  # call [r13]; test eax,eax; jnz pass     Python runs: its frames cannot be left out
    "64488b042500000000"  # mov rax,fs:[0]
    "31c9 498d5540 be40000000"  # xor ecx,ecx; lea rdx,[r13+40h]; mov esi,64
    "483902 7512"  # look: cmp [rdx],rax; jne next
    "4885c9 740a 488b7a08 483b7908 7303"  # the innermost run of this thread has the lowest stack
    "4889d1"  # take: mov rcx,rdx
    "4883c220 ffce 75e1"  # next: add rdx,32; dec esi; jnz look
    "4885c9 7431"  # test rcx,rcx; jz pass
    "488b4108 49898424a0000000"  # RSP = that run's
    "498b4518 49898424a8000000"  # RIP = the landing
    "48f7db 49899c2490000000"  # RAX = -signal
    "4981a424b0000000fffbffff"  # DF = 0
    "eb1c"  # jmp done
    "69f3a0000000 498db43500090000 89df 31d2 41ff5508"  # pass: sigaction(signal, what was there before, NULL)
    "89df 41ff5510"  # raise(signal)
    "415d 415c 5b c3"  # done
)
_SLOTS, _SLOT, _BEFORE, _ACTION = 0x40, 32, 0x900, 160
_AGAIN: Final = 0x800
"""Offset of the functions that an engine that crashed runs from then on."""
_SA_SIGINFO, _SA_ONSTACK = 4, 0x0800_0000

Start = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint64,
    ctypes.c_uint64,
    ctypes.c_uint64,
    ctypes.c_size_t,
    ctypes.c_void_p,
)
"""`uc_emu_start`, with the slot behind its arguments; gives -signal where it crashed."""


class _Action(ctypes.Structure):
    """`struct sigaction` of Linux's C library on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class _Guard:
    """The handler, once a process."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            raise EngineMissing(
                f"the unicorn engine needs native callbacks, written for x86_64 only, not {platform.machine()}"
            )
        library = ctypes.CDLL(None)
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._data = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        self.data = ctypes.addressof(ctypes.c_char.from_buffer(self._data))
        words = (ctypes.c_uint64 * 4).from_address(self.data)
        words[0] = _address(ctypes.pythonapi.PyGILState_Check)
        words[1], words[2] = _address(library.sigaction), _address(getattr(library, "raise"))
        words[3] = code + _LANDING
        handler = len(_START) + 15 & ~15
        self._page.write(_START.ljust(handler, b"\xcc") + _HANDLER_BEGINS + self.data.to_bytes(8, "little") + _HANDLER)
        for number in SIGNALS:  # mov eax,-signal; ret
            at = _AGAIN + 8 * number
            self._page[at : at + 6] = b"\xb8" + (-number & 0xFFFF_FFFF).to_bytes(4, "little") + b"\xc3"
        self.again = code + _AGAIN
        self.start = Start(code)
        self.free = list(range(_MOST))
        action = _Action(code + handler, flags=_SA_SIGINFO | _SA_ONSTACK)
        for number in SIGNALS:
            before = ctypes.c_void_p(self.data + _BEFORE + number * _ACTION)
            library.sigaction(int(number), ctypes.byref(action), before)


_guard: list[_Guard] = []


class Guarded:
    """The guarded runs of one engine: `start(handle, begin, until, 0, 0, slot)`."""

    def __init__(self, library: Any) -> None:
        if not _guard:
            _guard.append(_Guard())
        self.start = _guard[0].start
        self._number: int | None = _guard[0].free.pop() if _guard[0].free else None
        if self._number is None:
            self._own = (ctypes.c_uint64 * 4)()
            self.slot = ctypes.addressof(self._own)
        else:
            self.slot = _guard[0].data + _SLOTS + self._number * _SLOT
        (ctypes.c_uint64 * 4).from_address(self.slot)[2] = _address(library.uc_emu_start)
        self.crashed: str = ""
        """Name of the signal, once a run has crashed: the engine is not called any more."""

    def note(self, status: int) -> str:
        """A run gave `status`, below 0: the signal's name."""
        self.crashed = signal.Signals(-status).name
        (ctypes.c_uint64 * 4).from_address(self.slot)[2] = _guard[0].again - 8 * status
        return self.crashed

    def close(self) -> None:
        """No run of this engine comes any more. Idempotent."""
        if self._number is not None:
            _guard[0].free.append(self._number)
            self._number = None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
