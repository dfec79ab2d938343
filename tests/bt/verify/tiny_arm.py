"""An ARMv7 guest of a few pages, with its MMU off, that uses status and system registers and logs what it reads.

It has no console: what is wrong shows in the log. Assembled here from source, at the address where it is loaded.
"""

from __future__ import annotations

import struct

from keystone import KS_ARCH_ARM, KS_MODE_ARM, Ks

from emulator.isa.arm.system_registers import SYSTEM_REGISTERS
from emulator.isa.operation import Operation
from tests.bt.image.image_files import Part, make_elf

TEXT = 0x4008_0000
VECTORS = TEXT + 0x2000
ROUTINE = VECTORS + 0x80
"""In a page without room for ways to fixups: traps stand there."""
FIXED = VECTORS + 0x1000
"""The same in a page with room."""
LOG = TEXT + 0x4000
TABLE = TEXT + 0x8000
"""A first-level table that has the memory around in place, and once more at `ALIAS`."""
ALIAS = 0x1000_0000
"""Distance of the other place."""
_SECTION = 0x0000_0C0E
"""Normal memory, for all to write."""

IDENTITY = tuple(
    one for one in SYSTEM_REGISTERS if one.read_operation is Operation.IDENTIFY_PROCESSOR or one.name == "DBGOSDLR"
)


def _constant(register: int, value: int) -> str:
    return f"movw r{register}, #{value & 0xFFFF:#x}; movt r{register}, #{value >> 16:#x}"


STEPS: tuple[tuple[str, str], ...] = (
    ("cpsid", "cpsid i; mrs r0, cpsr"),
    ("cpsie", "cpsie i; mrs r0, cpsr; cpsid i"),
    ("msr", "mov r1, #0x53; msr cpsr_c, r1; mrs r0, cpsr; mov r1, #0xd3; msr cpsr_c, r1"),
    ("mode", "mov r1, #0xd7; msr cpsr_c, r1; mrs r0, cpsr; mov r1, #0xd3; msr cpsr_c, r1"),
    ("spsr", "mov r1, #0x1f; msr spsr_cxsf, r1; mrs r0, spsr"),
    ("flags", "mov r1, #0; cmp r1, #0; mrs r2, cpsr; moveq r0, #5; movne r0, #6"),
    ("registers", "mov r0, #0x11; mov r1, #0x22; mrs r4, cpsr; eor r0, r0, r1"),
    ("thread", "mov r1, #0x5100; mcr p15, 0, r1, c13, c0, 4; mrc p15, 0, r0, c13, c0, 4"),
    ("user thread", "mov r1, #0x5200; mcr p15, 0, r1, c13, c0, 2; mrc p15, 0, r0, c13, c0, 2"),
    ("dfar", "mov r1, #0x5300; mcr p15, 0, r1, c6, c0, 0; mrc p15, 0, r0, c6, c0, 0"),
    ("dacr", "mov r1, #0x5500; mcr p15, 0, r1, c3, c0, 0; mrc p15, 0, r0, c3, c0, 0"),
    ("vbar", "mrc p15, 0, r0, c12, c0, 0"),
    ("sctlr", "mrc p15, 0, r0, c1, c0, 0"),
    ("svc", "mov r7, #77; svc #5; mov r0, r6"),
    ("udf", ".word 0xe7f000f1; mov r0, r6"),
    ("fpsid", "mov r1, #0xf00000; mcr p15, 0, r1, c1, c0, 2; .word 0xeef00a10"),
    ("mvfr0", ".word 0xeef70a10"),
    ("mvfr1", ".word 0xeef60a10"),
    ("own text", "cpsid i; ldr r0, [pc, #-12]"),
    (
        "translated",
        f"{_constant(1, TABLE)}; mcr p15, 0, r1, c2, c0, 0; mov r1, #1; mcr p15, 0, r1, c3, c0, 0; "
        "mov r1, #0; mcr p15, 0, r1, c8, c7, 0; mrc p15, 0, r0, c1, c0, 0; orr r0, r0, #1; mcr p15, 0, r0, c1, c0, 0; "
        ".word 0xf57ff06f; mrc p15, 0, r0, c1, c0, 0",
    ),
    ("here", f"{_constant(1, ROUTINE)}; blx r1"),
    ("elsewhere", f"{_constant(1, ROUTINE + ALIAS)}; blx r1"),
    ("here again", f"{_constant(1, ROUTINE)}; blx r1"),
    ("fixed here", f"{_constant(1, FIXED)}; blx r1"),
    ("fixed elsewhere", f"{_constant(1, FIXED + ALIAS)}; blx r1"),
    ("fixed here again", f"{_constant(1, FIXED)}; blx r1"),
    ("own text, translated", f"{_constant(1, ROUTINE)}; ldr r0, [r1]; ldr r1, [r1, #8]; eor r0, r0, r1"),
    ("own text elsewhere", f"{_constant(1, ROUTINE + ALIAS)}; ldr r0, [r1]; ldr r1, [r1, #8]; eor r0, r0, r1"),
    *(
        (one.name, f"mrc p{one.coprocessor}, {one.opc1}, r0, c{one.crn}, c{one.crm}, {one.opc2}")
        for one in IDENTITY
        if one.crn >= 0
    ),
)
"""Name of what is done, and the code that leaves a word in R0."""


