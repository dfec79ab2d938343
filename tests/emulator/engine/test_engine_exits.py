"""What every engine must do: each kind of exit arrives as `Exit` documents it.

The tests see the `Engine` protocol only. What an engine is not able to do by its capabilities is skipped, by them.
"""

import pytest

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.x86 import X86Engine
from emulator.isa.x86 import registers as r
from emulator.isa.x86.room import CODE, DATA, KERNEL_CODE
from tests.emulator.engine.bare_engine import BareGuest

FAULT, SOFTWARE = ExitKind.FAULT, ExitKind.SOFTWARE_INTERRUPT
HOLE = 0x1_0000
"""Behind the room: nothing is mapped there."""


@pytest.fixture
def user_ports(engine: X86Engine) -> X86Engine:
    if not engine.capabilities.ports_exit_in_user_mode:
        pytest.skip("ports do not exit in user mode on this engine")
    return engine


@pytest.mark.parametrize(
    ("code", "vector", "error", "at"),
    [
        ("90 fa", 13, 0, 1),  # cli
        ("90 f4", 13, 0, 1),  # hlt
        ("90 0f22d8", 13, 0, 1),  # mov cr3, rax
        ("90 0f30", 13, 0, 1),  # wrmsr
        ("66b81234 8ed8", 13, 0x3410, 4),  # mov ds, 0x3412: its table does not hold it
        ("90 0f0b", 6, 0, 1),  # ud2
        ("31c9 f7f1", 0, 0, 2),  # div ecx
        ("48b80000000000000080 488b00", 13, 0, 10),  # a non-canonical address
    ],
    ids=["cli", "hlt", "mov cr3", "wrmsr", "selector", "ud2", "divide", "non-canonical"],
)
def test_a_fault_says_vector_and_error_with_rip_at_the_instruction(
    engine: X86Engine, code: str, vector: int, error: int, at: int
) -> None:
    (seen,) = BareGuest(engine, code).run()
    assert (seen.kind, seen.vector, seen.rip) == (FAULT, vector, CODE + at)
    if vector == 13:
        assert seen.error == error


@pytest.mark.parametrize(
    ("code", "entry", "error"),
    [
        ("488b0425 00900000", 0, 4),  # mov rax, [DATA]
        ("48890425 00900000", 0, 6),
        ("48890425 00900000", DATA | 5, 7),
        ("488b0425 00900000", DATA | 3, 5),
        ("48890425 00900000", DATA | 3, 7),
        ("b800900000 ffe0", DATA | 7 | 1 << 63, 0x15),
        ("b800900000 ffe0", 0, 0x14),
    ],
    ids=["read", "write", "write to read-only", "read of supervisor", "write of supervisor", "no execute", "fetch"],
)
def test_a_page_fault_says_error_code_and_address(engine: X86Engine, code: str, entry: int, error: int) -> None:
    guest = BareGuest(engine, code)
    guest.page(DATA >> 12, entry)
    (seen,) = guest.run()
    fetch = bool(error & 0x10)
    assert (seen.kind, seen.vector, seen.error, seen.address) == (FAULT, 14, error, DATA)
    assert seen.rip == (DATA if fetch else CODE)
    assert engine.registers.cr2 == DATA


def test_a_single_step_arrives_behind_the_instruction_with_the_step_bit(engine: X86Engine) -> None:
    guest = BareGuest(engine, "90 90 90")
    engine.registers.rflags |= r.FLAG_TF
    steps = guest.run(lambda _exit: len(guest.exits) < 3)
    assert [(step.vector, step.rip) for step in steps] == [(1, CODE + 1), (1, CODE + 2), (1, CODE + 3)]
    assert engine.registers.debug(6) & 1 << 14


def test_the_same_fault_again_and_again_stays_that_fault(engine: X86Engine) -> None:
    guest = BareGuest(engine, "66b81234 8ed8")

    def step_over(_exit: Exit) -> bool:
        engine.registers.rip = CODE + 4
        return len(guest.exits) < 50

    assert {(seen.vector, seen.error) for seen in guest.run(step_over)} == {(13, 0x3410)}
    assert {(seen.vector, seen.error) for _ in range(5) for seen in guest.run()} == {(13, 0x3410)}, (
        "after a stop as well"
    )


