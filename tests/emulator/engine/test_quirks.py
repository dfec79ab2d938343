"""Unicorn's departures from the architecture, each shown raw: a test that fails here says that upstream mended one."""

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emulator.engine.unicorn.engine import UnicornEngine
from emulator.engine.unicorn.quirks import QUIRKS
from emulator.isa.x86.room import CODE as ROOM_CODE
from tests.emulator.engine.bare_engine import BareGuest
from tests.emulator.engine.raw_unicorn import (
    CODE,
    DATA,
    GDT,
    NO_EXECUTE,
    PAGES,
    ROOT,
    SIZE,
    STACK,
    USER_CODE,
    RawUnicorn,
    names,
    unicorn,
)

LOAD_BAD_DS = "8ed8"
"""mov ds, ax; RAX holds a selector that the table has not."""
FUNCTION = CODE + 0x1000


def test_every_quirk_has_a_test_and_every_test_a_quirk() -> None:
    module = ast.parse(Path(__file__).read_text())
    tests = {node.name for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    tests.discard("test_every_quirk_has_a_test_and_every_test_a_quirk")
    assert sorted(tests) == sorted(quirk.test for quirk in QUIRKS)
    assert len({quirk.name for quirk in QUIRKS}) == len(QUIRKS)


def test_a_second_general_protection_fault_arrives_as_a_double_fault() -> None:
    raw = RawUnicorn("b834120000" + LOAD_BAD_DS * 2, skip=2)
    assert raw.run() == [(13, CODE + 5), (8, CODE + 7)]


def test_the_first_fault_after_a_stop_arrives_as_a_double_fault() -> None:
    raw = RawUnicorn("f4" + LOAD_BAD_DS)
    assert raw.run() == []
    raw.set("rax", 0x1234)
    raw.resume(CODE + 1)
    assert raw.events == [(8, CODE + 1)]


def test_the_end_of_a_run_outside_long_mode_overwrites_the_page_fault_address() -> None:
    for listed in (False, True):
        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        uc.ctl_exits_enabled(listed)
        uc.mem_map(0, SIZE)
        uc.mem_write(ROOT, (PAGES | 7).to_bytes(4, "little"))
        uc.mem_write(PAGES, b"".join((page << 12 | 7).to_bytes(4, "little") for page in range(512)))
        uc.mem_write(CODE, b"\xf4")
        uc.reg_write(names.UC_X86_REG_CR3, ROOT)
        uc.reg_write(names.UC_X86_REG_CR0, 0x8001_0011)
        uc.reg_write(names.UC_X86_REG_CR2, 0x1234)
        uc.emu_start(CODE, DATA << 12)
        assert (uc.reg_read(names.UC_X86_REG_CR2) == 0x1234) is listed


def test_a_port_is_read_at_user_level_without_a_fault() -> None:
    raw = RawUnicorn("e460", user=True)
    ports: list[int] = []

    def hook(_uc: object, port: int, _size: int, _data: object) -> int:
        ports.append(port)
        return 0

    raw.hook(names.UC_X86_INS_IN, hook)
    assert raw.run() == [(13, CODE + 2)]  # HLT
    assert ports == [0x60]


def test_the_block_goes_on_after_a_stop_in_a_hook() -> None:
    raw = RawUnicorn("e460 c6042500000200 07")  # in al, 0x60; mov byte [DATA], 7
    raw.hook(names.UC_X86_INS_IN, lambda uc, _port, _size, _data: uc.emu_stop() or 0)
    raw.run()
    assert raw.word(DATA) == 7


def test_code_forgotten_within_a_block_loses_rip() -> None:
    raw = RawUnicorn("0fa2 0fa2 e460")
    seen: list[int] = []
    raw.hook(names.UC_X86_INS_CPUID, lambda uc, _data: uc.ctl_flush_tb() or 1)

    def hook(_uc: object, _port: int, _size: int, _data: object) -> int:
        seen.append(raw.rip)
        return 0

    raw.hook(names.UC_X86_INS_IN, hook)
    raw.run()
    assert seen != [CODE + 4]


def test_ins_stores_a_zero_before_the_port_is_read() -> None:
    raw = RawUnicorn("6c")
    raw.set("rdi", DATA)
    raw.word(DATA, 0xFF)
    seen: list[int] = []

    def hook(_uc: object, _port: int, _size: int, _data: object) -> int:
        seen.append(raw.word(DATA))
        return 0x55

    raw.hook(names.UC_X86_INS_IN, hook)
    raw.run()
    assert seen == [0]
    assert raw.word(DATA) == 0x55


def test_syscall_does_nothing_and_adds_two_to_what_its_hook_leaves() -> None:
    raw = RawUnicorn("0f05", user=True)
    assert raw.run() == [(13, CODE + 2)]
    raw = RawUnicorn("0f05", user=True)
    raw.uc.mem_write(CODE + 0x100, b"\xf4" * 4)
    seen: list[int] = []

    def hook(_uc: object, _data: object) -> None:
        seen.append(raw.rip)
        raw.set("rip", CODE + 0x100)

    raw.hook(names.UC_X86_INS_SYSCALL, hook)
    assert raw.run() == [(13, CODE + 0x102)]
    assert seen == [CODE]


def test_sysenter_does_nothing() -> None:
    assert RawUnicorn("0f34", user=True).run() == [(13, CODE + 2)]


def test_int_is_not_checked_against_its_gate_and_leaves_rip_behind() -> None:
    assert RawUnicorn("cd30", user=True).run() == [(0x30, CODE + 2)]
    assert RawUnicorn("cc", user=True).run() == [(3, CODE + 1)]


def test_prefixes_of_int_cannot_be_told() -> None:
    engine = BareGuest(UnicornEngine(), "f3cd30")
    exits = engine.run()
    engine.close()
    assert (exits[0].length, exits[0].rip - ROOM_CODE) == (2, 1)


def invalid(code: str) -> list[int]:
    raw = RawUnicorn(code)
    seen: list[int] = []

    def hook(uc: object, _data: object) -> bool:
        seen.append(raw.rip)
        raw.uc.emu_stop()
        return True

    raw.uc.hook_add(unicorn.UC_HOOK_INSN_INVALID, hook)
    assert raw.run() == []
    return seen


def test_int1_arrives_as_an_invalid_instruction() -> None:
    assert invalid("f1") == [CODE]


def test_rdpmc_arrives_as_an_invalid_instruction() -> None:
    assert invalid("0f33") == [CODE]


def test_umip_is_accepted_and_does_nothing() -> None:
    raw = RawUnicorn("0f010425 00000200", user=True)  # sgdt [DATA]
    raw.set("cr4", 0x820)
    assert raw.run() == [(13, CODE + 8)]
    assert raw.get("cr4") == 0x820
    assert raw.word(DATA) & 0xFFFF == 39


def test_cr8_forgets_what_is_written() -> None:
    raw = RawUnicorn("b805000000 440f22c0 440f20c3")  # mov cr8, 5; mov rbx, cr8
    raw.set("rbx", 9)
    raw.run()
    assert raw.get("rbx") == 0


def test_an_msr_that_is_not_there_reads_as_zero() -> None:
    raw = RawUnicorn("0f30 0f32")
    raw.set("rcx", 0xDEAD)
    raw.set("rax", 5)
    assert raw.run() == []
    assert raw.get("rax") == 0


def test_cr0_accepts_what_64_bit_mode_forbids() -> None:
    raw = RawUnicorn("0f22c0")
    raw.set("rax", 0xFFFF_FFFF_8001_0010)  # PE off, reserved bits on
    assert raw.run() == []


def call_by_gate() -> None:
    """Call level 0 from level 3; nothing has loaded TR."""
    raw = RawUnicorn("ff1c25 00000200", user=True)
    raw.uc.mem_write(DATA + 4, b"\x2b\x00")
    gate = CODE & 0xFFFF | 8 << 16 | 0xEC << 40 | (CODE >> 16) << 48
    raw.word(GDT + 40, gate)
    raw.word(GDT + 48, 0)
    raw.uc.reg_write(names.UC_X86_REG_GDTR, (0, GDT, 55, 0))
    raw.run()


def test_a_call_gate_without_a_task_state_segment_aborts_the_process() -> None:
    code = "import tests.emulator.engine.test_quirks as q; q.call_by_gate()"
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True)
    assert ended.returncode == -signal.SIGABRT, ended.stderr


