"""Start-up experiments on what the MIPS engine reads in place: floating point, the link, branches, coprocessor 0.

Room: `emulator/engine/unicorn`. Beside `mips_confirm.py`, whose experiment is of exits: here the values themselves are
written by one way (an instruction, or in place) and read by the other. Registers are given back as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.mips import EXECUTE, READ, USER, WRITE
from emulator.engine.unicorn import mips_state as state
from emulator.errors import EngineMissing
from emulator.isa.mips.registers import BY_NAME

if TYPE_CHECKING:
    from emulator.engine.unicorn.mips import UnicornMipsEngine

_AT, _DATA, _WORD = 0x0040_0000, 0x0050_0000, 0x1234_5678
_A0, _A1 = 4, 5
_BREAK, _TLBL = 9, 2
_TO_ZERO_FLUSHED, _UP, _DOWN, _FLUSHED = 0x0100_0001, 2, 3, 1 << 24
_ONE_AND_A_HALF, _HALF, _SMALLEST, _SUBNORMAL = 0x3FC0_0000, 0x3F00_0000, 0x0080_0000, 0x0040_0000
_CONVERT, _MULTIPLY, _RESULT, _STOP = 0x4600_00A4, 0x4606_2082, 0x4402_1000, 0x0000_000D
_LL, _SC = 0xC0A2_0000, 0xE0A3_0000
_CODE: Final = (
    0x44C4_F800, _STOP,  # 00 ctc1 a0, fcsr
    _CONVERT, _RESULT, _STOP,  # 08 cvt.w.s f2, f0; mfc1 v0, f2
    _CONVERT, _RESULT, _STOP,  # 14 the same
    _MULTIPLY, _RESULT, _STOP,  # 20 mul.s f2, f4, f6; mfc1 v0, f2
    _MULTIPLY, _RESULT, _STOP,  # 2c the same
    _LL, _STOP, _SC, _STOP,  # 38 ll v0, 0(a1); sc v1, 0(a1)
    _LL, _STOP, _SC, _STOP,  # 48 the same
    0x1480_0002, _STOP, _STOP,  # 58 bnez a0, 64, and in its delay slot
    0x1080_0002, _STOP, _STOP,  # 64 beqz a0, 70, and in its delay slot
)  # fmt: skip
_COPROCESSOR: Final = tuple(sorted(set(state.CP0) & set(BY_NAME)))
"""Registers that MFC0 reads as they lie there."""
_KERNEL_CODE, _STATUS, _NOWHERE = 0x8000_1000, 0x0040_5500, 0x0070_0124
_MFC0, _LW_FROM_T9, _WAIT, _T9 = 0x4000_0000, 0x8F3A_0000, 0x4200_0020, 25


def confirm_values(engine: UnicornMipsEngine, memory: memoryview, physical: int) -> None:
    """`memory` has two pages at `physical`, which no view maps. Raises `EngineMissing` naming the first value that is
    not where it should be."""
    for index, word in enumerate(_CODE):
        memory[4 * index : 4 * index + 4] = word.to_bytes(4, engine.order)
    memory[4096:4100] = _WORD.to_bytes(4, engine.order)
    engine.flush_code()
    engine.map_page(USER, _AT, physical, READ | EXECUTE)
    engine.map_page(USER, _DATA, physical + 4096, READ | WRITE)
    _run_user(engine)
    engine.clear_view(USER)


def _refuse(what: str, expected: object, found: object) -> EngineMissing:
    return EngineMissing(
        f"the unicorn engine keeps {what} of its MIPS processor elsewhere than retrap knows (expected {expected}, "
        f"found {found}): install unicorn==2.1.4"
    )


def _steps(engine: UnicornMipsEngine) -> tuple[tuple[str, object, Callable[[], object], Callable[[], None]], ...]:
    """For every stop: what it shows, what that must be, how it is read, and what is done before the guest goes on."""
    registers = engine.registers
    gpr = registers.gpr

    def result() -> int:
        return gpr[2]

    def stored() -> int:
        return gpr[3]

    def load(value: int) -> Callable[[], None]:
        return lambda: registers.load_fcsr(value)

    def nothing() -> None:
        return

    def behind() -> tuple[bool, int]:
        return registers.in_delay_slot, registers.behind() - _AT

    return (
        ("FCSR", _TO_ZERO_FLUSHED, lambda: registers.fcsr & 0x0100_0003, load(_UP)),
        ("the rounding mode", 2, result, load(_DOWN)),
        ("the rounding mode", 1, result, load(_FLUSHED)),
        ("the flushing of subnormal numbers", 0, result, load(0)),
        ("the flushing of subnormal numbers", _SUBNORMAL, result, nothing),
        ("the link", (0, _WORD), lambda: (registers.monitor[0] & 3, registers.monitor[1]), nothing),
        ("the link", 1, stored, nothing),
        ("the link", 0, lambda: registers.monitor[0] & 3, registers.break_link),
        ("the link", 0, stored, nothing),
        ("the target of a branch", (True, 0x64), behind, nothing),
        ("the condition of a branch", (True, 0x6C), behind, nothing),
    )


def _run_user(engine: UnicornMipsEngine) -> None:
    registers = engine.registers
    steps = iter(_steps(engine))
    wrong: list[EngineMissing] = []
    before = registers.fcsr
    registers.mode = USER
    registers.set_coprocessor(True, False)
    registers.gpr[_A0], registers.gpr[_A1] = _TO_ZERO_FLUSHED, _DATA
    registers.fpr[0], registers.fpr[8], registers.fpr[12] = _ONE_AND_A_HALF, _SMALLEST, _HALF
    registers.jump(_AT)

    def handler(exit_: Exit) -> None:
        step = next(steps, None)
        if step is None or exit_.kind != ExitKind.FAULT or exit_.vector != _BREAK:
            if step is not None:
                wrong.append(_refuse(step[0], f"exception {_BREAK}", f"exit {exit_.kind}, {exit_.vector}"))
            engine.stop()
            return
        what, expected, read, do = step
        found = read()
        if found != expected:
            wrong.append(_refuse(what, expected, found))
            engine.stop()
            return
        do()
        registers.advance()

    engine.run(handler)
    registers.load_fcsr(before)
    registers.set_coprocessor(False, False)
    if wrong:
        raise wrong[0]


def confirm_coprocessor(engine: UnicornMipsEngine, memory: memoryview) -> None:
    """Registers of coprocessor 0, which are written in place and read by MFC0 at full privilege; then a miss of the
    processor's own TLB, and WAIT. `memory` is a page at physical 1000H. Raises `EngineMissing`."""
    registers = engine.registers
    names = list(_COPROCESSOR)
    moves = [
        _MFC0 | number << 16 | BY_NAME[name].number << 11 | BY_NAME[name].select for number, name in enumerate(names, 1)
    ]
    for index, word in enumerate((*moves, _LW_FROM_T9, _WAIT)):
        memory[4 * index : 4 * index + 4] = word.to_bytes(4, engine.order)
    before = {name: registers.cp0(name) for name in state.CP0}
    expected = {name: 0x108 + 8 * number for number, name in enumerate(names)}
    expected["Status"] = _STATUS
    for name, value in expected.items():
        registers.set_cp0(name, value)
    registers.gpr[_T9] = _NOWHERE
    registers.jump(_KERNEL_CODE)
    seen: list[tuple[int, int]] = []

    def handler(exit_: Exit) -> None:
        seen.append((int(exit_.kind), exit_.vector if exit_.kind == ExitKind.FAULT else 0))
        if len(seen) > 1 or seen[0] != (int(ExitKind.FAULT), _TLBL):
            engine.stop()
            return
        registers.advance()

    engine.run(handler)
    found = {name: registers.gpr[number] for number, name in enumerate(names, 1)}
    address = registers.cp0("BadVAddr")
    for name, value in before.items():
        registers.set_cp0(name, value)
    for name in names:
        if found[name] != expected[name]:
            raise _refuse(name, hex(expected[name]), hex(found[name]))
    if seen != [(int(ExitKind.FAULT), _TLBL), (int(ExitKind.HALT), 0)]:
        raise _refuse("the error of a run", f"exception {_TLBL} and WAIT", seen)
    if address != _NOWHERE:
        raise _refuse("BadVAddr", hex(_NOWHERE), hex(address))
