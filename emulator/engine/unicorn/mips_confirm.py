"""Start-up experiments that confirm what the MIPS engine relies upon.

Room: `emulator/engine/unicorn`. Code is run in views of translations, and what the state then shows is compared with
what the architecture says of it; otherwise the engine refuses to open. The registers are left as after a reset.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.mips import EXECUTE, READ, REFILL, SUPERVISOR, USER, WRITE
from emulator.engine.unicorn.mips_confirm_state import confirm_coprocessor, confirm_values
from emulator.errors import EngineMissing, GuestFault

if TYPE_CHECKING:
    from emulator.engine.unicorn.mips import UnicornMipsEngine

_PHYSICAL, _LOW = 0x7FFF_0000, 0x1000
_AT, _DATA = 0x0040_0000, 0x0050_0000
_CODE = (
    0x3C04_1234,  # 00 lui   a0, 0x1234
    0x0080_0011,  # 04 mthi  a0
    0x0080_0013,  # 08 mtlo  a0
    0x3C05_0050,  # 0c lui   a1, 0x50
    0x0000_000C,  # 10 syscall
    0x1000_0005,  # 14 b     2c
    0x0000_000D,  # 18 break, in the delay slot
    0x0000_000D,  # 1c
    0x0000_000D,  # 20
    0x0000_000D,  # 24
    0x0000_000D,  # 28
    0x8CA6_0124,  # 2c lw    a2, 0x124(a1)   refused, then not
    0x4006_6000,  # 30 mfc0  a2, Status
    0x4484_1000,  # 34 mtc1  a0, f2
    0x1400_0003,  # 38 bnez  zero, 48
    0xACA4_0128,  # 3c sw    a0, 0x128(a1)   a miss in the delay slot of a branch not taken
    0x8CA6_0129,  # 40 lw    a2, 0x129(a1)
    0x7C03_E83B,  # 44 rdhwr v1, UserLocal
    0x4600_0004,  # 48 sqrt.s f0, f0
    0x0000_000D,  # 4c break
)


def confirm(engine: UnicornMipsEngine) -> None:
    """Run the experiment in both views; raises `EngineMissing` naming what is not as it should be."""
    memory = memoryview(mmap.mmap(-1, 2 * 4096))
    engine.map_memory(_PHYSICAL, memory)
    for index, word in enumerate(_CODE):
        memory[4 * index : 4 * index + 4] = word.to_bytes(4, engine.order)
    engine.use_views(True)
    for view in (SUPERVISOR, USER):
        seen = _run(engine, view)
        if seen != _EXPECTED:
            first = next((pair for pair in zip(seen, _EXPECTED, strict=False) if pair[0] != pair[1]), (seen, _EXPECTED))
            raise EngineMissing(
                f"the unicorn engine runs MIPS otherwise than retrap knows (expected {first[1]}, found {first[0]}): "
                "install unicorn==2.1.4"
            )
        memory[4096:] = bytes(4096)
    for view in (SUPERVISOR, USER):
        engine.clear_view(view)
    confirm_values(engine, memory, _PHYSICAL)
    engine.use_views(False)
    engine.map_memory(_LOW, memory[:4096])
    engine.flush_code()
    try:
        confirm_coprocessor(engine, memory)
    finally:
        engine.unmap_memory(_LOW, memory[:4096])
    _reset(engine, memory)


_EXPECTED: list[tuple[object, ...]] = [
    ("miss", 0x40_0000, 2),
    (8, 0x10, 0x1234_0000, 0x1234_0000, False),
    (9, 0x18, True, 0x14, 0x2C),
    ("miss", 0x50_0000, 0),
    (2, 0x2C, 0x50_0124, REFILL),
    (11, 0x30, 0),
    (11, 0x34, 1),
    ("miss", 0x50_0000, 1),
    (4, 0x40, 0x50_0129, 0),
    (10, 0x44),
    (9, 0x4C, 0x55, 0x1234_0000, 0x1234_0000),
]


def _run(engine: UnicornMipsEngine, view: int) -> list[tuple[object, ...]]:
    """What the code did: its exits, in `_EXPECTED`'s form."""
    registers, seen = engine.registers, list[tuple[object, ...]]()
    for number in range(32):
        registers.gpr[number] = 0
    registers.mode = view
    registers.set_coprocessor(False, False)
    registers.set_user_local_readable(False)
    registers.user_local = 0x55
    registers.jump(_AT)
    refuse = [True]

    def missed(exit_: Exit) -> None:
        seen.append(("miss", exit_.address, exit_.error))
        if exit_.error == 2:
            engine.map_page(view, _AT, _PHYSICAL, READ | EXECUTE)
        elif exit_.error == 0 and refuse.pop():
            exit_.refused, exit_.vector, exit_.error = True, 2, REFILL
        else:
            engine.map_page(view, _DATA, _PHYSICAL + 4096, READ | WRITE)

    def fault(exit_: Exit) -> None:
        offset, code = registers.pc - _AT, exit_.vector
        if code == 8:
            seen.append((8, offset, registers.hi, registers.lo, registers.in_delay_slot))
        elif code == 9 and offset == 0x18:
            seen.append((9, offset, registers.in_delay_slot, registers.restart_address - _AT, registers.behind() - _AT))
        elif code in (2, 4):
            seen.append((code, offset, exit_.address, exit_.error))
        elif code == 11:
            seen.append((code, offset, exit_.error))
            if exit_.error == 1:
                registers.set_coprocessor(True, False)
                return
        elif code == 10:
            seen.append((code, offset))
            registers.set_user_local_readable(True)
            return
        else:
            stored = int.from_bytes(engine.frame_at(_PHYSICAL + 4096)[0x128:0x12C], engine.order)
            seen.append((code, offset, registers.gpr[3], registers.fpr[4] & 0xFFFF_FFFF, stored))
            engine.stop()
        registers.advance()

    def handler(exit_: Exit) -> None:
        if len(seen) > 2 * len(_EXPECTED) or exit_.kind not in (ExitKind.MISS, ExitKind.FAULT):
            engine.stop()
        elif exit_.kind == ExitKind.MISS:
            missed(exit_)
        else:
            fault(exit_)

    try:
        engine.run(handler)
    except GuestFault as lost:
        seen.append((str(lost),))
    return seen


def _reset(engine: UnicornMipsEngine, memory: memoryview) -> None:
    """As after a reset, with nothing of the experiment left."""
    registers = engine.registers
    for view in (SUPERVISOR, USER):
        engine.clear_view(view)
    engine.flush_code()
    engine.unmap_memory(_PHYSICAL, memory)
    for number in range(32):
        registers.gpr[number] = 0
        registers.fpr[2 * number] = 0
    registers.hi = registers.lo = registers.user_local = 0
    registers.set_user_local_readable(False)
    registers.break_link()
    engine.use_views(False)
    registers.set_cp0("EBase", 0x8000_0000)  # Unicorn numbers its CPU 3FFH
    registers.set_cp0("Status", 0x0040_0004)
    registers.jump(0xBFC0_0000)
