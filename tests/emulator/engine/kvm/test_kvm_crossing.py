"""Level 3 to level 3 without an exit: user code and a kernel in page tables of its own, by the engine's own code."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.kvm import room
from emulator.engine.kvm.probe import OTHER_ROOT, ROOT, Bench, findings_of_host, lay_kernel, leaves_harmlessly
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


def refused(address: int) -> int:
    """The error code of a read of a kernel's part of the room by user code: of what is shown it has no tables."""
    return 4 if address >= room.SHOWN else 5


def test_system_calls_come_and_go_without_an_exit(bench: Bench) -> None:
    sides = begin(bench, f"ba64000000 {SYSCALL} ffca 75fa" + UD2)  # mov edx, 100; again: ...; dec edx; jnz again
    kind, vector, _, at = bench.go()
    assert (kind, vector, at) == (ExitKind.FAULT, 6, 11)
    assert (bench.words[COUNT >> 3], bench.engine.entered) == (100, 1)
    assert sides == []
    assert bench.engine.registers.control(3) == ROOT


def test_the_kernel_has_what_syscall_leaves_and_user_code_gets_its_flags_back(bench: Bench) -> None:
    # stc; syscall; sbb eax, eax; ud2
    begin(bench, f"f9 {SYSCALL} 19c0" + UD2, kernel="4c891c2508200000")  # mov [saved + 8], r11
    bench.engine.registers.gpr[r.RSP] = 0x4321
    bench.go()
    gpr = bench.engine.registers.gpr
    assert bench.words[SAVED >> 3] == gpr[r.RCX] == CODE + 3
    assert bench.words[SAVED + 8 >> 3] & r.FLAG_CF
    assert (gpr[r.RAX], gpr[r.RSP]) == (0xFFFF_FFFF, 0x4321)


def test_an_exit_of_the_kernel_is_told_where_the_guest_is(bench: Bench) -> None:
    sides = begin(bench, SYSCALL + UD2, kernel="fa")
    kind, vector, _, at = bench.go()
    assert (kind, vector, at) == (ExitKind.FAULT, 13, 256 + 38)
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
        if exit_.kind is ExitKind.SYSTEM_CALL:  # one that came while an alarm waited for the guest to stand somewhere
            engine.registers.advance(2)
        elif exit_.kind is ExitKind.FAULT:
            assert (exit_.vector, engine.registers.rip) == (0, crossing.leave)
            engine.registers.rip = engine.registers.gpr[r.RCX]
            engine.set_root(ROOT)
        else:
            assert exit_.kind is ExitKind.BUDGET
            found.append(engine.registers.rip)
            if len(found) == 40:
                engine.stop()
            engine.set_deadline(engine.progress + 200_000)
        engine.open_crossing(OTHER_ROOT, ROOT)

    engine.set_deadline(engine.progress + 200_000)
    engine.run(handler)
    assert not [at for at in found if at >= room.BASE or crossing.enter <= at < crossing.enter_end]
    assert bench.words[COUNT >> 3] > 40


def test_a_caller_that_steps_or_is_nested_exits_and_keeps_its_flags(bench: Bench) -> None:
    for flag in (r.FLAG_TF, r.FLAG_NT):
        # mov r11d, ...; mov rcx, ...; mov rbx, CALL; jmp rbx
        code = f"41bb{flag | r.FLAG_FIXED:08x} 48c7c1 02100000 48bb {room.CALL.to_bytes(8, 'little').hex()} ffe3"
        begin(bench, code.replace(f"{flag | 2:08x}", (flag | 2).to_bytes(4, "little").hex()))
        assert bench.go()[0] is ExitKind.SYSTEM_CALL
        assert bench.engine.registers.rflags & flag
        assert bench.words[COUNT >> 3] == 0


def test_a_forged_call_gives_the_kernel_no_flags(bench: Bench) -> None:
    site = room.CALL_SITE.to_bytes(8, "little").hex()
    # mov r11, -1; mov rcx, ...; mov rbx, the division; jmp rbx
    begin(bench, f"49c7c3ffffffff 48c7c1 02100000 48bb {site} ffe3", kernel="fa")
    assert bench.go()[3] == 256 + 38
    assert bench.engine.registers.gpr[r.R11] == 0xFFFF_FFFF_FFFF_FFFF
    forged = r.FLAG_TF | r.FLAG_NT | r.FLAG_IOPL | r.FLAG_DF | r.FLAG_AC | r.FLAG_VIF | r.FLAG_VIP | r.FLAG_RF
    assert not bench.engine.registers.rflags & forged


