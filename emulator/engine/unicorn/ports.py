"""Accesses to I/O ports that need no handler: writes that are handed up late, reads whose answer is known.

Room: `emulator/engine/unicorn`. Unicorn calls back at every IN and OUT; the callbacks here are a few bytes of machine
code that look the port up in a table, and go on to Python where the table does not say what to do. A driver that polls
a port's register forever, waiting for what only the host can bring, comes to Python after `MOST_ANSWERS` reads.
"""

import ctypes
import mmap
from typing import Any, Final

from emulator.engine.unicorn.kept import KEPT, Kept

POSTED, SOUGHT, ANSWERED = 1, 2, 4
"""Of a port: a write of a byte is kept for later; it ends a series of answers; a read of a byte is answered."""
PORTS: Final = 1 << 16
_ENABLED = 0
_READ_AT: Final = 0x80

# Called as callback(engine, port, size, value, words) for OUT and callback(engine, port, size, words) for IN, in
# RDI RSI RDX RCX R8 (System V AMD64). `words`: enabled, writes kept, answers given (32 bits each); tables of what to do
# at +16, of kept writes at +24 and of answers at +40; Python's callbacks at +32 (OUT) and +48 (IN).
#   cmp dword [r8], 0 ; je other ; cmp edx, 1 ; jne other ; movzx eax, si ; mov r9, [r8+16] ; mov dl, [r9+rax]
#   test dl, POSTED ; jz byte ; mov r10d, [r8+4] ; cmp r10d, KEPT ; jae byte ; mov r9, [r8+24]
#   movzx ecx, cl ; shl ecx, 16 ; movzx eax, si ; or ecx, eax ; mov [r9+r10*4], ecx ; inc dword [r8+4]
#   test dl, SOUGHT ; jz done ; mov dword [r8+8], 0 ; done: ret
#   byte: mov edx, 1 ; movzx ecx, cl ; other: jmp [r8+32]
_WRITE = bytes.fromhex(
    "41833800 744f 83fa01 754a 0fb7c6 4d8b4810 418a1401 f6c201 7432 458b5004 4181fa00040000 7325 4d8b4818 0fb6c9 c1e110"
    "0fb7c6 09c1 43890c91 41ff4004 f6c202 7408 41c7400800000000 c3 ba01000000 0fb6c9 41ff6020"
)
#   cmp dword [rcx], 0 ; je other ; cmp edx, 1 ; jne other ; movzx eax, si ; mov r9, [rcx+16]
#   test byte [r9+rax], ANSWERED ; jz other ; cmp dword [rcx+8], MOST_ANSWERS ; jae other ; inc dword [rcx+8]
#   mov r9, [rcx+40] ; movzx eax, byte [r9+rax] ; ret ; other: jmp [rcx+48]
_READ = bytes.fromhex(
    "833900 7426 83fa01 7521 0fb7c6 4c8b4910 41f6040104 7413 83790810 730d ff4108 4c8b4928 410fb60401 c3 ff6130"
)


class QuietPorts(Kept):
    """The tables, and the native callbacks that look into them."""

    WHAT = "writes"

    def __init__(self, read: Any, write: Any) -> None:
        """`read` and `write` are the ctypes callbacks for whatever is not in the tables."""
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page[: len(_WRITE)] = _WRITE
        self._page[_READ_AT : _READ_AT + len(_READ)] = _READ
        self.on_write = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self.on_read = self.on_write + _READ_AT
        self._actions = (ctypes.c_ubyte * PORTS)()
        self._answers = (ctypes.c_ubyte * PORTS)()
        self._kept = (ctypes.c_uint32 * KEPT)()
        self._callbacks = read, write
        self._words = (ctypes.c_uint64 * 7)(
            0,
            0,
            ctypes.addressof(self._actions),
            ctypes.addressof(self._kept),
            ctypes.cast(write, ctypes.c_void_p).value or 0,
            ctypes.addressof(self._answers),
            ctypes.cast(read, ctypes.c_void_p).value or 0,
        )
        self.argument = ctypes.addressof(self._words)
        self.control = memoryview(self._words).cast("B").cast("I")
        """`control[0]`: whether the tables count; `control[1]`: writes kept."""
        self.used = False
        """Something is in the tables."""

    def enable(self, enabled: bool) -> bool:
        """Let the tables count, or not; says whether they did."""
        before = self.control[_ENABLED] != 0
        self.control[_ENABLED] = enabled
        return before

    def post(self, port: int, posted: bool) -> None:
        """Keep writes to a port for later, or not."""
        self._set(port, POSTED, posted)

    def answer(self, port: int, value: int, sought_at: int) -> None:
        """Answer reads of a port by `value`, or no more (-1). Writes kept for `sought_at` show that nobody waits."""
        if value >= 0:
            self._answers[port] = value
        self._set(port, ANSWERED, value >= 0)
        self._set(sought_at, SOUGHT, value >= 0)

    def _set(self, port: int, action: int, on: bool) -> None:
        actions = self._actions
        actions[port] = actions[port] | action if on else actions[port] & ~action
        self.used = True

    def take(self) -> list[tuple[int, int]]:
        """The ports and bytes of the writes kept, in order; none is kept afterwards."""
        return [(word & 0xFFFF, word >> 16) for word in self._take()]
