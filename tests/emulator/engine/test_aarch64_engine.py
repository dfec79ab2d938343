"""What the AArch64 engine promises: exits with exact PC, levels, slices, translation, code that changes."""

from collections.abc import Callable, Iterator

import pytest

from emulator.engine.aarch64 import MAY_MASK, AArch64Engine
from emulator.engine.engines import AARCH64_ENGINES
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.aarch64 import encoding as e
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.aarch64.room import BASE, CODE, DATA, KERNEL_DATA, LAND, MAIR, READ_ONLY, ROOT, SCTLR, TCR, UNMAPPED
from tests.emulator.engine.aarch64_guest import Guest

ADD_1 = 0x9100_0400  # add x0, x0, #1
LOAD, STORE = 0xF940_0020, 0xF900_0020  # ldr/str x0, [x1]
BACK = 0x17FF_FFFF  # b .-4


def brk(number: int) -> int:
    return e.BRK | number << 5


@pytest.fixture(params=list(AARCH64_ENGINES))
def engine(request: pytest.FixtureRequest) -> Iterator[AArch64Engine]:
    opened = AARCH64_ENGINES[request.param]()
    yield opened
    opened.close()


def once(_exit: Exit) -> bool:
    return True


@pytest.mark.parametrize("level", [0, 1])
def test_an_undefined_instruction_exits_with_pc_at_it(engine: AArch64Engine, level: int) -> None:
    [seen] = Guest(engine, [e.NOP, e.NOP, 0], level).run(once)
    assert (seen.kind, seen.vector, seen.at) == (ExitKind.FAULT, x.UNKNOWN, 8)


@pytest.mark.parametrize("level", [0, 1])
def test_svc_exits_with_pc_behind_it_and_its_number(engine: AArch64Engine, level: int) -> None:
    [seen] = Guest(engine, [e.NOP, e.SVC | 0x123 << 5], level).run(once)
    assert (seen.vector, seen.error & 0xFFFF, seen.at) == (x.SVC, 0x123, 8)


@pytest.mark.parametrize(
    ("word", "address", "level", "status"),
    [
        (LOAD, UNMAPPED, 0, 0x9200_0006),
        (STORE, UNMAPPED, 0, 0x9200_0046),
        (LOAD, KERNEL_DATA, 0, 0x9200_000F),
        (STORE, READ_ONLY + 8, 0, 0x9200_004F),
        (STORE, READ_ONLY + 8, 1, 0x9600_004F),
        (LOAD, 0xFFFF_0000_0000_0000, 1, 0x9600_0004),
    ],
)
def test_a_data_abort_says_address_access_and_level_of_the_walk(
    engine: AArch64Engine, word: int, address: int, level: int, status: int
) -> None:
    guest = Guest(engine, [e.NOP, word], level)
    engine.registers.gpr[1] = address
    [seen] = guest.run(once)
    assert (seen.error, seen.address, seen.at) == (status, address, 4)


@pytest.mark.parametrize(("level", "status"), [(0, 0x8200_000F), (1, 0x8600_000F)])
def test_a_fetch_from_a_page_that_is_not_executable_exits_at_its_first_instruction(
    engine: AArch64Engine, level: int, status: int
) -> None:
    guest = Guest(engine, [0xD61F_0020], level)  # br x1
    engine.registers.gpr[1] = DATA
    [seen] = guest.run(once)
    assert (seen.error, seen.address, seen.at + CODE) == (status, DATA, DATA)


def test_straight_line_code_runs_to_the_end_of_its_page_before_the_next_page_faults(engine: AArch64Engine) -> None:
    guest = Guest(engine, [], 0)
    guest.write(CODE + 0xFF8, ADD_1)
    guest.write(CODE + 0xFFC, ADD_1)
    engine.registers.pc = CODE + 0xFF8
    [seen] = guest.run(once)
    assert (seen.vector, seen.at, engine.registers.gpr[0]) == (x.FETCH_LOWER, 0x1000, 2)