def test_the_code_for_callers_is_read_and_executed_by_user_code_and_not_written(bench: Bench) -> None:
    for opcode, vector in (("488b03", 6), ("488903", 14)):  # mov rax, [rbx]; mov [rbx], rax
        begin(bench, f"48bb{room.CALL.to_bytes(8, 'little').hex()}{opcode}" + UD2)
        bench.engine.close_crossing()
        assert bench.go()[1] == vector


def test_a_kernel_that_leaves_to_no_address_faults_at_level_3_and_has_nothing_stored(bench: Bench) -> None:
    assert leaves_harmlessly(bench)
    assert bench.engine.registers.selector(r.CS) == 0x33


def test_ports_are_open_to_the_kernel_and_closed_to_user_code_while_the_way_is_open(bench: Bench) -> None:
    begin(bench, f"{SYSCALL} e660", kernel="e680")
    engine, seen = bench.engine, []
    engine.open_ports(False)

    def handler(exit_: Exit) -> None:
        seen.append((ExitKind(exit_.kind), exit_.port))
        if exit_.kind is ExitKind.FAULT:
            seen[-1] = (ExitKind.FAULT, exit_.vector)
            engine.stop()

    engine.run(handler)
    assert seen == [(ExitKind.PORT_WRITE, 0x80), (ExitKind.FAULT, 13)]
    engine.close_crossing()
    engine.registers.rip = CODE + 2
    assert bench.go()[:2] == (ExitKind.FAULT, 13)


@pytest.mark.parametrize("address", [room.SHOWN, room.BASE + 12 * 4096])
def test_what_the_code_for_page_faults_reads_is_not_for_user_code(bench: Bench, address: int) -> None:
    engine = bench.engine
    assert (engine.show_memory(1 << 21), engine.call_frame[0]) == (room.SHOWN, room.BASE + 13 * 4096 - 48)
    engine.lead_crossing(replace(lay_kernel(bench), fault=CODE), lambda _user: None)
    engine.open_crossing(OTHER_ROOT, ROOT)
    read = f"48b8{address.to_bytes(8, 'little').hex()} 488b00 {UD2}"  # mov rax, ...; mov rax, [rax]
    bench.start(read)
    engine.set_root(OTHER_ROOT)
    assert bench.go()[1] == 6, "a kernel may"
    bench.start(read)
    engine.set_root(ROOT)
    engine.close_crossing()
    assert bench.go()[:3] == (ExitKind.FAULT, 14, refused(address))


def test_a_page_fault_of_user_code_arrives_in_the_kernels_tables(bench: Bench) -> None:
    # nop; mov [0x7000], eax in user code; the kernel's: mov [saved + 16], rsp; ud2
    bench.memory[CODE + 512 : CODE + 522] = bytes.fromhex("4889242510200000" + UD2)
    bench.page(0x7000, 0)
    crossing = replace(lay_kernel(bench), fault=CODE + 512)
    engine = bench.engine
    engine.lead_crossing(crossing, lambda _user: None)
    bench.start("90 89042500700000" + UD2)
    gpr = engine.registers.gpr
    gpr[r.RCX], gpr[r.R11] = 0x11, 0x22
    engine.set_root(ROOT)
    engine.open_crossing(OTHER_ROOT, ROOT)
    _, vector, _, at = bench.go()
    assert (vector, at) == (6, 520)
    assert engine.entered == 1
    words = bench.words[SAVED >> 3 : (SAVED >> 3) + 3]
    assert list(words) == [0x11, 0x22, 0x7000]
    assert engine.registers.control(3) == OTHER_ROOT


@pytest.mark.parametrize("address", [room.SHOWN + 0x1000, room.BASE + 12 * 4096])
def test_nor_is_it_where_the_kernels_tables_were_in_use_before(bench: Bench, address: int) -> None:
    engine = bench.engine
    engine.show_memory(1 << 21)
    crossing = replace(lay_kernel(bench), fault=CODE)
    read = f"48b8{address.to_bytes(8, 'little').hex()} 488b00 {UD2}"
    for root in (OTHER_ROOT, ROOT):
        bench.start(read)
        engine.set_root(root)
        assert bench.go()[:3] == (ExitKind.FAULT, 14, refused(address))
    engine.lead_crossing(crossing, lambda _user: None)
    engine.open_crossing(OTHER_ROOT, ROOT)
    bench.start(read)
    engine.set_root(OTHER_ROOT)
    assert bench.go()[1] == 6
    bench.start(read)
    engine.set_root(ROOT)
    engine.close_crossing()
    assert bench.go()[:3] == (ExitKind.FAULT, 14, refused(address))


