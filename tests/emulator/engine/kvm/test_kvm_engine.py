"""The KVM engine on this host's KVM: quirks are what an experiment shows, and hidden whatever form events take."""

import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.kvm import alarm, room
from emulator.engine.kvm.engine import KvmEngine
from emulator.engine.kvm.findings import Findings
from emulator.engine.kvm.probe import findings_of_host
from emulator.engine.kvm.quirks import QUIRKS, Quirk
from emulator.engine.kvm.stub import _REGISTERS
from emulator.engine.protocol import WHOLE_TABLE
from emulator.engine.x86 import X86Engine, X86Registers
from emulator.errors import EngineMissing, GuestFault
from emulator.isa.x86 import registers as r
from emulator.isa.x86.room import CODE, DATA
from tests.emulator.engine.bare_engine import CR0, CR4, EFER, PAGE_TABLE, BareGuest, Seen

pytestmark = pytest.mark.kvm
HALT = "f4"


@pytest.fixture(scope="module")
def findings() -> Findings:
    try:
        return findings_of_host()
    except EngineMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def engine(findings: Findings) -> Iterator[KvmEngine]:
    engine = KvmEngine(findings)
    yield engine
    engine.close()


def raw(findings: Findings, code: str, **registers: int) -> tuple[KvmEngine, BareGuest, Seen]:
    """Code on an engine that knows of no quirk (but how to have changed tables seen)."""
    engine = KvmEngine(replace(Findings(), flush_by_control=findings.flush_by_control))
    guest = BareGuest(engine, code)
    engine.open_ports(False)
    for name, value in registers.items():
        setattr(engine.registers, name, value)
    (seen,) = guest.run()
    return engine, guest, seen


SHOWN = {
    "int_is_undefined": lambda f: raw(f, "90 cd80")[0].raw_vector == 6,
    "breakpoint_ignores_gate": lambda f: raw(f, "90 cc")[0].raw_vector == 3,
    "system_call_keeps_level": lambda f: raw(f, "90 0f05")[0].raw_vector == 14,
    "int1_at_instruction": lambda f: raw(f, "90 f1")[2].rip == CODE + 1,
    "bases_open": lambda f: raw(f, "f3480faec0")[2].rip == CODE + 5,
    "wide_vectors_open": lambda f: raw(f, "c5fd6fc0")[2].rip == CODE + 4,
    "calls_answered": lambda f: any(raw(f, code)[2].rip == CODE + 3 for code in ("0f01c1 f4", "0f01d9 f4")),
}
"""Experiments apart from those of the probe."""


@pytest.mark.parametrize("quirk", [quirk for quirk in QUIRKS if quirk.field in SHOWN], ids=lambda quirk: quirk.field)
def test_what_the_probe_found_is_what_a_second_experiment_shows(findings: Findings, quirk: Quirk) -> None:
    assert SHOWN[quirk.field](findings) is quirk.found(findings)


def test_a_flag_that_is_clear_is_shown_as_was_found(findings: Findings) -> None:
    engine, _, _ = raw(findings, "9c58 0f0b", rflags=r.FLAG_FIXED)
    assert bool(engine.registers.gpr[0] & r.FLAG_IF) is findings.interrupt_flag_shown


def test_time_stamp_and_task_switched_fault_as_was_found(engine: KvmEngine, findings: Findings) -> None:
    guest = BareGuest(engine, "0f31 0f0b")
    engine.set_control(CR0, CR4 | r.CR4_TSD, EFER)
    assert (guest.run()[0].vector == 13) is findings.time_stamp_faults
    guest = BareGuest(KvmEngine(findings), "0f57c0 0f0b")
    guest.engine.set_control(CR0 | r.CR0_TS, CR4, EFER)
    assert (guest.run()[0].vector == 7) is findings.task_switched_faults


def test_descriptor_tables_are_not_the_engines_to_see(engine: KvmEngine, findings: Findings) -> None:
    if not findings.tables_fault:
        pytest.skip("this host has no UMIP")
    guest = BareGuest(engine, "90")
    for code in ("0f010425 00900000", "0f010c25 00900000", "0f00c0", "0f00c8", "0f01e0"):
        guest.memory[CODE : CODE + 10] = bytes.fromhex(code).ljust(10, b"\x90")
        engine.registers.rip = CODE
        (seen,) = guest.run()
        assert (seen.vector, seen.rip) == (13, CODE)


