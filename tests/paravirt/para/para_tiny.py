"""Guests of a few instructions for every instruction set, as files that a session runs: para-virtual ones, and plain
ones for the other ways. Assembled by keystone; how each ends is its board's or the interface's.

Room: `tests`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keystone

from bt.image import load
from bt.session import Options, Session
from emulator.machine import Limits, Outcome
from paravirt.abi.calls import PARA_VERSION, Call
from paravirt.abi.guests import CONVENTIONS, NOTE_VERSION, Convention
from paravirt.abi.printing import places
from paravirt.hypervisor import Hypervisor
from tests.bt.image.image_files import Part, make_elf

NOTE = struct.pack("<III", 7, 4, NOTE_VERSION) + b"retrap\0\0" + struct.pack("<I", PARA_VERSION)


@dataclass(frozen=True)
class Form:
    """What a tiny guest of one instruction set is made of."""

    architecture: int
    mode: int
    machine: int
    bits: int
    virtual: int
    physical: int
    flags: int
    by_virtual: bool
    """Entered at the virtual address."""
    pairs: str
    """`{count}` pairs by privileged instructions, then the end of the run."""
    para_pairs: str
    """The same by the shared page and SHUTDOWN."""
    tables: tuple[Part, ...] = ()
    """Page tables, for code that must run at its virtual address."""


def _sections() -> Part:
    """ARMv7: the guest's first megabyte where it is, and in a branch's reach of the fixups."""
    words = [0] * 4096
    words[0x401] = words[0xBF0] = 0x4010_0C0E
    return Part(".tables", struct.pack("<4096I", *words), 0xBF00_4000, 0x4010_4000, 6)


_PAIRS = (
    "nop; mov ecx, {count}; again: cli; mov edx, 0x11111111; sti; mov edx, 0x22222222; dec ecx; jnz again; mov al, 0;"
    "out 0xf4, al"
)


def _long_mode() -> Part:
    """x86-64: the guest's first 2 MiB where it is, and where it is linked."""
    words = [0] * 1536
    words[0] = words[511] = 0x100_5003
    words[512] = words[512 + 510] = 0x100_6003
    words[1024 + 8] = 0x100_0083
    return Part(".tables", struct.pack("<1536Q", *words), 0xFFFF_FFFF_8100_4000, 0x100_4000, 6)


def _legacy() -> Part:
    """i386: the same, 4 MiB."""
    words = [0] * 1024
    words[4] = words[0x304] = 0x100_0083
    return Part(".tables", struct.pack("<1024I", *words), 0xC100_4000, 0x100_4000, 6)


FORMS = {
    "x86-64": Form(
        keystone.KS_ARCH_X86, keystone.KS_MODE_64, 62, 64, 0xFFFF_FFFF_8100_0000, 0x100_0000, 0, False,
        "mov eax, 0x1004000; mov cr3, rax; lea rax, [rip + 9]; mov rdx, 0xffffffff80000000; add rax, rdx; jmp rax;"
        + _PAIRS,
        "mov rsp, 0x1008000; mov r8, {INTERRUPTS}; mov r9, {EVENTS}; mov r10, {INTERRUPTS_OFF}; mov ecx, {count};"
        "again: mov qword ptr [r8], r10; mov qword ptr [r8], 0; cmp qword ptr [r9], 0; jne over; dec ecx; jnz again;"
        "over: mov eax, {SHUTDOWN}; mov edi, ecx; mov r11, {CALL}; call r11",
        (_long_mode(),),
    ),
    "i386": Form(
        keystone.KS_ARCH_X86, keystone.KS_MODE_32, 3, 32, 0xC100_0000, 0x100_0000, 0, False,
        "mov eax, 0x1004000; mov cr3, eax; mov eax, cr4; or eax, 0x10; mov cr4, eax; mov eax, cr0; or eax, 0x80000000;"
        "mov cr0, eax; mov eax, 0xc1000023; jmp eax;" + _PAIRS,
        "mov esp, 0x1008000; mov edx, {INTERRUPTS}; mov esi, {EVENTS}; mov ebp, {INTERRUPTS_OFF}; mov ecx, {count};"
        "again: mov dword ptr [edx], ebp; mov dword ptr [edx], 0; cmp dword ptr [esi], 0; jne over; dec ecx; jnz again;"
        "over: mov eax, {SHUTDOWN}; mov ebx, ecx; mov edx, {CALL}; call edx",
        (_legacy(),),
    ),
    "aarch64": Form(
        keystone.KS_ARCH_ARM64, 0, 183, 64, 0xFFFF_8000_0810_0000, 0x4010_0000, 0, False,
        "movz x1, #{count_low}; movk x1, #{count_high}, lsl #16; "
        "again: msr daifset, #2; msr daifclr, #2; subs x1, x1, #1; b.ne again;"
        "movz x0, #0x8400, lsl #16; movk x0, #8; hvc #0; here: b here",
        "movz x1, #{count_low}; movk x1, #{count_high}, lsl #16;"
        "ldr x2, ={INTERRUPTS}; ldr x3, ={EVENTS}; mov x4, #{INTERRUPTS_OFF};"
        "again: str x4, [x2]; str xzr, [x2]; ldr x5, [x3]; cbnz x5, over; subs x1, x1, #1; b.ne again;"
        "over: mov x8, #{SHUTDOWN}; mov x0, x1; ldr x9, ={CALL}; blr x9; here: b here",
    ),
    "armv7": Form(
        keystone.KS_ARCH_ARM, keystone.KS_MODE_ARM, 40, 32, 0xBF00_0000, 0x4010_0000, 0x500_0200, False,
        "ldr r0, =0x40104000; mcr p15, 0, r0, c2, c0, 0; mov r1, #1; mcr p15, 0, r1, c3, c0, 0;"
        "mrc p15, 0, r1, c1, c0, 0; orr r1, r1, #1; mcr p15, 0, r1, c1, c0, 0; mov r2, pc; add r2, r2, #0x7e000000;"
        "add r2, r2, #0xf00000; add r2, r2, #12; mov pc, r2;"
        "ldr r1, ={count}; again: cpsid i; cpsie i; subs r1, r1, #1; bne again;"
        "ldr r0, =0x84000008; .word 0xe1400070; here: b here",
        "ldr r1, ={count}; ldr r2, ={INTERRUPTS}; ldr r3, ={EVENTS}; mov r4, #{INTERRUPTS_OFF}; mov r6, #0;"
        "again: str r4, [r2]; str r6, [r2]; ldr r5, [r3]; cmp r5, #0; bne over; subs r1, r1, #1; bne again;"
        "over: mov r12, #{SHUTDOWN}; mov r0, r1; ldr r9, ={CALL}; blx r9; here: b here",
        (_sections(),),
    ),
    "mips32": Form(
        keystone.KS_ARCH_MIPS, keystone.KS_MODE_MIPS32 | keystone.KS_MODE_LITTLE_ENDIAN, 8, 32, 0x8010_0000, 0x10_0000,
        0x7000_1001, True,
        ".set noreorder; lui $9, {count_high}; ori $9, $9, {count_low}; again: .word 0x41606000; .word 0x41606020;"
        "addiu $9, $9, -1; bne $9, $0, again; nop; lui $8, 0xb800; sb $0, 0xf4($8); over: b over; nop",
        ".set noreorder; lui $9, {count_high}; ori $9, $9, {count_low}; lui $10, 0xffff; ori $10, $10, 0x8000;"
        "ori $11, $0, 1; again: sw $0, 0($10); sw $11, 0($10); lw $12, 4($10); bne $12, $0, over; addiu $9, $9, -1;"
        "bne $9, $0, again; nop; over: ori $2, $0, {SHUTDOWN}; move $4, $9; lui $8, {CALL_HIGH};"
        "ori $8, $8, {CALL_LOW}; jalr $8; nop; here: b here; nop",
    ),
}  # fmt: skip