def test_the_handler_resumes_where_it_says(engine: AArch64Engine) -> None:
    guest = Guest(engine, [0, ADD_1, 0, ADD_1, brk(1)], 0)

    def handler(exit_: Exit) -> bool:
        engine.registers.advance()
        return exit_.vector == x.BREAKPOINT

    assert [seen.at for seen in guest.run(handler)] == [0, 8, 16]
    assert engine.registers.gpr[0] == 2


def test_the_level_set_in_the_handler_is_the_one_that_runs_on(engine: AArch64Engine) -> None:
    read = e.mrs(BY_NAME["CurrentEL"].encoding)
    guest = Guest(engine, [read, read, read, brk(1)], 0)
    levels = []

    def handler(exit_: Exit) -> bool:
        levels.append(engine.registers.level)
        if exit_.vector == x.UNKNOWN:
            engine.registers.level = 1
            return False
        return True

    assert [seen.at for seen in guest.run(handler)] == [0, 12]
    assert levels == [0, 1]
    assert engine.registers.gpr[0] == 4


def test_the_flags_written_are_the_flags_used(engine: AArch64Engine) -> None:
    guest = Guest(engine, [0x9A9F_17E0, 0x9A9F_57E1, 0x9A9F_37E2, 0x9A9F_77E3, brk(1)], 0)  # cset eq, mi, cs, vs
    for flags in range(16):
        engine.registers.nzcv = flags << 28
        engine.registers.pc = CODE
        guest.run(once)
        zero, negative, carry, overflow = (engine.registers.gpr[number] for number in range(4))
        assert negative << 3 | zero << 2 | carry << 1 | overflow == flags
        assert engine.registers.nzcv == flags << 28


def test_a_budget_ends_an_endless_loop_at_an_instruction_and_exactly_there_again(engine: AArch64Engine) -> None:
    counts = []
    guest = Guest(engine, [ADD_1, BACK], 0)
    for _ in range(2):
        engine.registers.gpr[0], engine.registers.pc = 0, CODE
        engine.set_deadline(engine.progress + 1000)
        seen = guest.run(once)[-1]
        assert seen.kind is ExitKind.BUDGET
        counts.append((engine.registers.gpr[0], seen.at))
    assert counts[0] == counts[1]
    assert 990 <= counts[0][0] <= 1000


def test_a_loop_cut_into_slices_does_what_it_does_in_one(engine: AArch64Engine) -> None:
    words = [0xF100_0400, 0x9B00_0462, 0xAA02_03E1, 0x54FF_FFA1, brk(1)]  # subs x0; madd x2,x3,x0,x1; mov x1,x2; b.ne
    results = set()
    guest = Guest(engine, words, 0)
    state = engine.registers
    for width in (2, 3, 7, 100_000):
        state.gpr[0], state.gpr[1], state.gpr[3], state.pc = 100, 0, 7, CODE

        def handler(exit_: Exit, width: int = width) -> bool:
            engine.set_deadline(engine.progress + width)
            return exit_.kind is ExitKind.FAULT

        engine.set_deadline(engine.progress + width)
        guest.run(handler)
        results.add((state.gpr[1], state.gpr[2], state.nzcv, guest.exits[-1].at))
    assert len(results) == 1


def test_an_exception_of_the_handler_ends_the_run_and_the_engine_runs_again(engine: AArch64Engine) -> None:
    guest = Guest(engine, [0, brk(1)], 0)

    def broken(_exit: Exit) -> bool:
        raise KeyError("handler")

    with pytest.raises(KeyError, match="handler"):
        guest.run(broken)
    engine.registers.advance()
    assert guest.run(once)[-1].vector == x.BREAKPOINT