@pytest.mark.parametrize(("code", "vector", "length"), [("90 cd30", 0x30, 2), ("90 cc", 3, 1), ("90 cd03", 3, 2)])
@pytest.mark.parametrize("level", [0, 3])
def test_a_software_interrupt_arrives_at_the_instruction_whatever_its_gate(
    engine: X86Engine, code: str, vector: int, length: int, level: int
) -> None:
    if level < 3 and not engine.capabilities.full_privilege:
        pytest.skip("this engine runs no kernels")
    (seen,) = BareGuest(engine, code, level).run()
    assert (seen.kind, seen.vector, seen.length, seen.rip) == (SOFTWARE, vector, length, CODE + 1)


def test_int3_on_code_that_cannot_be_read_has_its_length(engine: X86Engine) -> None:
    if not engine.capabilities.execute_only:
        pytest.skip("no execute-only pages on this engine")
    guest = BareGuest(engine, "90 cc cd03")
    guest.page(CODE >> 12, CODE | 5 | 1 << 59)
    engine.guard_code()

    def behind(exit_: Exit) -> bool:
        engine.registers.rip += exit_.length
        return len(guest.exits) < 2

    assert [(seen.length, seen.rip) for seen in guest.run(behind)] == [(1, CODE + 1), (2, CODE + 2)]


def test_a_system_call_arrives_at_the_instruction_and_goes_where_it_is_sent(engine: X86Engine) -> None:
    guest = BareGuest(engine, "90 0f05 0f0b")

    def redirect(exit_: Exit) -> bool:
        if exit_.kind is not ExitKind.SYSTEM_CALL:
            return False
        engine.registers.rip += exit_.length
        return True

    call, after = guest.run(redirect)
    assert (call.kind, call.length, call.rip) == (ExitKind.SYSTEM_CALL, 2, CODE + 1)
    assert (after.vector, after.rip) == (6, CODE + 3)


@pytest.mark.parametrize(("code", "size"), [("e460", 1), ("66e560", 2), ("e560", 4)])
def test_a_port_read_gives_the_guest_the_value_that_the_handler_set(engine: X86Engine, code: str, size: int) -> None:
    guest = BareGuest(engine, "90" + code + "f4")
    engine.registers.gpr[0] = 0x1111_2222_3333_4444

    def answer(exit_: Exit) -> bool:
        exit_.value = 0xAABB_CCDD & ((1 << 8 * size) - 1)
        return exit_.kind is ExitKind.PORT_READ

    read, halt = guest.run(answer)
    assert (read.kind, read.port, read.size) == (ExitKind.PORT_READ, 0x60, size)
    assert (halt.kind, halt.vector) == (FAULT, 13)
    expected = {1: 0x1111_2222_3333_44DD, 2: 0x1111_2222_3333_CCDD, 4: 0xAABB_CCDD}[size]
    assert engine.registers.gpr[0] == expected


@pytest.mark.parametrize(("code", "size"), [("e660", 1), ("66e760", 2), ("e760", 4)])
def test_a_port_write_says_port_size_and_value(engine: X86Engine, code: str, size: int) -> None:
    guest = BareGuest(engine, "90" + code + "f4")
    engine.registers.gpr[0] = 0x1111_2222_AABB_CCDD
    write, halt = guest.run(lambda exit_: exit_.kind is ExitKind.PORT_WRITE)
    assert (write.kind, write.port, write.size) == (ExitKind.PORT_WRITE, 0x60, size)
    assert write.value & ((1 << 8 * size) - 1) == 0xAABB_CCDD & ((1 << 8 * size) - 1)
    assert (halt.kind, halt.vector) == (FAULT, 13)