def values(convention: Convention, **more: int) -> dict[str, Any]:
    """Names for the sources: places of the interface and calls."""
    named = {name: value for name, value, _ in places(convention)} | {call.name: int(call) for call in Call}
    entry = convention.call_entry
    return {**named, "CALL": entry, "CALL_HIGH": entry >> 16, "CALL_LOW": entry & 0xFFFF, **more}


def assemble(isa: str, source: str, **more: int) -> bytes:
    """Machine code of a source with names in braces."""
    form = FORMS[isa]
    engine = keystone.Ks(form.architecture, form.mode)
    text = source.format_map(values(CONVENTIONS[isa], **more))
    code, _ = engine.asm(text, form.virtual if form.by_virtual else form.physical)
    return bytes(code)


def file_of(isa: str, code: bytes, directory: Path, *, note: bytes = NOTE) -> Path:
    """A kernel's file; with a note a para-virtual one."""
    form = FORMS[isa]
    text = Part(".text", code, form.virtual, form.physical, 7, 0x2000)
    parts = [text, *([Part(".retrap.note", note, type=7)] if note else []), *form.tables]
    entry = form.virtual if form.by_virtual else form.physical
    data = bytearray(make_elf(parts, entry, machine=form.machine, bits=form.bits))
    struct.pack_into("<I", data, 48 if form.bits == 64 else 36, form.flags)
    path = directory / "tiny.elf"
    path.write_bytes(data)
    return path


def run(path: Path, mode: str, technique: str) -> tuple[Outcome, Any]:
    """How a kernel's file ends, and what drove it."""
    options = Options(mode=mode, memory=64 << 20, cache=False, technique=technique, limits=Limits(host_seconds=60))
    session = Session(load(path), options, lambda _data: None)
    try:
        return session.run(), session.driver
    finally:
        session.close()


def run_walked(isa: str, code: bytes, tables: Part, up: int, technique: str, directory: Path) -> tuple[Outcome, Any]:
    """Likewise a para-virtual guest that brings page tables, linked `up` bytes above its place."""
    form = FORMS[isa]
    text = Part(".text", code, form.physical + up, form.physical, 7, 0x3000)
    parts = [text, Part(".retrap.note", NOTE, type=7), tables]
    path = directory / "direct.elf"
    path.write_bytes(make_elf(parts, form.physical, machine=form.machine, bits=form.bits))
    return run(path, "para", technique)


def pairs(isa: str, mode: str, count: int, directory: Path, technique: str = "") -> dict[tuple[str, str], int]:
    """Exits but the clock's of `count` disable/enable pairs, run in a mode to a clean end."""
    form = FORMS[isa]
    source = form.para_pairs if mode == "para" else form.pairs
    code = assemble(isa, source, count=count, count_high=count >> 16, count_low=count & 0xFFFF)
    path = file_of(isa, code, directory, note=NOTE if mode == "para" else b"")
    outcome, driver = run(path, mode, technique)
    assert (outcome.clean, outcome.status) == (True, 0), outcome
    assert isinstance(driver, Hypervisor)
    return {key: number for key, number in driver.exits.counts.items() if key[1] != "budget"}