@pytest.mark.parametrize("forget", [lambda engine: engine.flush_tlb(), lambda engine: engine.forget_page(DATA + 0x123)])
def test_a_changed_entry_is_used_once_all_or_its_page_was_forgotten(
    forget: Callable[[AArch64Engine], None], engine: AArch64Engine
) -> None:
    guest = Guest(engine, [LOAD, 0, LOAD, brk(1)], 0)
    engine.registers.gpr[1] = DATA
    guest.memory[DATA - BASE] = 1
    guest.memory[READ_ONLY - BASE] = 2
    entry = (ROOT + 0x2000 - BASE) + (DATA >> 12 & 511) * 8
    loaded = []

    def handler(exit_: Exit) -> bool:
        loaded.append(engine.registers.gpr[0])
        if exit_.vector == x.BREAKPOINT:
            return True
        old = int.from_bytes(guest.memory[entry : entry + 8], "little")
        guest.memory[entry : entry + 8] = (old - DATA + READ_ONLY).to_bytes(8, "little")
        forget(engine)
        engine.registers.advance()
        return False

    guest.run(handler)
    assert loaded == [1, 2]


def test_code_at_a_page_that_was_forgotten_is_fetched_anew(engine: AArch64Engine) -> None:
    branch_back = 0xD61F_0060  # br x3
    guest = Guest(engine, [0, 0xD61F_0040], 0)  # udf; br x2
    engine.trust_mappings()
    for place, number in ((READ_ONLY, 1), (DATA, 2)):
        guest.write(place, 0xD280_0000 | number << 5)  # mov x0, #number
        guest.write(place + 4, branch_back)
    entry = ROOT + 0x2000 - BASE + (READ_ONLY >> 12 & 511) * 8
    executable = DATA & ~0xFFF | int.from_bytes(guest.memory[entry : entry + 8], "little") & 0xFFF
    guest.memory[entry : entry + 8] = (READ_ONLY | executable & 0xFFF).to_bytes(8, "little")
    engine.flush_tlb()
    engine.registers.gpr[2], engine.registers.gpr[3] = READ_ONLY, CODE
    found = []

    def handler(_exit: Exit) -> bool:
        found.append(engine.registers.gpr[0])
        if len(found) == 2:
            guest.memory[entry : entry + 8] = executable.to_bytes(8, "little")
            engine.forget_page(READ_ONLY)
        engine.registers.advance()
        return len(found) == 3

    guest.run(handler)
    assert found == [0, 1, 2]


def test_another_root_is_another_address_space(engine: AArch64Engine) -> None:
    guest = Guest(engine, [LOAD, brk(1)], 0)
    engine.registers.gpr[1] = DATA
    engine.set_roots(BASE + 0x9000, 0)
    guest.run(once)
    assert (guest.exits[-1].vector, guest.exits[-1].error & 0x3F) == (x.FETCH_LOWER, 0x05)


def test_code_that_the_host_changed_is_executed(engine: AArch64Engine) -> None:
    guest = Guest(engine, [ADD_1, 0, 0x17FF_FFFE], 0)  # b back

    def handler(_exit: Exit) -> bool:
        if len(guest.exits) == 1:
            guest.write(CODE, brk(7))
            engine.code_changed(CODE, 4)
        engine.registers.advance()
        return len(guest.exits) == 2

    guest.run(handler)
    assert (guest.exits[-1].vector, guest.exits[-1].at) == (x.BREAKPOINT, 0)


def test_a_page_that_is_execute_only_runs_and_does_not_read(engine: AArch64Engine) -> None:
    assert engine.capabilities.execute_only
    guest = Guest(engine, [LOAD, brk(1)], 0)
    entry = (ROOT + 0x2000 - BASE) + (CODE >> 12 & 511) * 8
    old = int.from_bytes(guest.memory[entry : entry + 8], "little")
    guest.memory[entry : entry + 8] = (old & ~(3 << 6)).to_bytes(8, "little")
    engine.flush_tlb()
    engine.registers.gpr[1] = CODE
    [seen] = guest.run(once)
    assert (seen.error, seen.address) == (0x9200_000F, CODE)