def tiny_arm() -> bytes:
    """The ELF. It ends by PSCI's SYSTEM_OFF; SVC and UDF leave the SPSR in R6 and are stepped over."""
    source = [f"movw r8, #{LOG & 0xFFFF:#x}", f"movt r8, #{LOG >> 16:#x}"]
    source += [f"movw r1, #{VECTORS & 0xFFFF:#x}", f"movt r1, #{VECTORS >> 16:#x}", "mcr p15, 0, r1, c12, c0, 0"]
    # With padding between steps, in which ways to the fixups find room.
    source += [
        f"{code}; str r0, [r8], #4; b over{number}; nop; nop; nop; nop; over{number}:"
        for number, (_name, code) in enumerate(STEPS)
    ]
    source += ["movw r0, #8", "movt r0, #0x8400", ".word 0xe1400070"]
    text = _assemble("\n".join(source), TEXT)
    assert len(text) < VECTORS - TEXT
    # LR is behind the instruction in both cases.
    handler = "nop; mrs r6, spsr; movs pc, lr"
    table = _assemble(f"b {VECTORS:#x}; b {VECTORS + 0x40:#x}; b {VECTORS + 0x40:#x}", VECTORS)
    vectors = table.ljust(0x40, b"\0") + _assemble(handler, VECTORS + 0x40)
    routine = "cpsie i; mrs r0, cpsr; cpsid i; add r0, r0, pc; bx lr"
    vectors = vectors.ljust(0x80, b"\0") + _assemble(routine, ROUTINE)
    room = routine + "; nop" * 16
    vectors = vectors.ljust(FIXED - VECTORS, b"\0") + _assemble(room, FIXED)
    code = text.ljust(VECTORS - TEXT, b"\0") + vectors
    first = bytearray(0x4000)
    for place in (TEXT, TEXT + ALIAS):
        struct.pack_into("<I", first, place >> 20 << 2, TEXT & 0xFFF0_0000 | _SECTION)
    parts = (
        Part(".text", code, TEXT, TEXT, 5),
        Part(".data", bytes(0x1000), LOG, LOG, 6),
        Part(".table", bytes(first), TABLE, TABLE, 6),
    )
    return make_elf(parts, TEXT, machine=40, bits=32)


def step(physical: int) -> str:
    """Which step wrote a word of the log."""
    return STEPS[(physical - LOG) // 4][0]


def _assemble(source: str, address: int) -> bytes:
    encoded, _count = Ks(KS_ARCH_ARM, KS_MODE_ARM).asm(source, address)
    return bytes(encoded)
