"""CR0.TS is a word: setting and clearing it costs no exit, and floating point faults where it must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.machine import EndKind, Limits, Outcome
from tests.paravirt.para.para_tiny import assemble, file_of

HIGH = {
    "x86-64": "mov eax, 0x1004000; mov cr3, rax; lea rax, [rip + 9]; mov rdx, 0xffffffff80000000; add rax, rdx;"
    "jmp rax;",
    "i386": "mov eax, 0x1004000; mov cr3, eax; mov eax, cr4; or eax, 0x10; mov cr4, eax; mov eax, cr0;"
    "or eax, 0x80000000; mov cr0, eax; mov eax, 0xc1000023; jmp eax;",
}
"""To where the kernel is linked, in reach of fixups."""
SET_TS = "mov rax, cr0; or eax, 8; mov cr0, rax; mov edx, 0x11111111;"
CLTS = "clts; mov edx, 0x22222222;"
FNINIT = "fninit; mov edx, 0x33333333;"
READ = "mov rbx, cr0; mov edx, 0x44444444;"
END = "mov al, 0; out 0xf4, al"


@pytest.fixture(params=HIGH)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., tuple[Outcome, Any]]:
    """Runs a source in a mode: how it ended, and its hypervisor."""

    def run(source: str, mode: str = "inline") -> tuple[Outcome, Any]:
        isa = request.param
        for register in ("rax", "rbx") if isa == "i386" else ():
            source = source.replace(register, "e" + register[1:])
        path = file_of(isa, assemble(isa, HIGH[isa] + "nop;" + source + END), tmp_path, note=b"")
        options = Options(mode=mode, memory=64 << 20, cache=False, limits=Limits(host_seconds=60))
        session = Session(load(path), options, lambda _data: None)
        try:
            return session.run(), session.driver
        finally:
            session.close()

    return run


def exits(driver: Any, operation: Operation) -> int:
    return sum(count for (name, _), count in driver.exits.counts.items() if name == operation.name)


def switches(count: int) -> str:
    """Set TS once, and then, so often: clear it, set it again."""
    body = f"again: {CLTS} mov cr0, rax; mov edx, 0x11111111;"
    return f"{SET_TS} mov ecx, {count}; {body} dec ecx; jnz again; {READ}"


@pytest.mark.parametrize("count", [1, 20_000])
def test_switches_between_tasks_that_use_no_floating_point_cost_no_exit(run: Any, count: int) -> None:
    outcome, driver = run(switches(count))
    assert outcome.kind is EndKind.DEBUG_EXIT
    assert exits(driver, Operation.CLEAR_TASK_SWITCHED) == 0
    assert driver.exits.counts["WRITE_CONTROL_REGISTER", "hypercall"] == 1, "the real processor's is set by that"
    assert driver.vcpu.gpr[3] & r.CR0_TS
    assert driver.vcpu.cr0 & r.CR0_TS


def test_where_they_trap_each_switch_is_two_exits(run: Any) -> None:
    few, more = (run(switches(count), "trap")[1] for count in (10, 110))
    assert exits(more, Operation.CLEAR_TASK_SWITCHED) == 110
    writes = [exits(driver, Operation.WRITE_CONTROL_REGISTER) for driver in (few, more)]
    assert writes[1] - writes[0] == 100


def test_floating_point_that_was_enabled_by_a_word_runs_and_the_processor_follows_once(run: Any) -> None:
    outcome, driver = run(SET_TS + CLTS + FNINIT * 3 + READ)
    assert outcome.kind is EndKind.DEBUG_EXIT
    assert not driver.vcpu.gpr[3] & r.CR0_TS
    assert driver.exits.counts["floating point enabled", "late"] == 1
    assert not driver.vcpu.real_switched


@pytest.mark.parametrize("mode", ["inline", "trap"])
@pytest.mark.parametrize(
    "source", [SET_TS, SET_TS + CLTS + SET_TS, SET_TS + CLTS + FNINIT + SET_TS], ids=["set", "again", "after use"]
)
def test_floating_point_faults_in_the_kernel_as_soon_as_ts_is_set(run: Any, source: str, mode: str) -> None:
    outcome, driver = run(source + FNINIT, mode)
    assert outcome.kind is EndKind.TRIPLE_FAULT  # nothing handles it
    assert driver.vcpu.cr0 & r.CR0_TS


def test_what_else_is_written_to_cr0_asks_the_hypervisor(run: Any) -> None:
    too = SET_TS.replace("8", "0xc", 1)  # EM as well
    outcome, driver = run(SET_TS + CLTS + too + READ + FNINIT)
    assert outcome.kind is EndKind.TRIPLE_FAULT
    assert driver.vcpu.gpr[3] & (r.CR0_TS | r.CR0_EM) == r.CR0_TS | r.CR0_EM
    assert driver.exits.counts["WRITE_CONTROL_REGISTER", "hypercall"] == 2


def test_nonsense_in_the_words_changes_nothing_but_ts(run: Any) -> None:
    _, driver = run(SET_TS)
    before = driver.vcpu.cr0
    vcpu = driver.vcpu
    for word in (vcpu.CR0_WORD, *range(vcpu.SWITCHED_WORD, vcpu.SWITCHED_WORD + 3)):
        driver.shared[word] = 0xFFFF_FFFF
    assert driver.vcpu.cr0 == before
    driver.shared[vcpu.CR0_WORD] = 0
    assert driver.vcpu.cr0 == before & ~r.CR0_TS