def test_interrupt_masks_change_without_an_exit_only_while_they_may(engine: AArch64Engine) -> None:
    guest = Guest(engine, [0xD503_42FF, 0xD53B_4220, 0xD503_42DF, brk(1)], 0)  # daifclr #2; mrs x0, daif; daifset #2
    engine.allow_user(MAY_MASK)
    assert guest.run(once)[-1].vector == x.BREAKPOINT
    assert (engine.registers.gpr[0], engine.registers.daif) == (0x340, 0x3C0)
    engine.allow_user(0)
    engine.registers.pc = CODE
    assert guest.run(once)[-1].at == 0


def test_an_exclusive_store_fails_once_the_monitor_was_cleared(engine: AArch64Engine) -> None:
    words = [0xC85F_7C41, 0, 0xC803_7C41, brk(1)]  # ldxr x1, [x2]; udf; stxr w3, x1, [x2]
    guest = Guest(engine, words, 0)
    engine.registers.gpr[2] = DATA

    def handler(exit_: Exit) -> bool:
        engine.registers.clear_exclusive()
        engine.registers.advance()
        return exit_.vector == x.BREAKPOINT

    guest.run(handler)
    assert engine.registers.gpr[3] == 1


def test_an_exclusive_store_succeeds_when_an_exit_left_the_monitor_alone(engine: AArch64Engine) -> None:
    guest = Guest(engine, [0xC85F_7C41, 0, 0xC803_7C41, brk(1)], 0)
    engine.registers.gpr[2] = DATA

    def handler(exit_: Exit) -> bool:
        engine.registers.advance()
        return exit_.vector == x.BREAKPOINT

    guest.run(handler)
    assert engine.registers.gpr[3] == 0


def test_eret_at_el1_enters_el0_with_its_stack_pointer(engine: AArch64Engine) -> None:
    guest = Guest(engine, [e.ERET], 1)
    engine.registers.set_system(BY_NAME["SP_EL0"].encoding, 0x1230)
    engine.registers.set_system(BY_NAME["ELR_EL1"].encoding, LAND)
    engine.registers.set_system(BY_NAME["SPSR_EL1"].encoding, 0x6000_0000)
    [seen] = guest.run(once)
    state = engine.registers
    assert (seen.vector, seen.at + CODE, state.level, state.gpr[31], state.nzcv) == (
        x.BREAKPOINT,
        LAND,
        0,
        0x1230,
        0x6000_0000,
    )


def test_wfi_waits_at_el1_and_traps_at_el0(engine: AArch64Engine) -> None:
    guest = Guest(engine, [e.WFI, e.NOP], 1)
    [seen] = guest.run(once)
    assert (seen.kind, seen.at) == (ExitKind.HALT, 4)
    engine.registers.level, engine.registers.pc = 0, CODE
    seen = guest.run(once)[-1]
    assert (seen.vector, seen.at) == (x.WAITING, 0)


def test_a_device_is_asked_and_told(engine: AArch64Engine) -> None:
    guest = Guest(engine, [0xB940_0020, 0xB900_0020, brk(1)], 1)  # ldr w0, [x1]; str w0, [x1]
    told = []
    engine.map_mmio(UNMAPPED, 4096, lambda offset, size: offset << 8 | size, lambda *what: told.append(what))
    entry = (ROOT + 0x1000 - BASE) + (UNMAPPED >> 21 & 511) * 8
    guest.memory[entry : entry + 8] = (UNMAPPED | 0x701).to_bytes(8, "little")
    engine.flush_tlb()
    engine.registers.gpr[1] = UNMAPPED + 0x10
    guest.run(once)
    assert told == [(0x10, 4, 0x1004)]


