"""Level 3 to level 3 without an exit: user code and a kernel in page tables of its own, by the engine's own code."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.kvm import room
from emulator.engine.kvm.probe import OTHER_ROOT, ROOT, Bench, findings_of_host, lay_kernel
from emulator.errors import EngineMissing
from emulator.isa.x86 import registers as r

pytestmark = pytest.mark.kvm
CODE, COUNT, SAVED = 0x1000, 0x3000, 0x2000
SYSCALL, UD2 = "0f05", "0f0b"


@pytest.fixture
def bench() -> Iterator[Bench]:
    try:
        findings = findings_of_host()
    except EngineMissing as error:
        pytest.skip(str(error))
    if not findings.crosses:
        pytest.skip("this host's KVM has no SYSCALL that the engine's own code could take on")
    bench = Bench(findings)
    yield bench
    bench.engine.close()


def begin(bench: Bench, code: str, kernel: str = "") -> list[bool]:
    """Open the way, with user code about to run; the sides on which the guest was found come into the list."""
    sides: list[bool] = []
    bench.words[COUNT >> 3] = 0
    bench.engine.lead_crossing(lay_kernel(bench, kernel), sides.append)
    bench.start(code)
    bench.engine.set_root(ROOT)
    bench.engine.open_crossing(OTHER_ROOT, ROOT)
    return sides


def test_system_calls_come_and_go_without_an_exit(bench: Bench) -> None:
    sides = begin(bench, f"ba64000000 {SYSCALL} ffca 75fa" + UD2)  # mov edx, 100; again: ...; dec edx; jnz again
    kind, vector, _, at = bench.go()
    assert (kind, vector, at) == (ExitKind.FAULT, 6, 11)
    assert (bench.words[COUNT >> 3], bench.engine.entered) == (100, 1)
    assert sides == []
    assert bench.engine.registers.control(3) == ROOT


def test_the_kernel_has_what_syscall_leaves_and_user_code_gets_its_flags_back(bench: Bench) -> None:
    # stc; syscall; sbb eax, eax; ud2
    begin(bench, f"f9 {SYSCALL} 19c0" + UD2)
    bench.engine.registers.gpr[r.RSP] = 0x4321
    bench.go()
    gpr = bench.engine.registers.gpr
    assert bench.words[SAVED >> 3] == gpr[r.RCX] == CODE + 3
    assert bench.words[SAVED + 8 >> 3] & r.FLAG_CF
    assert (gpr[r.RAX], gpr[r.RSP]) == (0xFFFF_FFFF, 0x4321)


def test_an_exit_of_the_kernel_is_told_where_the_guest_is(bench: Bench) -> None:
    sides = begin(bench, SYSCALL + UD2, kernel="fa")
    kind, vector, _, at = bench.go()
    assert (kind, vector, at) == (ExitKind.FAULT, 13, 256 + 24)
    assert sides == [False]
    assert bench.engine.registers.control(3) == OTHER_ROOT


def test_an_exit_of_user_code_behind_the_kernels_return_is_told_as_well(bench: Bench) -> None:
    sides = begin(bench, SYSCALL + UD2, kernel="fa")
    bench.go()
    bench.engine.registers.advance(1)
    assert bench.go()[1:] == (6, 0, 2)
    assert sides == [False, True]


@pytest.mark.parametrize("what", ["close", "flush", "root"])
def test_a_way_that_is_closed_exits(bench: Bench, what: str) -> None:
    begin(bench, SYSCALL + UD2)
    if what == "close":
        bench.engine.close_crossing()
    elif what == "flush":
        bench.engine.flush_tlb()
    else:
        bench.engine.set_root(0x6000)
        bench.engine.set_root(ROOT)
    assert bench.go()[0] is ExitKind.SYSTEM_CALL
    assert bench.words[COUNT >> 3] == 0


def test_no_alarm_is_lost_to_a_guest_that_never_exits(bench: Bench) -> None:
    crossing = lay_kernel(bench)
    begin(bench, SYSCALL + "ebfc")
    engine, found = bench.engine, []

    def handler(exit_: Exit) -> None:
        assert exit_.kind is ExitKind.BUDGET
        found.append(engine.registers.rip)
        if len(found) == 40:
            engine.stop()
        engine.set_deadline(engine.progress + 200_000)

    engine.set_deadline(engine.progress + 200_000)
    engine.run(handler)
    assert not [at for at in found if at >= room.BASE or crossing.enter <= at < crossing.enter_end]
    assert bench.words[COUNT >> 3] > 40


@pytest.mark.parametrize("address", [room.SHOWN, room.BASE + 12 * 4096])
def test_what_the_code_for_page_faults_reads_is_not_for_user_code(bench: Bench, address: int) -> None:
    engine = bench.engine
    assert engine.show_memory(1 << 21) == (room.SHOWN, room.BASE + 13 * 4096 - 48)
    engine.lead_crossing(replace(lay_kernel(bench), fault=CODE, fault_address=SAVED), lambda _user: None)
    engine.open_crossing(OTHER_ROOT, ROOT)
    read = f"48b8{address.to_bytes(8, 'little').hex()} 488b00 {UD2}"  # mov rax, ...; mov rax, [rax]
    bench.start(read)
    engine.set_root(OTHER_ROOT)
    assert bench.go()[1] == 6, "a kernel may"
    bench.start(read)
    engine.set_root(ROOT)
    engine.close_crossing()
    assert bench.go()[:3] == (ExitKind.FAULT, 14, 5)


def test_a_page_fault_of_user_code_arrives_in_the_kernels_tables(bench: Bench) -> None:
    # nop; mov [0x7000], eax in user code; the kernel's: ud2
    bench.memory[CODE + 512 : CODE + 514] = bytes.fromhex(UD2)
    bench.page(0x7000, 0)
    crossing = replace(lay_kernel(bench), fault=CODE + 512, fault_address=SAVED + 16)
    engine = bench.engine
    engine.lead_crossing(crossing, lambda _user: None)
    bench.start("90 89042500700000" + UD2)
    gpr = engine.registers.gpr
    gpr[r.RCX], gpr[r.R11] = 0x11, 0x22
    engine.set_root(ROOT)
    engine.open_crossing(OTHER_ROOT, ROOT)
    _, vector, _, at = bench.go()
    assert (vector, at) == (6, 512)
    assert engine.entered == 1
    words = bench.words[SAVED >> 3 : (SAVED >> 3) + 3]
    assert list(words) == [0x11, 0x22, 0x7000]
    assert engine.registers.control(3) == OTHER_ROOT


@pytest.mark.parametrize("address", [room.SHOWN + 0x1000, room.BASE + 12 * 4096])
def test_nor_is_it_where_the_kernels_tables_were_in_use_before(bench: Bench, address: int) -> None:
    engine = bench.engine
    engine.show_memory(1 << 21)
    crossing = replace(lay_kernel(bench), fault=CODE, fault_address=SAVED)
    read = f"48b8{address.to_bytes(8, 'little').hex()} 488b00 {UD2}"
    for root in (OTHER_ROOT, ROOT):
        bench.start(read)
        engine.set_root(root)
        assert bench.go()[:3] == (ExitKind.FAULT, 14, 5)
    engine.lead_crossing(crossing, lambda _user: None)
    engine.open_crossing(OTHER_ROOT, ROOT)
    bench.start(read)
    engine.set_root(OTHER_ROOT)
    assert bench.go()[1] == 6
    bench.start(read)
    engine.set_root(ROOT)
    engine.close_crossing()
    assert bench.go()[:3] == (ExitKind.FAULT, 14, 5)
