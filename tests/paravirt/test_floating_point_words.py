"""AArch64, ARMv7, MIPS32: what enables floating point is a word. Changing it costs no exit, and floating point faults
where it must, in the kernel as well."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.machine import Limits
from paravirt import abi
from tests.bt.image.image_files import Part
from tests.paravirt.para.para_tiny import FORMS, assemble, file_of

VECTORS = 0x1000
"""Of the exception vectors, from the kernel's beginning."""
FAULTED = 0xFA17


@dataclass(frozen=True)
class Kernel:
    """What a kernel of one instruction set is put together from."""

    start: str
    """To where it is linked, in reach of fixups, with a handler of exceptions."""
    on: str
    off: str
    use: str
    read: str
    """Into the register `seen`."""
    put: str
    """{value} becomes a floating-point register."""
    get: str
    """The value becomes the register `seen`."""
    loop: str
    end: str
    handler: int
    """Offset of the handler from the vectors."""
    seen: int
    enabled: int
    faulted: str
    late: int = 0
    """Exits of a pair between which floating point is used."""
    call: int = 0


def _tables() -> Part:
    """AArch64: the guest's first 2 MiB where it is, and where it is linked."""
    words = [0] * (5 * 512)
    words[0], words[512 + 1] = 0x4010_5003, 0x4000_0701
    words[1024 + 256], words[1536], words[2048 + 0x40] = 0x4010_7003, 0x4010_8003, 0x4000_0701
    return Part(".tables", struct.pack("<2560Q", *words), 0xFFFF_8000_0810_4000, 0x4010_4000, 6)