def test_a_fetch_from_where_nothing_is_exits_as_unbacked(engine: AArch64Engine) -> None:
    guest = Guest(engine, [0xD61F_0020], 1)
    entry = (ROOT + 0x1000 - BASE) + (UNMAPPED >> 21 & 511) * 8
    guest.memory[entry : entry + 8] = (UNMAPPED | 0x701).to_bytes(8, "little")
    engine.flush_tlb()
    engine.registers.gpr[1] = UNMAPPED
    [seen] = guest.run(once)
    assert (seen.kind, seen.address) == (ExitKind.UNBACKED, UNMAPPED)


def test_vector_registers_and_their_controls_are_those_that_code_uses(engine: AArch64Engine) -> None:
    # dup v0.2d, x1; fmov d2, x0; mrs x3, fpcr
    guest = Guest(engine, [0x4E08_0C20, 0x9E67_0002, 0xD53B_4403, brk(1)], 0)
    state = engine.registers
    state.gpr[0], state.gpr[1] = 0x1234, 0x1111_2222_3333_4444
    state.fpcr = 0x0140_0000
    guest.run(once)
    assert state.vector(0) == 0x1111_2222_3333_4444_1111_2222_3333_4444
    assert (state.vector(2), state.gpr[3]) == (0x1234, 0x0140_0000)
    state.set_vector(31, 1 << 127)
    assert state.vector(31) == 1 << 127


def test_control_registers_keep_what_set_control_loads(engine: AArch64Engine) -> None:
    guest = Guest(engine, [brk(1)], 0)
    engine.set_control(SCTLR | 1 << 14, TCR, MAIR)
    assert engine.registers.system(BY_NAME["SCTLR_EL1"].encoding) == SCTLR | 1 << 14
    assert engine.registers.system(BY_NAME["TCR_EL1"].encoding) == TCR
    assert guest.run(once)[-1].vector == x.BREAKPOINT


def test_one_instruction_runs_at_a_time_while_stepping(engine: AArch64Engine) -> None:
    guest = Guest(engine, [ADD_1, ADD_1, 0x1400_0002, 0, ADD_1, brk(1)], 0)
    engine.registers.stepping = True

    def handler(exit_: Exit) -> bool:
        engine.registers.stepping = exit_.vector == x.STEP_LOWER and len(guest.exits) < 3
        return exit_.vector == x.BREAKPOINT

    seen = guest.run(handler)
    assert [(one.vector, one.at) for one in seen] == [
        (x.STEP_LOWER, 4),
        (x.STEP_LOWER, 8),
        (x.STEP_LOWER, 16),
        (x.BREAKPOINT, 20),
    ]
    assert engine.registers.gpr[0] == 3


def test_each_view_keeps_what_is_cached_of_it(engine: AArch64Engine) -> None:
    guest = Guest(engine, [LOAD, 0, LOAD, 0, LOAD, brk(1)], 0)
    engine.registers.gpr[1] = DATA
    guest.memory[DATA - BASE], guest.memory[READ_ONLY - BASE] = 1, 2
    table = BASE + 0x9000  # as ROOT's last table, with DATA elsewhere
    other = [BASE + 0xA000, BASE + 0xB000]
    words = guest.memory.cast("Q")
    words[table - BASE >> 3 : (table - BASE >> 3) + 512] = words[
        ROOT + 0x2000 - BASE >> 3 : (ROOT + 0x3000 - BASE >> 3)
    ]
    words[(table - BASE >> 3) + (DATA >> 12 & 511)] += READ_ONLY - DATA
    words[(other[0] - BASE >> 3) + (BASE >> 30)] = other[1] | 3
    words[(other[1] - BASE >> 3) + (BASE >> 21 & 511)] = table | 3
    loaded = []

    def handler(exit_: Exit) -> bool:
        loaded.append(engine.registers.gpr[0])
        engine.registers.advance()
        view = len(guest.exits) & 1
        engine.set_roots(other[0] if view else ROOT, 0, view)
        return exit_.vector == x.BREAKPOINT

    guest.run(handler)
    assert loaded == [1, 2, 1]