BACK_SAVED = (0x2080, 0x2088, 0x2090, 0x2098, 0x20A0)
ENTRIES, MARKED, BLOCKS = 0x6000, 0x6000 >> 12, 0x4000


def back(bench: Bench, rax: int, rcx: int, rdx: int, together: bool = False) -> tuple[ExitKind, int, int, int]:
    """User code calls a kernel that goes back by the engine's IRETQ with these registers; user code ends by an
    undefined instruction. The tables are all of memory, of which one page is marked."""
    values = ((b"\x48\xb8", rax), (b"\x48\xb9", rcx), (b"\x48\xba", rdx))
    code = b"".join(text + (value & (1 << 64) - 1).to_bytes(8, "little") for text, value in values).hex()
    kernel = "48bc7856341200000000" + code + "f9 fd f4"  # mov rsp, ...; ...; stc; std; hlt
    crossing = lay_kernel(bench, kernel)
    halt = crossing.leave - 1
    shown = bench.engine.show_tables([(0, 1 << 16)] * 3)
    if shown is None:
        pytest.skip("this host's KVM has no segments that user code may load anyhow")
    shown[1][MARKED] = 1
    for number, at in enumerate(BACK_SAVED):
        bench.words[at >> 3] = 0x1111 * (number + 1)
    places = {"back_together": halt, "back": 1} if together else {"back": halt, "back_together": 1}
    crossing = replace(crossing, tables=0, tables_size=1 << 16, back_saved=BACK_SAVED, blocks=BLOCKS, **places)
    bench.engine.lead_crossing(crossing, lambda _user: None)
    bench.engine.show_segments(bytes(8))
    bench.start(SYSCALL + UD2)
    bench.engine.set_root(ROOT)
    bench.engine.open_crossing(OTHER_ROOT, ROOT)
    return bench.go()


def test_iretq_stores_an_entry_and_leads_to_user_code_without_an_exit(bench: Bench) -> None:
    kind, vector, _, at = back(bench, 0x8000_0000_0000_5067, ENTRIES + 0x128, CODE + 2)
    gpr, registers = bench.engine.registers.gpr, bench.engine.registers
    assert (kind, vector, at) == (ExitKind.FAULT, 6, 2)
    assert bench.engine.entered == 1
    assert bench.words[ENTRIES + 0x128 >> 3] == 0x8000_0000_0000_5067
    assert (gpr[r.RAX], gpr[r.RCX], gpr[r.RDX], gpr[r.RSP]) == (0x1111, 0x2222, 0x3333, 0x12345678)
    assert registers.rflags & (r.FLAG_CF | r.FLAG_DF) == r.FLAG_CF | r.FLAG_DF
    assert (registers.selector(r.CS), registers.selector(r.SS)) == (0x33, 0x2B)
    assert registers.control(3) == ROOT


def test_what_the_entry_maps_is_there_at_once(bench: Bench) -> None:
    bench.words[0x5000 >> 3], bench.words[0x3000 >> 3] = 0x77, 0x33
    shown = bench.engine.show_tables([(0, 1 << 16)] * 3)
    assert shown is not None
    entry = bench.page(0xA000, 0x3007)
    shown[1][entry >> 12] = 1
    bench.memory[CODE + 2 : CODE + 12] = bytes.fromhex("48a1") + (0xA000).to_bytes(8, "little")  # mov rax, [0xa000]
    saved = bytes(bench.memory[CODE + 2 : CODE + 12])
    bench.start(saved.hex() + UD2)
    assert bench.go()[1] == 6
    assert bench.engine.registers.gpr[r.RAX] == 0x33
    bench.memory[CODE + 64 : CODE + 76] = saved + bytes.fromhex(UD2)
    assert back(bench, 0x5007, entry, CODE + 64)[1:] == (6, 0, 74)
    assert bench.engine.registers.gpr[r.RAX] == 0x77


