"""A 32-bit x86 guest of a few pages, without paging, that uses what is sensitive and logs what it reads.

It has no console: what is wrong shows in the log. Assembled here from source, at the address where it is loaded.
"""

from __future__ import annotations

from keystone import KS_ARCH_X86, KS_MODE_32, Ks

from tests.bt.image.image_files import Part, make_elf

TEXT = 0x100_0000
DATA = 0x101_0000
LOG, STACK = DATA + 0x1000, DATA + 0x4000
STACK_SIZE = 0x1000

_PAD = "nop; nop; nop; nop"
"""As much as a jump needs behind an instruction of one byte."""

STEPS: tuple[tuple[str, str], ...] = (
    ("cli", f"push 0x202; popfd; cli; {_PAD}; pushfd; pop eax; {_PAD}; mov [edi], eax"),
    ("sti", f"cli; {_PAD}; sti; {_PAD}; pushfd; pop eax; {_PAD}; mov [edi], eax; cli"),
    ("pushf", f"cli; {_PAD}; pushfd; {_PAD}; pop dword ptr [edi]"),
    ("popf clears", f"sti; {_PAD}; push 2; popfd; {_PAD}; pushfd; pop eax; {_PAD}; mov [edi], eax"),
    ("popf sets", f"cli; {_PAD}; push 0x202; popfd; {_PAD}; pushfd; pop eax; {_PAD}; mov [edi], eax; cli"),
    ("popf arithmetic", f"push 0xad7; popfd; {_PAD}; pushfd; pop eax; {_PAD}; mov [edi], eax; cli; cld"),
    ("registers", f"mov ecx, 0x1111; mov edx, 0x2222; pushfd; pop ebx; {_PAD}; mov [edi], ecx; xor [edi], edx"),
    ("eax", f"mov eax, 0x3333; pushfd; pop ecx; {_PAD}; mov [edi], eax"),
    ("flags", f"xor eax, eax; stc; pushfd; pop ebx; {_PAD}; setc al; sete ah; mov [edi], eax"),
    ("cr0", "mov eax, cr0; mov ecx, 5; mov [edi], eax"),
    ("cr2", "mov eax, 0x12345; mov cr2, eax; mov eax, cr2; mov ecx, 5; mov [edi], eax"),
    ("cr3", "mov eax, 0x5000; mov cr3, eax; mov eax, cr3; mov ecx, 5; mov [edi], eax"),
    ("cr4", "mov eax, cr4; mov ecx, 5; mov [edi], eax"),
    ("sgdt", "sgdt [edi]"),
    ("sidt", "sidt [edi]"),
    ("sldt", "xor eax, eax; sldt ax; mov [edi], eax"),
    ("cs", f"mov eax, cs; {_PAD}; mov [edi], eax"),
    ("ss", f"mov eax, ss; {_PAD}; mov [edi], eax"),
    ("push cs", f"push cs; {_PAD}; pop eax; mov [edi], eax"),
    ("lar", f"mov ecx, cs; {_PAD}; lar eax, ecx; {_PAD}; mov [edi], eax"),
)
"""Name and code; EDI points to the step's word in the log."""


def tiny_i386() -> bytes:
    """The guest as an ELF; it ends by HLT with interrupts disabled."""
    steps = "\n".join(f"mov edi, {LOG + 8 * number:#x}; {code}" for number, (_, code) in enumerate(STEPS))
    source = "\n".join((f"mov esp, {STACK:#x}", steps, "cli; hang: hlt; jmp hang"))
    code, _ = Ks(KS_ARCH_X86, KS_MODE_32).asm(source, TEXT, as_bytes=True)
    text = Part(".text", code, TEXT, TEXT, 5)
    data = Part(".data", bytes(STACK - STACK_SIZE - DATA), DATA, DATA, 6)
    stack = Part(".stack", bytes(STACK_SIZE), STACK - STACK_SIZE, STACK - STACK_SIZE, 6)
    return make_elf((text, data, stack), TEXT, machine=3, bits=32)


def step(physical: int) -> str:
    """Which step wrote a word of the log."""
    return STEPS[(physical - LOG) // 8][0]