def test_lar_finds_the_hosts_segments_or_the_guests_as_was_found(engine: KvmEngine, findings: Findings) -> None:
    guest = BareGuest(engine, "b82b000000 0f02d8 cc")  # mov eax, 2BH; lar ebx, eax
    engine.show_segments(b"")
    guest.run()
    in_hosts = bool(engine.registers.rflags & r.FLAG_ZF)
    engine.show_segments(bytes(0x28) + (0x00CF_F100_0000_FFFF).to_bytes(8, "little"))  # to be read alone
    engine.registers.rip = CODE
    guest.run()
    if findings.descriptors_are_hosts:
        assert bool(engine.registers.rflags & r.FLAG_ZF) is in_hosts
        assert not in_hosts or engine.registers.gpr[3] == 0xCF_F300
    else:
        assert (in_hosts, engine.registers.gpr[3]) == (False, 0xCF_F100)


def test_the_processors_number_is_the_hosts_as_was_found(findings: Findings) -> None:
    engine = KvmEngine(findings)
    guest = BareGuest(engine, "0f01f9 cc f30fc7f8 cc")  # rdtscp; int3; rdpid rax
    engine.set_processor_number(0x77)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(before)})
        (seen,) = guest.run()
    finally:
        os.sched_setaffinity(0, before)
        engine.close()
    shown = seen.rip == CODE + 3
    assert (shown and engine.registers.gpr[r.RCX] & 0xFFF == max(before)) is findings.processor_shown
    assert findings.processor_shown or not shown or engine.registers.gpr[r.RCX] == 0x77


@pytest.mark.parametrize("code", ["0f58c0", "dec1", "f30fb8c0"], ids=["ADDPS", "FADDP", "POPCNT"])
def test_32_bit_code_is_interpreted_as_was_found(engine: KvmEngine, findings: Findings, code: str) -> None:
    guest = BareGuest(engine, code + "0f0b")
    engine.registers.set_segment(r.CS, 0x23, 0, 0xFFFF_FFFF, 0xCFFB00)
    (seen,) = guest.run()
    assert (seen.kind, seen.vector) == (ExitKind.FAULT, 6)
    assert (seen.rip == CODE) is findings.compatibility_interpreted


def test_the_engine_and_its_registers_fulfil_the_protocols(engine: KvmEngine) -> None:
    checked: X86Engine = engine
    registers: X86Registers = engine.registers
    assert checked.registers is registers


def test_code_at_full_privilege_is_refused_by_a_sentence(engine: KvmEngine) -> None:
    guest = BareGuest(engine, "90", level=0)
    with pytest.raises(GuestFault, match="level 3 only"):
        guest.run()


@pytest.mark.parametrize("address", [room.HANDLERS, room.IDT, room.TSS, room.STUB, room.WINDOW, room.SYSTEM_CALL])
@pytest.mark.parametrize("write", [False, True])
def test_guests_reach_nothing_of_the_engines_room(engine: KvmEngine, address: int, write: bool) -> None:
    opcode = "488903" if write else "488b03"  # mov [rbx], rax; mov rax, [rbx]
    guest = BareGuest(engine, f"48bb{address.to_bytes(8, 'little').hex()}{opcode}")
    (seen,) = guest.run()
    assert (seen.kind, seen.vector, seen.address) == (ExitKind.FAULT, 14, address)
    assert seen.error & 5 == 5 if address != room.WINDOW else seen.error & 4


def test_a_guest_that_jumps_into_the_room_is_stopped_there(engine: KvmEngine) -> None:
    guest = BareGuest(engine, f"48bb{room.STUB.to_bytes(8, 'little').hex()}ffe3")
    (seen,) = guest.run()
    assert (seen.vector, seen.address, seen.rip) == (14, room.STUB, room.STUB)


def test_a_forged_system_call_has_no_flag_that_user_code_could_not_set(engine: KvmEngine) -> None:
    target = room.SYSTEM_CALL.to_bytes(8, "little").hex()
    guest = BareGuest(engine, f"49bb ffffffffffffffff 48b9 0210000000000000 48bb {target} ffe3")
    (seen,) = guest.run()
    privileged = r.FLAG_IF | r.FLAG_IOPL | r.FLAG_VM | r.FLAG_VIF | r.FLAG_VIP | r.FLAG_RF
    assert not seen.rflags & privileged
    assert seen.kind is not ExitKind.SYSTEM_CALL or seen.rip == 0x1000


def test_ports_fault_until_they_are_opened_and_after_they_are_closed(engine: KvmEngine) -> None:
    guest = BareGuest(engine, "e660 f4")
    for opened in (False, True, False):
        engine.open_ports(opened)
        engine.registers.rip = CODE
        (seen,) = guest.run()
        assert seen.kind is (ExitKind.PORT_WRITE if opened else ExitKind.FAULT)


