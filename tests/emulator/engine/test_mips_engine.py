"""What a MIPS32 engine promises: exact exceptions, delay slots, views, preemption, and that long blocks do no harm."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.mips import EXECUTE, READ, SUPERVISOR, USER, WRITE
from emulator.errors import GuestFault
from tests.emulator.engine.mips_guest import BASE, MipsGuest

NOP, BREAK, SYSCALL, MFC0 = 0, 0xD, 0xC, 0x4006_6000
ADDIU = 0x2484_0001
"""addiu a0, a0, 1"""


@pytest.fixture(params=["little", "big"])
def order(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[SUPERVISOR, USER], ids=["supervisor", "user"])
def guest(request: pytest.FixtureRequest, order: str) -> Iterator[MipsGuest]:
    made = MipsGuest(order, request.param)
    yield made
    made.engine.close()


@pytest.fixture
def native(order: str) -> Iterator[MipsGuest]:
    made = MipsGuest(order, 0)
    yield made
    made.engine.close()


def test_a_privileged_instruction_traps_with_pc_at_it(guest: MipsGuest) -> None:
    (seen,) = guest.run(ADDIU, MFC0)
    assert (seen.vector, seen.error, seen.pc) == (11, 0, BASE[guest.mode] + 0x1004)
    assert guest.registers.gpr[4] == 1


def test_an_exception_without_an_address_shows_none_of_an_earlier_one(guest: MipsGuest) -> None:
    guest.registers.gpr[5] = 0x0000_8001

    def handle(exit_: Exit) -> bool:
        if exit_.kind == ExitKind.MISS:
            return False
        guest.registers.advance()
        return exit_.vector != 9

    seen = guest.run(0x8CA6_0000, MFC0, SYSCALL, handle=handle)
    assert [(one.vector, one.address) for one in seen] == [(4, 0x8001), (11, 0), (8, 0), (9, 0)]


def test_a_system_call_is_reported_at_the_instruction(guest: MipsGuest) -> None:
    (seen,) = guest.run(ADDIU, SYSCALL)
    assert (seen.vector, seen.pc) == (8, BASE[guest.mode] + 0x1004)


def test_the_handler_goes_on_in_place(guest: MipsGuest) -> None:
    def handle(exit_: Exit) -> bool:
        if exit_.kind == ExitKind.MISS:
            return False
        guest.registers.advance()
        return exit_.vector != 9

    seen = guest.run(MFC0, ADDIU, MFC0, ADDIU, MFC0, handle=lambda e: handle(e) if e.kind != ExitKind.MISS else False)
    assert [one.vector for one in seen] == [11, 11, 11, 9]
    assert guest.registers.gpr[4] == 2


@pytest.mark.parametrize(
    ("branch", "register", "offset"),
    [
        (0x1000_0003, 0, 0x1010),  # b
        (0x1480_0003, 1, 0x1010),  # bnez a0, taken
        (0x1480_0003, 0, 0x1008),  # bnez a0, not taken
        (0x5480_0003, 1, 0x1010),  # bnezl a0, taken
        (0x0411_0003, 0, 0x1010),  # bal
    ],
)
def test_an_exception_in_a_delay_slot_knows_its_branch(
    guest: MipsGuest, branch: int, register: int, offset: int
) -> None:
    guest.registers.gpr[4] = register
    (seen,) = guest.run(branch, MFC0, BREAK, BREAK, ADDIU)
    base = BASE[guest.mode]
    assert (seen.pc, seen.slot) == (base + 0x1004, True)
    assert guest.registers.restart_address == base + 0x1000
    assert guest.registers.behind() == base + offset
    guest.registers.advance()
    assert (guest.registers.pc, guest.registers.in_delay_slot) == (base + offset, False)


def test_a_jump_through_a_register_is_finished_after_its_slot(guest: MipsGuest) -> None:
    guest.registers.gpr[5] = BASE[guest.mode] + 0x1100
    guest.run(0x00A0_0008, MFC0)
    assert guest.registers.behind() == BASE[guest.mode] + 0x1100


def test_a_miss_in_a_delay_slot_does_not_confuse_the_branch(guest: MipsGuest) -> None:
    guest.registers.gpr[5] = BASE[guest.mode] + 0x8000
    (seen,) = guest.run(0x1400_0003, 0xACA5_0000, ADDIU, BREAK, BREAK)
    assert seen.pc == BASE[guest.mode] + 0x100C
    assert guest.word(0x8000) == BASE[guest.mode] + 0x8000


def test_a_delay_slot_in_another_page_is_fetched_and_the_branch_taken(guest: MipsGuest) -> None:
    guest.put(0x2000, ADDIU, BREAK)
    guest.put(0x3000, BREAK)
    guest.put(0x1FFC, 0x1000_0400)
    (seen,) = guest.run(go=BASE[guest.mode] + 0x1FFC)
    assert (seen.pc, guest.registers.gpr[4]) == (BASE[guest.mode] + 0x3000, 1)


def test_a_refused_access_raises_with_the_exact_address(guest: MipsGuest) -> None:
    guest.registers.gpr[5] = 0x1000_0123 & ~3
    (seen,) = guest.run(ADDIU, 0x8CA6_0014)
    assert (seen.vector, seen.error, seen.address) == (2, 1, 0x1000_0134)
    assert seen.pc == BASE[guest.mode] + 0x1004
    (seen,) = guest.run(0xACA6_FFFC)
    assert (seen.vector, seen.address) == (3, 0x1000_011C)


def test_a_refused_fetch_raises_at_its_address(guest: MipsGuest) -> None:
    guest.registers.gpr[5] = 0x1000_0040
    (seen,) = guest.run(0x00A0_0008, NOP)
    assert (seen.vector, seen.address, seen.pc, seen.slot) == (2, 0x1000_0040, 0x1000_0040, False)


def test_an_unaligned_access_is_an_address_error(guest: MipsGuest) -> None:
    guest.registers.gpr[5] = BASE[guest.mode] + 0x8001
    (seen,) = guest.run(0x8CA6_0000)
    assert (seen.vector, seen.address) == (4, BASE[guest.mode] + 0x8001)


def test_rights_are_those_of_the_view(guest: MipsGuest) -> None:
    at = BASE[guest.mode] + 0x8000
    guest.engine.map_page(guest.mode, at, 0x8000, READ)
    guest.registers.gpr[5] = at
    asked: list[tuple[int, int]] = []

    def handle(exit_: Exit) -> bool:
        if exit_.kind == ExitKind.MISS and exit_.address == at:
            asked.append((exit_.address, exit_.error))
            exit_.refused, exit_.vector, exit_.error = True, 1, 0
            return True
        return False

    (seen,) = guest.run(0x8CA6_0000, 0xACA6_0000, handle=handle)
    assert asked == [(at, 1)]
    assert (seen.vector, seen.address) == (1, at)


def test_the_two_views_are_apart(order: str) -> None:
    guest = MipsGuest(order, SUPERVISOR)
    guest.put(0x8000, 1)
    guest.put(0x9000, 2)
    at = 0x0070_0000
    guest.engine.map_page(SUPERVISOR, at, 0x8000, READ)
    guest.engine.map_page(USER, at, 0x9000, READ)
    guest.registers.gpr[5] = at
    for mode, expected in ((SUPERVISOR, 1), (USER, 2), (SUPERVISOR, 1)):
        guest.mode = guest.registers.mode = mode
        guest.run(0x8CA6_0000)
        assert guest.registers.gpr[6] == expected
    guest.engine.close()


def test_a_page_taken_out_is_asked_for_again(guest: MipsGuest) -> None:
    at = BASE[guest.mode] + 0x8000
    guest.registers.gpr[5] = at

    def misses() -> int:
        return sum(one.kind == ExitKind.MISS and one.address == at for one in guest.exits)

    guest.run(0x8CA6_0000)
    guest.run(0x8CA6_0000)
    assert misses() == 1
    guest.engine.unmap_page(guest.mode, at)
    guest.run(0x8CA6_0000)
    assert misses() == 2
    guest.engine.clear_view(guest.mode, at, at + 0x1000)
    guest.run(0x8CA6_0000)
    assert misses() == 3


def test_changed_code_is_executed_after_frame_changed(guest: MipsGuest) -> None:
    guest.run(ADDIU)
    guest.put(0x1000, 0x2484_0010)
    guest.engine.frame_changed(0x1000, 4)
    guest.run(go=BASE[guest.mode] + 0x1000)
    assert guest.registers.gpr[4] == 0x11


def test_a_budget_stops_between_a_branch_and_nothing(guest: MipsGuest) -> None:
    loop = (ADDIU, 0x1000_FFFE, 0x24A5_0001)  # addiu a0; b .-4; addiu a1

    def handle(exit_: Exit) -> bool:
        if exit_.kind == ExitKind.BUDGET:
            stops.append((guest.registers.gpr[4], guest.registers.gpr[5]))
            guest.engine.set_deadline(guest.engine.progress + 7)
            return len(stops) < 20
        return False

    stops: list[tuple[int, int]] = []
    guest.engine.set_deadline(guest.engine.progress + 7)
    seen = guest.run(*loop, handle=lambda exit_: handle(exit_) if exit_.kind == ExitKind.BUDGET else False)
    assert len(stops) == 20
    assert not any(one.slot for one in seen)
    assert all(a == b for a, b in stops), stops
    assert len({b - a for (a, _), (b, _) in pairwise(stops)}) == 1


@pytest.mark.parametrize("mode", [0, 2], ids=["kernel", "user"])
@pytest.mark.parametrize("words", [400, 3000])
def test_a_long_run_without_a_branch_does_not_kill_the_process(words: int, mode: int) -> None:
    program = (
        "from tests.emulator.engine.mips_guest import MipsGuest\n"
        f"guest = MipsGuest('little', {mode})\nguest.run(*[0x24840001] * {words})\nprint(guest.registers.gpr[4])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"{words}\n")


def test_memory_that_is_all_zero_executes_to_its_end(guest: MipsGuest) -> None:
    guest.put(0x4000, BREAK)
    (seen,) = guest.run(go=BASE[guest.mode] + 0x2000)
    assert seen.pc == BASE[guest.mode] + 0x4000


def test_floating_point_traps_until_it_is_made_usable(guest: MipsGuest) -> None:
    guest.registers.set_coprocessor(False, False)
    (seen,) = guest.run(0x4484_1000)
    assert (seen.vector, seen.error) == (11, 1)
    guest.registers.set_coprocessor(True, False)
    guest.registers.gpr[4] = 0x3F80_0000
    guest.run(0x4484_1000)
    assert guest.registers.fpr[4] & 0xFFFF_FFFF == 0x3F80_0000


def test_an_exception_of_the_handler_ends_the_run_and_the_engine_can_go_on(guest: MipsGuest) -> None:
    class Oops(Exception):
        pass

    def handle(_exit: Exit) -> bool:
        raise Oops

    with pytest.raises(Oops):
        guest.run(ADDIU, handle=handle)
    guest.run(ADDIU)
    assert guest.registers.gpr[4] == 1


def test_a_miss_that_is_neither_mapped_nor_refused_is_an_error(guest: MipsGuest) -> None:
    with pytest.raises(GuestFault, match="neither mapped nor refused"):
        guest.run(ADDIU, handle=lambda _exit: True)


def test_device_memory_is_read_and_written(guest: MipsGuest) -> None:
    log: list[tuple[int, int, int]] = []

    def write(offset: int, size: int, value: int) -> None:
        log.append((offset, size, value))

    guest.engine.map_mmio(0x1000_0000, 0x1000, lambda offset, size: offset + size, write)
    guest.engine.map_page(guest.mode, 0x0F00_0000, 0x1000_0000, READ | WRITE)
    guest.registers.gpr[5], guest.registers.gpr[6] = 0x0F00_0000, 0x5A
    guest.run(0x8CA7_0010, 0xA0A6_0020)
    assert guest.registers.gpr[7] == 0x14
    assert log == [(0x20, 1, 0x5A)]


def test_load_linked_and_store_conditional_work_on_any_address(guest: MipsGuest) -> None:
    guest.registers.gpr[5], guest.registers.gpr[6] = BASE[guest.mode] + 0x8000, 7
    guest.run(0xC0A7_0000, 0xE0A6_0000)
    assert (guest.registers.gpr[6], guest.word(0x8000)) == (1, 7)


def test_kernel_mode_uses_the_processors_own_segments(native: MipsGuest) -> None:
    native.put(0x8000, 0x1234)
    native.registers.gpr[5] = 0xA000_8000
    native.run(0x8CA6_0000, 0x3C07_8000, 0x8CE8_7FFC)
    assert native.registers.gpr[6] == 0x1234


def test_kernel_mode_runs_privileged_instructions_itself(native: MipsGuest) -> None:
    (seen,) = native.run(0x4086_7000, 0x4007_7000)
    assert seen.vector == 9


def test_kernel_mode_translates_by_its_own_tlb(native: MipsGuest) -> None:
    registers = native.registers
    native.put(0x8000, 0xBEEF)
    registers.gpr[8], registers.gpr[9], registers.gpr[10] = 0x0040_0000, 0x8000 >> 6 | 7, 0x9000 >> 6 | 7
    setup = (0x4080_0000, 0x4088_5000, 0x4089_1000, 0x408A_1800, 0x4080_2800, 0x4200_0002)
    registers.gpr[5] = 0x0040_0000
    native.run(*setup, 0x8CA6_0000)
    assert registers.gpr[6] == 0xBEEF
    registers.gpr[5] = 0x0050_0010
    (seen,) = native.run(0x8CA6_0000)
    assert (seen.vector, seen.error, seen.address) == (2, 1, 0x0050_0010)


def test_waiting_after_a_tlb_exception_is_an_exit_as_ever(native: MipsGuest) -> None:
    native.registers.gpr[5] = 0x0050_0010

    def handle(exit_: Exit) -> bool:
        if exit_.kind != ExitKind.FAULT:
            return False
        native.registers.advance()
        return True

    seen = native.run(0x8CA6_0000, ADDIU, 0x4200_0020, handle=handle)
    assert [(one.kind, one.vector) for one in seen[:1]] == [(ExitKind.FAULT, 2)]
    assert (seen[-1].kind, seen[-1].pc) == (ExitKind.HALT, 0x8000_100C)


def test_waiting_in_kernel_mode_is_an_exit_behind_the_instruction(native: MipsGuest) -> None:
    (seen,) = native.run(0x4200_0020)
    assert (seen.kind, seen.pc) == (ExitKind.HALT, 0x8000_1004)


def test_progress_is_the_same_in_equal_runs(order: str) -> None:
    def run() -> list[object]:
        guest = MipsGuest(order, USER)
        guest.registers.gpr[6] = 1000
        guest.run(ADDIU, 0x24C6_FFFF, 0x14C0_FFFD, MFC0)
        guest.engine.close()
        return [(one.kind, one.pc, one.progress) for one in guest.exits]

    assert run() == run()


def test_code_that_cannot_be_read_executes(guest: MipsGuest) -> None:
    guest.rights = EXECUTE | WRITE
    at = BASE[guest.mode] + 0x1000
    guest.registers.gpr[5] = at
    asked: list[int] = []

    def handle(exit_: Exit) -> bool:
        if exit_.kind == ExitKind.MISS and exit_.error == 0:
            asked.append(exit_.address)
            guest.engine.unmap_page(guest.mode, at)
            guest.engine.map_page(guest.mode, at, 0x9000, READ)
            return True
        if exit_.kind == ExitKind.MISS and exit_.address == at:
            guest.engine.unmap_page(guest.mode, at)
        return False

    guest.put(0x9000, 0x77)
    guest.run(0x8CA6_0000, handle=handle)
    assert asked == [at]
    assert guest.registers.gpr[6] == 0x77
