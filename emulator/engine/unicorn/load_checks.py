"""Where Unicorn looks whether it shall stop: when a block begins and behind stores, and no more behind every load.

Room: `emulator/engine/unicorn`. It calls a function for that behind each access to memory, before which all registers
that a block keeps in the host's go back to memory: a fifth of a boot. The functions of its translator that make loads
end in a jump to what adds the call: they return instead. A load from where nothing is leaves its block by itself; a
store does not, and what is called before a single instruction looks as ever. x86-64 hosts only, as all native code is.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from emulator.engine.unicorn.state_search import read_memory
from emulator.errors import EngineMissing

_MAKERS: Final = ("ld_i32", "ld_i64")
_ENDS: Final = bytes.fromhex("4889ef 5d e9")
"""mov rdi,rbp; pop rbp; jmp rel32."""
_RETURN: Final = b"\xc3"
_SIZE: Final = 96
"""Bytes in which such a function ends."""
_LINKED: Final = b"\xff\x25"
"""jmp [rip+rel32]: an entry of the procedure linkage table."""
_done: set[str] = set()
"""Suffixes of the library's functions that are changed, once in a process."""


def not_behind_loads(library: ctypes.CDLL, suffix: str) -> None:
    """Have the processors of a library not look behind loads. Raises `EngineMissing` where it is another."""
    if suffix in _done:
        return
    descriptor = os.open("/proc/self/mem", os.O_RDWR)
    try:
        check = _address(library, f"check_exit_request_{suffix}")
        places = [_jump(descriptor, _address(library, f"tcg_gen_qemu_{name}_{suffix}"), check) for name in _MAKERS]
        if not check or 0 in places:
            raise EngineMissing(
                f"the unicorn engine makes no loads of {suffix} that retrap knows: install unicorn==2.1.4 as a wheel"
            )
        for place in places:
            os.pwrite(descriptor, _RETURN, place)
    finally:
        os.close(descriptor)
    _done.add(suffix)


def _address(library: ctypes.CDLL, name: str) -> int:
    function = getattr(library, name, None)
    return (ctypes.cast(function, ctypes.c_void_p).value or 0) if function is not None else 0


def _jump(descriptor: int, function: int, target: int) -> int:
    """Host address of the jump to `target` that a function ends in, or 0."""
    code = read_memory(descriptor, function, _SIZE) if function else b""
    at = code.find(_ENDS) + len(_ENDS)
    if at < len(_ENDS) or at + 4 > len(code):
        return 0
    entry = function + at + 4 + struct.unpack_from("<i", code, at)[0]
    linked = read_memory(descriptor, entry, 6)
    if not linked.startswith(_LINKED):
        return 0
    slot = entry + 6 + struct.unpack_from("<i", linked, 2)[0]
    return function + at - 1 if read_memory(descriptor, slot, 8) == struct.pack("<Q", target) else 0
