"""A guest of one page that uses every kind of fixup, with room behind each site, and logs what it sees in memory.

It has no console: a wrong fixup shows in the log, so a comparison of memory says which step went wrong. Assembled here
from source, at the address where it is loaded.
"""

from __future__ import annotations

import struct

from keystone import KS_ARCH_X86, KS_MODE_64, Ks

from tests.bt.image.image_files import Part, make_elf

TEXT = 0x100_0000
DATA = 0x101_0000
IDT, LOG, STACK = DATA, DATA + 0x1000, DATA + 0x4000
STACK_SIZE = 0x1000
TICKED = DATA + 0x2000

_PAD = "nop; nop; nop; nop"
"""As much as a jump needs behind an instruction of one byte."""

STEPS: tuple[tuple[str, str], ...] = (
    ("cli", f"push 0x202; popfq; cli; {_PAD}; pushfq; pop rax; {_PAD}; mov [rdi], rax"),
    ("sti", f"cli; {_PAD}; sti; {_PAD}; pushfq; pop rax; {_PAD}; mov [rdi], rax; cli"),
    ("pushf", f"cli; {_PAD}; pushfq; {_PAD}; pop qword ptr [rdi]"),
    ("popf clears", f"sti; {_PAD}; push 2; popfq; {_PAD}; pushfq; pop rax; {_PAD}; mov [rdi], rax"),
    ("popf sets", f"cli; {_PAD}; push 0x202; popfq; {_PAD}; pushfq; pop rax; {_PAD}; mov [rdi], rax; cli"),
    ("popf arithmetic", f"push 0xad7; popfq; {_PAD}; pushfq; pop rax; {_PAD}; mov [rdi], rax; cli; cld"),
    ("registers", f"mov rcx, 0x1111; mov rdx, 0x2222; pushfq; pop rbx; {_PAD}; mov [rdi], rcx; xor [rdi], rdx"),
    ("rax", f"mov rax, 0x3333; pushfq; pop rcx; {_PAD}; mov [rdi], rax"),
    ("flags", f"xor eax, eax; stc; pushfq; pop rbx; {_PAD}; setc al; sete ah; mov [rdi], rax"),
    ("cr0", "mov rax, cr0; mov ecx, 5; mov [rdi], rax"),
    ("cr2", "mov eax, 0x12345; mov cr2, rax; mov rax, cr2; mov ecx, 5; mov [rdi], rax"),
    ("cr3", "mov rax, cr3; mov ecx, 5; mov cr3, rax; mov rax, cr3; mov ecx, 5; mov [rdi], rax"),
    ("cr4", "mov rax, cr4; mov ecx, 5; mov [rdi], rax"),
    ("sgdt", "sgdt [rdi - 2]"),
    ("sidt", "sidt [rdi - 2]"),
    ("cs", "xor eax, eax; mov ax, cs; mov [rdi], rax"),
    ("sti pending", f"call pend; sti; {_PAD}; mov rax, [TICKED]; mov [rdi], rax; cli; {_PAD}"),
    ("popf pending", f"call pend; push 0x202; popfq; {_PAD}; mov rax, [TICKED]; mov [rdi], rax; cli; {_PAD}"),
)
"""Name and code; RDI points to the step's word in the log."""

_PENDING = f"""
pend: cli; {_PAD}; mov qword ptr [TICKED], 0
 mov al, 0x30; out 0x43, al; mov al, 0x10; out 0x40, al; mov al, 0; out 0x40, al; mov al, 0x0a; out 0x20, al
mov ecx, 0x1000
again: in al, 0x20; test al, 1; jne there; dec ecx; jne again
there: mov ecx, 0; ret
tick: push rax; inc qword ptr [TICKED]; mov al, 0x20; out 0x20, al; pop rax; iretq
"""
_START = f"""
 mov rsp, {STACK:#x}; lidt [rip + table]
 mov al, 0x11; out 0x20, al; mov al, 0x20; out 0x21, al; mov al, 4; out 0x21, al; mov al, 1; out 0x21, al
 mov al, 0xfe; out 0x21, al
"""
_END = "mov al, 0; out 0xf4, al; hang: jmp hang"


def step(physical: int) -> str:
    """Name of the step whose word of the log lies at a guest-physical address."""
    return STEPS[(physical - LOG) // 16][0]


def tiny_guest() -> bytes:
    """The guest as an ELF."""
    steps = "\n".join(f"mov rdi, {LOG + 16 * number:#x}; {code}" for number, (_, code) in enumerate(STEPS))
    table = f"table: .short 0x2ff; .quad {IDT:#x}"
    source = "\n".join((_START, steps, _END, _PENDING, table)).replace("TICKED", hex(TICKED))
    assembler = Ks(KS_ARCH_X86, KS_MODE_64)
    code, _ = assembler.asm(source, TEXT, as_bytes=True)
    start = code.rindex(bytes.fromhex("50 48 ff"))  # push rax; inc
    tick = TEXT + start
    gate = struct.pack("<HHHHII", tick & 0xFFFF, 0x10, 0x8E00, tick >> 16 & 0xFFFF, 0, 0)
    text = Part(".text", code, TEXT, TEXT, 5)
    data = Part(".data", (bytes(0x200) + gate).ljust(STACK - STACK_SIZE - DATA, b"\0"), DATA, DATA, 6)
    stack = Part(".stack", bytes(STACK_SIZE), STACK - STACK_SIZE, STACK - STACK_SIZE, 6)
    return make_elf((text, data, stack), TEXT)