def test_string_ports_move_memory_an_element_an_exit(engine: X86Engine) -> None:
    guest = BareGuest(engine, "f36c f4")
    engine.registers.gpr[r.RCX], engine.registers.gpr[r.RDI] = 3, DATA

    def answer(exit_: Exit) -> bool:
        exit_.value = 0x41 + len(guest.exits)
        return exit_.kind is ExitKind.PORT_READ

    assert [seen.kind for seen in guest.run(answer)] == [ExitKind.PORT_READ] * 3 + [FAULT]
    assert bytes(guest.memory[DATA : DATA + 3]) == b"BCD"


@pytest.mark.parametrize("code", ["e460", "e660", "ed", "ef", "f36e"], ids=["in", "out", "in dx", "out dx", "rep outs"])
def test_a_refused_port_faults_at_the_instruction_and_nothing_behind_it_is_done(
    user_ports: X86Engine, code: str
) -> None:
    engine = user_ports
    guest = BareGuest(engine, "90" + code + "48ffc3 c604250090000007 0f58c0 fec0 f4")
    state = engine.registers
    state.gpr[0], state.gpr[1], state.gpr[6] = 0x1234_5678, 2, DATA
    state.rflags |= r.FLAG_CF

    def refuse(exit_: Exit) -> bool:
        exit_.refused = True
        return exit_.kind is not FAULT

    first, fault = guest.run(refuse)
    assert first.kind in (ExitKind.PORT_READ, ExitKind.PORT_WRITE)
    assert (fault.kind, fault.vector, fault.error, fault.rip) == (FAULT, 13, 0, CODE + 1)
    assert (state.gpr[0], state.gpr[1], state.gpr[3], state.gpr[6]) == (0x1234_5678, 2, 0, DATA)
    assert state.rflags & r.FLAGS_STATUS == r.FLAG_CF
    assert guest.memory[DATA] == 0
    state.rip = CODE + 1 + len(code) // 2
    assert guest.run()[0].rip == CODE + 1 + len(code) // 2 + 3 + 8 + 3 + 2, "the guest goes on, with its own memory"
    assert (guest.memory[DATA], state.gpr[3]) == (7, 1)


def test_cpuid_is_reported_with_rip_at_it_and_stepped_over(engine: X86Engine) -> None:
    if not engine.capabilities.reports_identify:
        pytest.skip("CPUID does not exit on this engine")
    guest = BareGuest(engine, "90 0fa2 0f0b")

    def answer(exit_: Exit) -> bool:
        if exit_.kind is not ExitKind.IDENTIFY:
            return False
        engine.registers.gpr[0], engine.registers.gpr[3] = 7, 8
        return True

    identify, after = guest.run(answer)
    assert (identify.length, identify.rip) == (2, CODE + 1)
    assert (after.vector, after.rip) == (6, CODE + 3)
    assert (engine.registers.gpr[0], engine.registers.gpr[3]) == (7, 8)


def test_rdtsc_at_full_privilege_is_reported_and_rdtscp_is_undefined(engine: X86Engine) -> None:
    if not engine.capabilities.full_privilege:
        pytest.skip("this engine runs no kernels")
    guest = BareGuest(engine, "0f31 48ffc3 0f01f9 48ffc3 f4", level=0)

    def answer(exit_: Exit) -> bool:
        if exit_.kind is not ExitKind.TIME_STAMP:
            return False
        engine.registers.gpr[0], engine.registers.gpr[2] = 0x55, 0x66
        return True

    stamp, undefined = guest.run(answer)
    assert (stamp.kind, stamp.length, stamp.rip) == (ExitKind.TIME_STAMP, 2, CODE)
    assert (undefined.kind, undefined.vector, undefined.rip) == (FAULT, 6, CODE + 5)
    assert (engine.registers.gpr[0], engine.registers.gpr[2], engine.registers.gpr[3]) == (0x55, 0x66, 1)