@pytest.mark.parametrize("rcx", [0x5000, ENTRIES - 8, 0x1_0000_5000, -0xB000])
def test_a_kernel_stores_in_no_table_that_is_not_marked(bench: Bench, rcx: int) -> None:
    before = bytes(bench.memory[0x4000:0x7000])
    kind, vector, _, at = back(bench, 0x5067, rcx, CODE + 2)
    assert (kind, vector) == (ExitKind.FAULT, 13)
    assert at > 256
    assert bytes(bench.memory[0x4000:0x7000]) == before
    assert bench.engine.registers.control(3) == OTHER_ROOT
    assert back(bench, 0x80, rcx, CODE + 2, together=True)[1] == 13
    assert bytes(bench.memory[0x4000:0x7000]) == before


def test_a_kernel_can_name_neither_the_hypervisors_memory_nor_an_address_that_is_none(bench: Bench) -> None:
    assert back(bench, -1, ENTRIES + 0x13, -1)[:2] == (ExitKind.FAULT, 14)
    assert bench.words[ENTRIES + 0x10 >> 3] == 0x8000_000F_FFFF_F07F
    assert bench.engine.registers.rip == 0x7FFF_FFFF_FFFF
    assert bench.engine.registers.selector(r.CS) == 0x33


def test_sixteen_entries_are_stored_at_once(bench: Bench) -> None:
    for number in range(16):
        bench.words[(BLOCKS + 0x180 >> 3) + number] = 0x5025 + 4096 * number
        bench.words[(ENTRIES + 0x280 >> 3) + number] = 7
    assert back(bench, 0xFFF8_0180, ENTRIES + 0x2FF, CODE + 2, together=True)[:2] == (ExitKind.FAULT, 6)
    stored = bench.words[ENTRIES + 0x280 >> 3 : (ENTRIES + 0x280 >> 3) + 16]
    assert list(stored) == [0x5025 + 4096 * number for number in range(16)]
    gpr = bench.engine.registers.gpr
    assert [gpr[number] for number in (r.RAX, r.RCX, r.RDX, r.RSI, r.RDI)] == [0x1111 * n for n in range(1, 6)]
    assert bench.engine.entered == 1
    assert bench.engine.registers.rflags & r.FLAG_DF


@pytest.mark.parametrize(("mark", "cleared"), [(0, False), (1, False), (2, True)])
def test_a_kernel_clears_an_entry_of_its_own_tables_and_goes_on(bench: Bench, mark: int, cleared: bool) -> None:
    # mov rcx, ...; hlt; mov rsi, rsp; mov rcx, behind the call
    there, back = ((ENTRIES + 0x4B).to_bytes(4, "little").hex(), (CODE + 2).to_bytes(4, "little").hex())
    crossing = lay_kernel(bench, f"48c7c1{there} f4 4889e6 48c7c1{back}")
    shown = bench.engine.show_tables([(0, 1 << 16)] * 3)
    if shown is None:
        pytest.skip("this host's KVM has no segments that user code may load anyhow")
    shown[1][MARKED], clear = mark, crossing.leave - 11
    bench.words[ENTRIES + 0x48 >> 3] = 0x5067
    crossing = replace(
        crossing, tables=0, tables_size=1 << 16, back_saved=BACK_SAVED, back=1, back_together=1, clear=clear
    )
    bench.engine.lead_crossing(crossing, lambda _user: None)
    bench.start(SYSCALL + UD2)
    bench.engine.registers.gpr[r.RSP] = 0x4321
    bench.engine.set_root(ROOT)
    bench.engine.open_crossing(OTHER_ROOT, ROOT)
    kind, vector, _, at = bench.go()
    assert kind is ExitKind.FAULT
    assert bench.words[ENTRIES + 0x48 >> 3] == (0 if cleared else 0x5067)
    if cleared:
        assert bench.engine.registers.gpr[r.RSI] == 0x4321
        assert (vector, at, bench.engine.entered) == (6, 2, 1)
    else:
        assert (vector, at) == (13, clear - CODE)


def test_what_is_posted_on_the_way_to_the_kernel_is_handed_up_at_the_exit_behind_it(bench: Bench) -> None:
    # mov al, 7; out 80h, al; mov ecx, 40 million; again: dec ecx; jnz again
    way = lay_kernel(bench, "b007 e680 b9005a6202 ffc9 75fc")
    bench.words[COUNT >> 3] = 0
    engine, seen = bench.engine, list[tuple[int, int]]()
    engine.post_ports([(0x80, 1)])
    engine.lead_crossing(way, lambda _user: None)
    bench.start(SYSCALL + UD2)
    engine.set_root(ROOT)
    engine.open_crossing(OTHER_ROOT, ROOT)

    def handler(exit_: Exit) -> None:
        seen.append((exit_.kind, engine.raw_vector))
        if exit_.kind == ExitKind.FAULT:
            engine.stop()

    engine.set_deadline(engine.progress + 2_000_000)  # within the loop
    engine.run(handler)
    # The way back is closed by the alarm: a division by zero in the kernel.
    assert seen[0] == (ExitKind.PORT_WRITE, 0)
    assert [kind for kind, _ in seen if kind != ExitKind.BUDGET] == [ExitKind.PORT_WRITE, ExitKind.FAULT]