KERNELS = {
    "aarch64": Kernel(
        "ldr x0, =0x40104000; msr ttbr0_el1, x0; ldr x0, =0x40106000; msr ttbr1_el1, x0;"
        "mov x0, #0xff; msr mair_el1, x0;"
        "ldr x0, =0x280100010; msr tcr_el1, x0; mrs x0, sctlr_el1; orr x0, x0, #1; msr sctlr_el1, x0; isb;"
        "ldr x0, =0xffff800008101000; msr vbar_el1, x0; ldr x0, =0xffff800008100044; br x0; nop; nop;",
        "movz x0, #0x30, lsl #16; msr cpacr_el1, x0; nop;",
        "msr cpacr_el1, xzr; nop;",
        "fadd d0, d0, d0;",
        "mrs x20, cpacr_el1; nop;",
        "movz x0, #{value}; fmov d1, x0;",
        "fmov x20, d1;",
        "movz x1, #{low}; movk x1, #{high}, lsl #16; again: {body} subs x1, x1, #1; b.ne again;",
        "movz x0, #0x8400, lsl #16; movk x0, #8; hvc #0; here: b here",
        0x200,
        20,
        3 << 20,
        "movz x20, #0xfa17; mrs x21, esr_el1;",
    ),
    "armv7": Kernel(
        "ldr r0, =0x40104000; mcr p15, 0, r0, c2, c0, 0; mov r1, #1; mcr p15, 0, r1, c3, c0, 0;"
        "mrc p15, 0, r1, c1, c0, 0; orr r1, r1, #1; mcr p15, 0, r1, c1, c0, 0; mov r2, pc; add r2, r2, #0x7e000000;"
        "add r2, r2, #0xf00000; add r2, r2, #12; mov pc, r2; ldr r1, =0xbf001000; mcr p15, 0, r1, c12, c0, 0;"
        "mov r1, #0xf00000; mcr p15, 0, r1, c1, c0, 2;",
        "mov r0, #0x40000000; vmsr fpexc, r0;",
        "mov r0, #0; vmsr fpexc, r0;",
        "vadd.f64 d0, d0, d0;",
        "vmrs r4, fpexc;",
        "mov r0, #{value}; vmov s2, r0;",
        "vmov r4, s2;",
        "ldr r5, ={count}; again: {body} subs r5, r5, #1; bne again;",
        "ldr r0, =0x84000008; .word 0xe1400070; here: b here",
        4,
        4,
        1 << 30,
        "ldr r4, =0xfa17;",
    ),
    "mips32": Kernel(
        ".set noreorder; lui $8, 0x8010; ori $8, $8, 0x1000; .word 0x40887801;"
        "lui $8, 0x1000; mtc0 $8, $12; nop; lui $10, 0x1000; lui $11, 0x3000;",
        "mtc0 $11, $12; nop;",
        "mtc0 $10, $12; nop;",
        "add.d $f0, $f0, $f0;",
        "mfc0 $20, $12; nop;",
        "ori $8, $0, {value}; mtc1 $8, $f2;",
        "mfc1 $20, $f2;",
        "lui $9, {high}; ori $9, $9, {low}; again: {body} addiu $9, $9, -1; bne $9, $0, again; nop;",
        "lui $8, 0xb800; sb $0, 0xf4($8); here: b here; nop",
        0x180,
        20,
        0x3000_0000,
        ".set noreorder; ori $20, $0, 0xfa17;",
        late=1,
        call=1,
    ),
}
ISAS = tuple(KERNELS)
FORMS_HERE = {"aarch64": replace(FORMS["aarch64"], tables=(_tables(),))}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a source in a mode to its clean end; the hypervisor."""
    kernel = KERNELS[isa]
    for name, form in FORMS_HERE.items():
        monkeypatch.setitem(FORMS, name, form)

    def run(source: str, mode: str = "inline") -> Any:
        code = assemble(isa, kernel.start + source + kernel.end)
        handler = assemble(isa, kernel.faulted + kernel.end)
        assert len(code) <= VECTORS
        code = code.ljust(VECTORS + kernel.handler, b"\0") + handler
        path = file_of(isa, code, tmp_path, note=b"")
        options = Options(mode=mode, memory=64 << 20, cache=False, limits=Limits(host_seconds=60))
        session = Session(load(path), options, lambda _data: None)
        try:
            outcome = session.run()
            assert outcome.clean, outcome
            return session.driver
        finally:
            session.close()

    return run


def loop(isa: str, count: int, body: str) -> str:
    return KERNELS[isa].loop.format(count=count, low=count & 0xFFFF, high=count >> 16, body=body)


def pairs(isa: str, count: int) -> str:
    """Disable and enable, so often."""
    kernel = KERNELS[isa]
    return loop(isa, count, kernel.on + kernel.off)


def exits(driver: Any) -> dict[Any, int]:
    return {key: count for key, count in driver.exits.counts.items() if key[1] != "budget"}


def seen(isa: str, driver: Any) -> int:
    return int(driver.vcpu.gpr[KERNELS[isa].seen])


@pytest.mark.parametrize("mode", ["inline", "auto"])
def test_twenty_thousand_pairs_cost_no_exit(isa: str, run: Any, mode: str) -> None:
    few = exits(run(pairs(isa, 10), mode))
    assert exits(run(pairs(isa, 20_000), mode)) == few
    assert sum(few.values()) < 40


def test_where_they_trap_each_pair_is_two_exits(isa: str, run: Any) -> None:
    few, more = (sum(exits(run(pairs(isa, count), "trap")).values()) for count in (10, 110))
    assert more - few == 200


def test_two_processes_with_contents_of_their_own_switch_as_often_as_they_like(isa: str, run: Any) -> None:
    """Each is given its own contents when it is switched to, and has them. Where the processor asks the word nothing
    exits; on MIPS32 each use behind an enable does, and each disable behind a use."""
    kernel = KERNELS[isa]

    def process(value: int) -> str:
        return kernel.on + kernel.put.format(value=value) + kernel.use + kernel.get + kernel.off

    few, more = (run(loop(isa, count, process(0x11) + process(0x22))) for count in (10, 1010))
    assert seen(isa, more) == 0x22
    added = {key: count - exits(few).get(key, 0) for key, count in exits(more).items()}
    assert added.pop(("floating point enabled", "fault"), 0) == 2000 * kernel.late
    assert added.pop(("WRITE_SYSTEM_REGISTER", "hypercall"), 0) == 2000 * kernel.call
    assert not any(added.values())


@pytest.mark.parametrize("mode", ["inline", "auto", "trap"])
def test_floating_point_faults_in_the_kernel_as_soon_as_it_is_disabled(isa: str, run: Any, mode: str) -> None:
    kernel = KERNELS[isa]
    used = kernel.on + kernel.use + kernel.off
    for source in (kernel.off, kernel.on + kernel.off, used, used + kernel.on + kernel.off):
        assert seen(isa, run(source + kernel.use, mode)) == FAULTED


@pytest.mark.parametrize("mode", ["inline", "auto", "trap"])
def test_floating_point_runs_as_soon_as_it_is_enabled_and_reads_show_it(isa: str, run: Any, mode: str) -> None:
    kernel = KERNELS[isa]
    driver = run(kernel.off + kernel.on + kernel.use + kernel.off + kernel.on + kernel.use + kernel.read, mode)
    assert seen(isa, driver) == kernel.enabled
    assert seen(isa, run(kernel.on + kernel.use + kernel.off + kernel.read, mode)) == kernel.enabled & 0x1000_0000


@pytest.mark.parametrize("isa", ["mips32"], indirect=True)
def test_the_first_use_may_stand_in_a_delay_slot(run: Any, isa: str) -> None:
    slot = "ori $20, $0, 5; b over; mtc1 $20, $f2; ori $20, $0, 1; over: mfc1 $8, $f2; addu $20, $20, $8;"
    driver = run(KERNELS[isa].on + slot)
    assert seen(isa, driver) == 10
    assert driver.exits.counts["floating point enabled", "fault"] == 1


def test_nonsense_in_the_words_changes_nothing_but_the_rights_to_floating_point(isa: str, run: Any) -> None:
    driver = run(KERNELS[isa].off)
    vcpu = driver.vcpu
    before = vcpu.status if isa == "mips32" else 0
    words = vcpu.rights if isa != "mips32" else driver.shared[abi.MIPS_STATUS // 4 : abi.MIPS_STATUS // 4 + 2]
    for index in range(len(words)):
        words[index] = 0xFFFF_FFFF
    if isa == "mips32":
        assert vcpu.status == before | abi.MIPS_STATUS_BITS
        words[0] = 0
        assert vcpu.status == before & ~abi.MIPS_STATUS_BITS
    elif isa == "armv7":
        assert (vcpu.cpacr, vcpu.fpexc) == (0x00F0_0000, 1 << 30)
    else:
        assert vcpu.cpacr == 3 << 20