def test_posted_writes_come_in_order_and_before_what_follows_them(engine: KvmEngine) -> None:
    guest = BareGuest(engine, "b003 e680 fec8 75fa e681 f4")  # out 80h: 3, 2, 1; out 81h; hlt
    engine.post_ports([(0x80, 1)])
    seen = guest.run(lambda exit_: exit_.kind is not ExitKind.FAULT)
    assert [(one.port, one.value) for one in seen[:-1]] == [(0x80, 3), (0x80, 2), (0x80, 1), (0x81, 0)]


def test_bytes_in_a_row_are_offered_at_once_and_handed_up_one_by_one_where_they_are_not_taken(
    engine: KvmEngine,
) -> None:
    # mov al, 7; out 80h six times, counting down; out 81h; out 80h as 16 bits; hlt
    guest = BareGuest(engine, "b006 e680 fec8 75fa e681 66e780 f4")
    for takes in (True, False):
        offered: list[tuple[int, bytes]] = []

        def burst(port: int, data: bytes, takes: bool = takes, offered: list[tuple[int, bytes]] = offered) -> bool:
            offered.append((port, data))
            return takes

        engine.post_ports([(0x80, 2)], burst)
        engine.registers.rip = CODE
        seen = guest.run(lambda exit_: exit_.kind is not ExitKind.FAULT)
        row = [(0x80, value) for value in range(6, 0, -1)]
        assert offered == [(0x80, bytes(range(6, 0, -1)))]
        assert [(one.port, one.value) for one in seen[:-1]] == ([] if takes else row) + [(0x81, 0), (0x80, 0)]


def test_more_posted_writes_than_the_ring_holds_are_all_handed_up(engine: KvmEngine) -> None:
    guest = BareGuest(engine, "b9e8030000 88c8 e680 ffc9 75f8 f4")  # a thousand
    engine.post_ports([(0x80, 1)])
    seen = guest.run(lambda exit_: exit_.kind is not ExitKind.FAULT)
    assert [one.value for one in seen[:-1]] == [count & 0xFF for count in range(1000, 0, -1)]


def test_user_code_loads_the_segments_that_it_is_shown_and_no_others(engine: KvmEngine, findings: Findings) -> None:
    guest = BareGuest(engine, "66b82b00 8ed8 90 cc")
    table = bytearray(0x30)
    table[0x28:0x30] = (0x00CF_F300_0000_FFFF).to_bytes(8, "little")
    engine.show_segments(bytes(table))
    assert guest.run()[0].kind is ExitKind.SOFTWARE_INTERRUPT
    assert engine.registers.segment(r.DS)[0] == 0x2B
    engine.show_segments(b"")
    engine.registers.rip = CODE
    (seen,) = guest.run()
    assert seen.vector == (3 if findings.host_segments_open else 13)


def test_upper_vector_parts_are_taken_and_put_back(engine: KvmEngine, findings: Findings) -> None:
    if not findings.wide_vectors_open:
        pytest.skip("user code cannot use AVX on this host")
    # vpcmpeqd ymm0; int3; vextracti128 xmm1, ymm0, 1; movq rax, xmm1; int3
    guest = BareGuest(engine, "c5fd76c0 cc c4e37d39c101 66480f7ec8 cc")
    guest.run()
    state = engine.vectors()

    def upper() -> int:
        engine.registers.rip, engine.registers.gpr[0] = CODE + 5, 5
        guest.run()
        return int(engine.registers.gpr[0])

    assert upper() == 0xFFFF_FFFF_FFFF_FFFF
    engine.set_vectors(b"")
    assert upper() == 0
    assert engine.vectors() == b""
    engine.set_vectors(state)
    assert upper() == 0xFFFF_FFFF_FFFF_FFFF


def spinning(engine: KvmEngine, ticks: int) -> int:
    """Ticks that a loop without exits is stopped by."""
    guest = BareGuest(engine, "ebfe")
    engine.set_deadline(engine.progress + 300_000)

    def again(_exit: Exit) -> bool:
        engine.set_deadline(engine.progress + 300_000)
        return len(guest.exits) < ticks

    return sum(seen.kind is ExitKind.BUDGET for seen in guest.run(again))


def test_no_alarm_is_lost(engine: KvmEngine) -> None:
    assert spinning(engine, 100) == 100