def patched(stores: list[int], entry: int) -> int:
    """Run FUNCTION (mov eax, 1; ret), store 2 at these offsets of its alias at DATA, run it again: EAX."""
    code = b""

    def call() -> bytes:
        return b"\xe8" + (FUNCTION - (CODE + len(code) + 5)).to_bytes(4, "little", signed=True)

    code += call()
    for offset in stores:
        code += b"\xc6\x04\x25" + (DATA + offset).to_bytes(4, "little") + b"\x02"
    code += call()
    raw = RawUnicorn(code.hex())
    raw.uc.mem_write(FUNCTION, bytes.fromhex("b801000000c3"))
    raw.word(PAGES + 8 * (DATA >> 12), FUNCTION | entry)
    assert raw.run() == []
    return raw.get("rax")


def test_a_store_through_a_page_without_execute_right_leaves_stale_code() -> None:
    assert patched([1], 7) == patched([0x800, 1], 7) == 2, "with execute right every store is seen"
    assert patched([1], 7 | NO_EXECUTE) == 2, "the store that fills the TLB is seen"
    assert patched([0x800, 1], 7 | NO_EXECUTE) == 1, "no other store is"


def test_a_host_store_to_executed_code_is_stale() -> None:
    raw = RawUnicorn("b801000000")
    raw.run()
    raw.uc.mem_write(CODE + 1, b"\x02")
    raw.run()
    assert raw.get("rax") == 1