def test_a_deadline_comes_before_the_page_fault_of_user_code_that_would_not_have_exited(bench: Bench) -> None:
    # mov ecx, 40 million; again: dec ecx; jnz again; mov rax, [64K]; ud2
    code = "b9005a6202 ffc9 75fc 488b042500000100" + UD2
    begin(bench, code)
    engine, seen = bench.engine, list[tuple[int, int]]()
    # As if user code were part of the way, on which the gates are paused at an alarm.
    engine._crossing = replace(engine._crossing, enter=CODE, enter_end=CODE + 9)

    def handler(exit_: Exit) -> None:
        seen.append((exit_.kind, engine.registers.rip - CODE))
        if exit_.kind == ExitKind.FAULT:
            engine.stop()

    engine.set_deadline(engine.progress + 2_000_000)
    engine.run(handler)
    assert seen == [(ExitKind.BUDGET, 9), (ExitKind.FAULT, 9)]


@pytest.mark.parametrize("what", ["chosen", "same last byte", "another", "not asked for", "INT n"])
def test_a_trap_of_the_kernels_arrives_at_level_3_where_that_was_asked_for(bench: Bench, what: str) -> None:
    """Its code there goes on behind it with what the engine has saved."""
    # mov rcx, ...; hlt, or int 33; mov rsi, rcx; mov rdi, r11; mov rcx, behind the call
    trap, there, back = "cd21" if what == "INT n" else "f4", "78563412", (CODE + 2).to_bytes(4, "little").hex()
    crossing = lay_kernel(bench, f"48c7c1{there} {trap} 4889ce 4c89df 48c7c1{back}")
    if bench.engine.show_tables([(0, 1 << 16)] * 3) is None:
        pytest.skip("this host's KVM has no segments that user code may load anyhow")
    site = crossing.leave - 13 - len(trap) // 2
    arrives, frame = CODE + 0x800, bench.engine.call_frame[0]
    # mov rax, [RIP]; mov r9, rax; mov rax, [RSP]; mov rsp, rax; mov rcx, [saved]; mov r11, [saved + 8]; jmp behind
    code = bytes.fromhex("48a1") + (frame + 8).to_bytes(8, "little") + bytes.fromhex("4989c1 48a1")
    code += (frame + 32).to_bytes(8, "little") + bytes.fromhex("4889c4 488b0c2500200000 4c8b1c2508200000 e9")
    code += (site + 1 - arrives - len(code) - 4).to_bytes(4, "little", signed=True)
    bench.memory[arrives : arrives + len(code)] = code
    crossing = replace(
        crossing,
        tables=0,
        tables_size=1 << 16,
        back=1,
        back_together=1,
        clear=1,
        trapped=arrives,
        back_saved=BACK_SAVED,
    )
    engine, gpr = bench.engine, bench.engine.registers.gpr
    engine.lead_crossing(crossing, lambda _user: None)
    places = {"same last byte": site + 0x300, "another": site + 1}
    engine.lead_traps([places.get(what, site)])
    if what == "not asked for":
        engine.lead_traps([])
    bench.start(SYSCALL + UD2)
    gpr[r.RSP] = 0x4321
    engine.set_root(ROOT)
    engine.open_crossing(OTHER_ROOT, ROOT)
    kind, vector, error, at = bench.go()
    if what in ("chosen", "same last byte"):
        assert (kind, vector, at, engine.entered) == (ExitKind.FAULT, 6, 2, 1)
        assert (gpr[r.RSI], gpr[r.R9], gpr[r.RSP]) == (0x12345678, site, 0x4321)
        assert gpr[r.RDI] == CODE + 2 or gpr[r.RDI] & r.FLAG_FIXED, "R11 as SYSCALL left it"
    elif what == "INT n":
        assert (kind, vector, at) == (ExitKind.SOFTWARE_INTERRUPT, 33, site - CODE)
    else:
        assert (kind, vector, error, at) == (ExitKind.FAULT, 13, 0, site - CODE)
        assert gpr[r.RCX] == 0x12345678