def test_a_timer_that_is_set_for_a_deadline_is_not_set_for_it_again_until_it_went_off(
    engine: KvmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = BareGuest(engine, "0f0b ebfe")
    waits: list[int | None] = []
    set_timer = engine._alarm.set

    def counted(nanoseconds: int | None) -> None:
        waits.append(nanoseconds)
        set_timer(nanoseconds)

    monkeypatch.setattr(engine._alarm, "set", counted)
    far = engine.progress + 1_000_000_000

    def again(exit_: Exit) -> bool:
        if exit_.kind is ExitKind.BUDGET:
            return False
        engine.set_deadline(far)
        if len(guest.exits) == 5:
            assert len(waits) == 2, "one as the run began, and one for the deadline"
            engine.set_deadline(engine.progress + 1_000_000)
            engine.registers.advance(2)
        return True

    assert guest.run(again)[-1].kind is ExitKind.BUDGET
    assert len(guest.exits) == 6
    near = engine.progress + 1_000_000
    for _ in range(3):  # also for one that is past
        engine.set_deadline(near)
        assert guest.run()[-1].kind is ExitKind.BUDGET
    assert engine.progress >= near


def test_engines_in_threads_of_their_own_lose_no_alarm(findings: Findings) -> None:
    counts: list[int] = []

    def body() -> None:
        engine = KvmEngine(findings)
        counts.append(spinning(engine, 30))
        engine.close()

    threads = [threading.Thread(target=body) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts == [30] * 3


def test_an_engine_may_move_to_another_thread(engine: KvmEngine) -> None:
    counts = [spinning(engine, 5)]
    thread = threading.Thread(target=lambda: counts.append(spinning_again(engine, 5)))
    thread.start()
    thread.join(60)
    assert counts == [5, 5]


def spinning_again(engine: KvmEngine, ticks: int) -> int:
    seen = 0

    def handler(_exit: Exit) -> None:
        nonlocal seen
        seen += 1
        engine.set_deadline(engine.progress + 300_000)
        if seen == ticks:
            engine.stop()

    engine.set_deadline(engine.progress + 300_000)
    engine.run(handler)
    return seen


def test_an_engine_that_runs_inside_another_does_not_take_its_alarm(findings: Findings) -> None:
    outer, inner = KvmEngine(findings), KvmEngine(findings)
    guest = BareGuest(outer, "cc ebfe")

    def nested(exit_: Exit) -> bool:
        if exit_.kind is ExitKind.BUDGET:
            return False
        assert spinning(inner, 5) == 5
        outer.registers.rip += exit_.length
        return True

    outer.set_deadline(outer.progress + 1_000_000)
    assert guest.run(nested)[-1].kind is ExitKind.BUDGET
    outer.close()
    inner.close()


def test_after_a_run_the_thread_has_its_signals_as_before(engine: KvmEngine) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    spinning(engine, 3)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert alarm.SIGNAL not in signal.sigpending()


def test_a_signal_handler_of_the_program_runs_while_a_guest_does_and_may_stop_it(engine: KvmEngine) -> None:
    guest = BareGuest(engine, "ebfe")
    seen: list[int] = []

    def handler(number: int, _frame: object) -> None:
        seen.append(number)
        engine.stop()

    before = signal.signal(signal.SIGUSR1, handler)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        assert guest.run() == []
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]
    assert engine.registers.rip == CODE


def test_time_stands_still_between_runs_and_does_not_count_exits(engine: KvmEngine) -> None:
    guest = BareGuest(engine, "cc")
    guest.run()
    progress = engine.progress
    end = time.thread_time() + 0.01
    while time.thread_time() < end:
        pass
    assert engine.progress == progress
    seen: list[int] = []
    guest = BareGuest(KvmEngine(engine.findings), "cc ebfd")

    def again(exit_: Exit) -> bool:
        seen.append(guest.engine.progress)
        guest.engine.registers.rip += exit_.length
        return len(seen) < 200

    guest.run(again)
    assert seen == sorted(seen)
    assert len(set(seen)) == 200, "every exit took time of its own, and none was counted as a fixed amount"


def test_a_load_that_waits_for_its_device_is_finished_before_a_stop(engine: KvmEngine) -> None:
    def read(_offset: int, _size: int) -> int:
        engine.stop()
        return 0x55

    engine.map_mmio(1 << 30, 0x1000, read, lambda *_access: None)
    guest = BareGuest(engine, "8b042510900000 f4")
    guest.page(DATA >> 12, 1 << 30 | 7)
    assert guest.run() == []
    assert (engine.registers.gpr[0], engine.registers.rip) == (0x55, CODE + 7)
    assert guest.run()[0].rip == CODE + 7


def test_an_in_is_finished_before_a_budget_that_is_due(engine: KvmEngine) -> None:
    guest = BareGuest(engine, "e460 ebfe")

    def answer(exit_: Exit) -> bool:
        if exit_.kind is ExitKind.PORT_READ:
            exit_.value = 0x42
            engine.set_deadline(engine.progress)
            return True
        return False

    read, tick = guest.run(answer)
    assert (read.kind, tick.kind, tick.rip) == (ExitKind.PORT_READ, ExitKind.BUDGET, CODE + 2)
    assert engine.registers.gpr[0] == 0x42


def test_memory_that_cannot_be_mapped_is_one_sentence(engine: KvmEngine) -> None:
    with pytest.raises(EngineMissing, match="cannot map"):
        engine.map_memory(0x10, memoryview(bytearray(4096)))
    with pytest.raises(EngineMissing, match="no memory backs"):
        engine.set_root(1 << 35)


@pytest.mark.timeout(60)
def test_a_stop_does_not_keep_the_stub_from_storing(engine: KvmEngine) -> None:
    guest = BareGuest(engine, "f4")
    assert guest.run()[0].rip == CODE
    engine.stop()  # as a signal's handler may, right before changed entries are stored
    engine.store_entry(0)
    engine._store_changes()
    assert guest.run()[0].rip == CODE


@pytest.mark.timeout(60)
def test_an_alarm_that_goes_off_in_the_stub_is_not_lost(engine: KvmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = BareGuest(engine, "ebfe")
    store = engine._stub.store

    def late(*places: list[int]) -> bool:
        time.sleep(0.01)  # the alarm's signal is pending when the stub is entered
        return store(*places)

    def handler(exit_: Exit) -> bool:
        return exit_.kind is not ExitKind.BUDGET

    monkeypatch.setattr(engine._stub, "store", late)
    engine.set_deadline(engine.progress + 1_000_000)
    engine.store_entry(0)
    assert [exit_.kind for exit_ in guest.run(handler)] == [ExitKind.BUDGET]


def test_the_stub_stores_words_of_several_memories_again(engine: KvmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, far = BareGuest(engine, "f4"), memoryview(mmap.mmap(-1, 1 << 13))
    engine.map_memory(5 << 30, far)
    stub, words = engine._stub, engine._words
    places = [DATA, 5 << 30, (5 << 30) + 0xFF8, DATA + 8]
    guest.words[DATA >> 3], guest.words[DATA + 8 >> 3] = 1, 4
    far[0], far[0xFF8] = 2, 3
    stored: list[tuple[int, int]] = []
    run = stub._run

    def running() -> None:
        stored.extend((words[address], words[value]) for address, value in _REGISTERS[: len(places)])
        run()

    monkeypatch.setattr(stub, "_run", running)
    for _ in range(2):
        assert stub.store(places)
    assert stored == 2 * [(room.WINDOW + at, number) for number, at in enumerate(places, 1)]
    assert [guest.words[DATA >> 3], far[0], far[0xFF8], guest.words[DATA + 8 >> 3]] == [1, 2, 3, 4]
    assert not stub.store([DATA, 6 << 30]), "there is no memory"
    assert stub.store([DATA])


@pytest.mark.parametrize("times", [1, 4])
def test_a_right_to_write_that_is_gained_is_seen_as_was_found(
    engine: KvmEngine, findings: Findings, times: int
) -> None:
    guest = BareGuest(engine, f"a3{DATA.to_bytes(8, 'little').hex()} f4")  # mov [data], eax
    guest.page(DATA >> 12, DATA | 5)
    for _ in range(times):
        engine.registers.gpr[0] += 1
        (seen,) = guest.run()
        assert (seen.vector, seen.address, seen.rip) == (14, DATA, CODE)
    guest.page(DATA >> 12, DATA | 7)
    (seen,) = guest.run()
    assert (seen.vector == 13) is findings.looks_again
    assert (guest.words[DATA >> 3] == times) is findings.looks_again


def test_many_entries_of_a_table_that_the_host_changed_are_all_seen(engine: KvmEngine) -> None:
    # mov eax, [data]; add eax, [data + 0x1000]; hlt
    guest = BareGuest(
        engine, f"8b0425{DATA.to_bytes(4, 'little').hex()} 030425{(DATA + 0x1000).to_bytes(4, 'little').hex()} f4"
    )
    pages = [DATA + number * 4096 for number in range(4)]
    for number, page in enumerate(pages):
        guest.words[page >> 3] = 10**number
    assert guest.run()[0].kind is ExitKind.FAULT
    assert engine.registers.gpr[0] & 0xFFFF_FFFF == 11
    for number in range(2):
        guest.page((DATA >> 12) + number, pages[2 + number] | 7)
    engine.flush_tlb([(PAGE_TABLE, WHOLE_TABLE)])
    engine.registers.rip = CODE
    guest.run()
    assert engine.registers.gpr[0] & 0xFFFF_FFFF == 1100