def test_a_fetch_fault_on_the_second_page_of_a_block_is_raised_at_its_start() -> None:
    start = FUNCTION - 5
    raw = RawUnicorn("90")
    raw.uc.mem_write(start, bytes.fromhex("48ffc3 48b8"))  # inc rbx; mov rax, imm64, most of it on the next page
    raw.word(PAGES + 8 * (FUNCTION >> 12), 0)
    raw.set("rbx", 0)
    assert raw.run(start) == [(14, start)]
    assert raw.get("rbx") == 0
    assert raw.get("cr2") == FUNCTION


def test_a_fetch_outside_memory_ends_the_emulation() -> None:
    raw = RawUnicorn("90")
    raw.word(PAGES + 8 * (DATA >> 12), 1 << 30 | 7)
    with pytest.raises(unicorn.UcError, match="UC_ERR_FETCH_UNMAPPED"):
        raw.run(DATA)
    assert raw.events == []


def test_a_load_outside_memory_ends_the_emulation() -> None:
    raw = RawUnicorn("48a10000020000000000")  # mov rax, [DATA]
    raw.word(PAGES + 8 * (DATA >> 12), 1 << 30 | 7)
    with pytest.raises(unicorn.UcError, match="UC_ERR_READ_UNMAPPED"):
        raw.run()
    assert raw.events == []


def test_writing_cs_does_not_change_the_privilege_level() -> None:
    raw = RawUnicorn("fa")  # cli
    raw.uc.reg_write(names.UC_X86_REG_CS, USER_CODE)
    assert raw.run() == []
    assert raw.get("cs") == USER_CODE


def test_rdtsc_shows_the_hosts_time() -> None:
    for code in ("0f31", "0f01f9"):
        seen = set()
        for _ in range(3):
            raw = RawUnicorn(code)
            raw.run()
            seen.add(raw.get("rdx") << 32 | raw.get("rax"))
        assert len(seen) > 1
    with pytest.raises(unicorn.UcError, match="UC_ERR_ARG"):
        RawUnicorn("90").hook(names.UC_X86_INS_RDTSC, lambda: None)


def test_protection_keys_work_though_cpuid_has_none() -> None:
    raw = RawUnicorn("b807000000 31c9 0fa2")
    raw.run()
    assert not raw.get("rcx") & 1 << 3
    raw = RawUnicorn("90")
    raw.set("cr4", 1 << 22 | 0x20)
    assert raw.get("cr4") & 1 << 22
    engine = UnicornEngine()
    assert engine.capabilities.execute_only
    engine.close()


def test_far_transfers_do_not_set_accessed_bits() -> None:
    raw = RawUnicorn("90", user=True)
    unaccessed = 0x00CF_F200_0000_FFFF, 0x00AF_FA00_0000_FFFF
    for index, descriptor in zip((3, 4), unaccessed, strict=True):
        raw.word(GDT + 8 * index, descriptor)
    assert raw.run() == [(13, CODE + 1)]  # by IRETQ to user level, up to the HLT
    assert (raw.word(GDT + 24), raw.word(GDT + 32)) == unaccessed
    raw = RawUnicorn("48cb")  # retfq
    raw.word(GDT + 8, 0x00AF_9A00_0000_FFFF)
    raw.word(STACK, CODE + 0x100)
    raw.word(STACK + 8, 8)
    raw.uc.mem_write(CODE + 0x100, b"\xf4")
    assert raw.run() == []
    assert raw.rip == CODE + 0x101
    assert raw.word(GDT + 8) == 0x00AF_9A00_0000_FFFF


def test_misaligned_accesses_do_not_fault() -> None:
    raw = RawUnicorn("9c 810c2400000400 9d 48a10100020000000000", user=True)  # set AC; mov rax, [DATA + 1]
    raw.set("cr0", 0x8005_0011)
    assert raw.run() == [(13, CODE + 19)]
    assert raw.get("eflags") & 1 << 18
    raw = RawUnicorn("0f280425 08000200")  # movaps xmm0, [DATA + 8]
    raw.set("cr4", 0x620)
    assert raw.run() == []
    assert raw.rip == CODE + 9


def test_a_data_watchpoint_never_fires() -> None:
    code = "b800000200 0f23c0 b801000100 0f23f8 c6042500000200 07"  # DR0 = DATA, DR7 = L0, store; mov byte [DATA], 7
    raw = RawUnicorn(code, skip=0)
    assert raw.run() == []
    assert raw.word(DATA) == 7
    assert raw.get("dr7") & 0x1_0001 == 0x1_0001