def test_rdtsc_faults_in_user_mode_when_the_kernel_says_so(engine: X86Engine) -> None:
    if not engine.capabilities.time_stamp_faults:
        pytest.skip("RDTSC cannot be made to fault on this engine")
    guest = BareGuest(engine, "0f31")
    engine.set_control(engine.registers.control(0), engine.registers.control(4) | r.CR4_TSD, 0xD01)
    (seen,) = guest.run()
    assert (seen.kind, seen.vector, seen.rip) == (FAULT, 13, CODE)


def test_a_halt_leaves_rip_behind_it(engine: X86Engine) -> None:
    if not engine.capabilities.full_privilege:
        pytest.skip("this engine runs no kernels")
    (seen,) = BareGuest(engine, "90 f4", level=0).run()
    assert (seen.kind, seen.rip) == (ExitKind.HALT, CODE + 2)


def test_a_fetch_from_where_nothing_is_says_so(engine: X86Engine) -> None:
    guest = BareGuest(engine, "b800900000 ffe0")
    guest.page(DATA >> 12, 1 << 30 | 7)
    (seen,) = guest.run()
    assert (seen.kind, seen.rip) == (ExitKind.UNBACKED, DATA)


def test_device_memory_is_reached_through_a_page_entry(engine: X86Engine) -> None:
    written: list[tuple[int, int, int]] = []
    engine.map_mmio(1 << 30, 0x1000, lambda offset, size: offset | size << 8, lambda *access: written.append(access))
    guest = BareGuest(engine, "8b042510900000 6689042520900000 f4")  # mov eax, [DATA + 16]; mov [DATA + 32], ax; hlt
    guest.page(DATA >> 12, 1 << 30 | 7)
    assert guest.run()[0].vector == 13
    assert engine.registers.gpr[0] == 0x410
    assert written == [(0x20, 2, 0x410)]


def test_an_address_that_no_entry_maps_is_a_page_fault_like_any_other(engine: X86Engine) -> None:
    guest = BareGuest(engine, f"488b0425 {HOLE.to_bytes(4, 'little').hex()}")
    (seen,) = guest.run()
    assert (seen.vector, seen.error, seen.address) == (14, 4, HOLE)


def test_execute_only_pages_are_fetched_and_not_read(engine: X86Engine) -> None:
    if not engine.capabilities.execute_only:
        pytest.skip("no execute-only pages on this engine")
    guest = BareGuest(engine, "90 488b0425 00800000")  # nop; mov rax, [CODE]
    guest.page(CODE >> 12, CODE | 5 | 1 << 59)
    engine.guard_code()
    (seen,) = guest.run()
    assert (seen.kind, seen.vector, seen.error, seen.address, seen.rip) == (FAULT, 14, 0x25, CODE, CODE + 1)
    for by_control in (True, False):
        if by_control:
            engine.set_control(engine.registers.control(0), r.CR4_PAE, 0xD01)
        else:
            engine.guard_code(False)
        engine.flush_tlb()
        engine.registers.rip = CODE
        (seen,) = guest.run()
        assert (seen.vector, seen.rip) == (6, CODE + 9)
        engine.guard_code()
        engine.flush_tlb()
        engine.registers.rip = CODE
        (seen,) = guest.run()
        assert seen.error == 0x25


@pytest.mark.parametrize("code", ["0f01ee", "0f01ef"], ids=["rdpkru", "wrpkru"])
def test_software_finds_no_protection_keys_while_code_is_not_guarded(engine: X86Engine, code: str) -> None:
    guest = BareGuest(engine, code)
    if engine.capabilities.execute_only:
        engine.guard_code()
        engine.guard_code(False)
        engine.flush_tlb()
    (seen,) = guest.run()
    assert (seen.vector, seen.rip) == (6, CODE)


def test_selectors_of_other_levels_fault_with_their_index(engine: X86Engine) -> None:
    (seen,) = BareGuest(engine, f"66b8{KERNEL_CODE.to_bytes(2, 'little').hex()} 8ed8").run()
    assert (seen.vector, seen.error, seen.rip) == (13, KERNEL_CODE, CODE + 4)
