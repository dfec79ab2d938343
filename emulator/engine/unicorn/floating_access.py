"""Whether floating point may be used: what Unicorn's ARM processors ask no register for.

Room: `emulator/engine/unicorn`. QEMU asks one function (`fp_exception_el`) to which exception level floating point
traps, whenever it sums the mode up: at changes of level, and behind writes of system registers, those that user code
may write included. Unicorn's says "none", ever. The library calls it through a table of addresses among its data
(the procedure linkage table of the ELF specification); its entry there is replaced, once in a process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from itertools import takewhile
from operator import itemgetter
from typing import Any, Final

from emulator.errors import EngineMissing

CHOICE: Final = 0x2E0
"""Offset in the CPU state of CPTR_EL3, which nothing else looks at. 0: floating point runs. `OWN`: as the processor's
own CPACR says. Else the host address of words to ask in its place, plus 1: CPACR, and on ARMv7 FPEXC behind it."""
OWN: Final = 2
ENABLED: Final = 3 << 20
"""CPACR (FPEN; cp10): both levels may use it."""
# Called as fp_exception_el(env, level): RDI, RSI; the answer is 0 or 1. Non-secure state is the guest's user code.
_HEAD: Final = f"488b87{CHOICE.to_bytes(4, 'little').hex()} 4885c0"  # mov rax,[rdi+CHOICE] ; test rax,rax
_TAIL: Final = (
    "8b40ff 8bb7c0030000 f7d6 83e601"  # mov eax,[rax-1] ; mov esi,[rdi+SCR] ; not esi ; and esi,1
    "eb06 8b87c0020000"  # jmp test ; own: mov eax,[rdi+CPACR]
    "c1e814 83e003 83f803 740e"  # test: shr eax,20 ; and eax,3 ; cmp eax,3 ; je none
    "a801 7404 85f6 7506"  # test al,1 ; je trap ; test esi,esi ; jne none
    "b801000000 c3 31c0 c3"  # trap: mov eax,1 ; ret ; none: xor eax,eax ; ret
)
_CODE: Final = {
    "aarch64": f"{_HEAD} 7433 a801 7410 {_TAIL}",  # je none ; test al,1 ; je own
    "arm": f"{_HEAD} 743c a801 7419 f7400300000040 7429 {_TAIL}",  # and: test dword [rax+3],FPEXC.EN ; je trap
}
_SLOT: Final = 7
"""R_X86_64_JUMP_SLOT."""
_SIZE, _STRINGS, _SYMBOLS, _RELOCATIONS = 2, 5, 6, 23
"""DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_JMPREL."""
_SYMBOL, _RELOCATION, _VALUE = 24, 24, 8
_pages: dict[str, mmap.mmap] = {}
"""The code that is called now, by the name of the processor: as long as the process."""


def ask(library: Any, processor: str) -> None:
    """Have the processors of a library ask `CHOICE`. Raises `EngineMissing` where it is not as it is known here."""
    if processor in _pages:
        return
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex(_CODE[processor]))
    code = ctypes.addressof(ctypes.c_char.from_buffer(page))
    descriptor = os.open("/proc/self/mem", os.O_RDWR)
    try:
        os.pwrite(descriptor, struct.pack("<Q", code), _slot(library, processor, descriptor))
    except (OSError, ValueError, struct.error) as error:
        raise EngineMissing(
            f"the unicorn engine calls fp_exception_el_{processor} where retrap does not find it ({error}): "
            "install unicorn==2.1.4 as a wheel"
        ) from None
    finally:
        os.close(descriptor)
    _pages[processor] = page


def _slot(library: Any, processor: str, descriptor: int) -> int:
    """Host address of the table's entry. Raises `ValueError` or `OSError`."""
    name = f"fp_exception_el_{processor}"
    try:
        function = ctypes.cast(library[name], ctypes.c_void_p).value or 0
    except AttributeError:
        raise ValueError("there is no such symbol") from None
    # What a library's handle leads to begins with its base, its name and its dynamic section (<link.h>, link_map).
    base, _, dynamic = struct.unpack("<3Q", os.pread(descriptor, 24, library._handle))
    tags = dict(takewhile(itemgetter(0), struct.iter_unpack("<2Q", os.pread(descriptor, 1024, dynamic))))
    strings, symbols, relocations = (_in_memory(tags, tag, base) for tag in (_STRINGS, _SYMBOLS, _RELOCATIONS))
    table = os.pread(descriptor, strings - symbols, symbols)
    number = _number_of(table, function - base, name, strings, descriptor)
    found = os.pread(descriptor, tags[_SIZE], relocations).find(struct.pack("<Q", number << 32 | _SLOT))
    if found % _RELOCATION != _VALUE:
        raise ValueError("it is not called through the linkage table")
    [offset] = struct.unpack("<Q", os.pread(descriptor, 8, relocations + found - _VALUE))
    return int(base + offset)


def _in_memory(tags: dict[int, int], tag: int, base: int) -> int:
    """An address that some C libraries have moved to where the library lies, and some not."""
    if tag not in tags:
        raise ValueError(f"its dynamic section has no tag {tag}")
    return tags[tag] if tags[tag] >= base else tags[tag] + base


def _number_of(table: bytes, value: int, name: str, strings: int, descriptor: int) -> int:
    """A symbol's number, by its value and name."""
    wanted, at = name.encode() + b"\0", 0
    while (at := table.find(struct.pack("<Q", value), at)) >= 0:
        number, inside = divmod(at, _SYMBOL)
        at += 1
        if inside == _VALUE:
            [place] = struct.unpack_from("<I", table, number * _SYMBOL)
            if os.pread(descriptor, len(wanted), strings + place) == wanted:
                return number
    raise ValueError("its symbol table does not have it")
