"""An AArch64 guest of a few pages, with its MMU off, that uses system registers and logs in memory what it reads.

It has no console: what is wrong shows in the log. Assembled here from source, at the address where it is loaded.
"""

from __future__ import annotations

from keystone import KS_ARCH_ARM64, KS_MODE_LITTLE_ENDIAN, Ks

from emulator.isa.aarch64.encoding import mrs
from emulator.isa.aarch64.registers import REGISTERS
from tests.bt.image.image_files import Part, make_elf

TEXT = 0x4008_0000
VECTORS = TEXT + 0x1000
LOG = TEXT + 0x4000

IDENTITY = tuple(one for one in REGISTERS if one.kind == "identification" and not one.feature and "r" in one.access)

STEPS: tuple[tuple[str, str], ...] = (
    ("daif set", "msr daifset, #2; mrs x0, daif"),
    ("daif clear", "msr daifclr, #15; mrs x0, daif; msr daifset, #15"),
    ("elr", "movz x1, #0x4321; msr elr_el1, x1; mrs x0, elr_el1"),
    ("far", "movz x1, #0x8765; msr far_el1, x1; mrs x0, far_el1"),
    ("thread", "movz x1, #0x1357; msr tpidr_el1, x1; mrs x0, tpidr_el1"),
    ("level", "mrs x0, currentel"),
    ("svc", "movz x8, #77; svc #5; mrs x0, esr_el1"),
    ("brk", "brk #9; mrs x0, esr_el1"),
    *((one.name, f".word {mrs(one.encoding):#x}") for one in IDENTITY),
)
"""Name of what is done, and the code that leaves a word in X0."""


def tiny_arm64() -> bytes:
    """The ELF. It ends by PSCI's SYSTEM_OFF; a synchronous exception goes on behind its instruction."""
    source = [f"movz x20, #{LOG >> 16:#x}, lsl #16", f"movk x20, #{LOG & 0xFFFF:#x}"]
    source += [f"movz x1, #{VECTORS >> 16:#x}, lsl #16", f"movk x1, #{VECTORS & 0xFFFF:#x}", "msr vbar_el1, x1", "isb"]
    source += [f"{code}; str x0, [x20], #8" for _name, code in STEPS]
    source += ["movz x0, #0x8400, lsl #16", "movk x0, #8", "hvc #0"]
    text = _assemble("; ".join(source), TEXT)
    # SVC's ELR is behind it already; every other instruction is stepped over.
    over = "mrs x2, esr_el1; lsr x2, x2, #26; cmp x2, #0x15; movz x3, #4; csel x3, xzr, x3, eq; "
    handler = _assemble(over + "mrs x2, elr_el1; add x2, x2, x3; msr elr_el1, x2; eret", VECTORS + 0x200)
    code = text.ljust(0x1200, b"\0") + handler
    return make_elf(
        (Part(".text", code, TEXT, TEXT, 5), Part(".data", bytes(0x1000), LOG, LOG, 6)), entry=TEXT, machine=183
    )


def step(physical: int) -> str:
    """Which step wrote a word of the log."""
    return STEPS[(physical - LOG) // 8][0]


def _assemble(source: str, address: int) -> bytes:
    encoded, _count = Ks(KS_ARCH_ARM64, KS_MODE_LITTLE_ENDIAN).asm(source, address)
    return bytes(encoded)
