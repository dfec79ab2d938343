"""Deprivileged guests on the host's own processor: the same hypervisor and the same rewritten guests as on any engine.

Skipped, with the reason that the engine gives, where KVM cannot be had.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bt import guests
from bt.image import load
from bt.initramfs import Entry, initramfs_of, read_member
from bt.session import Options, Session, read_initrd
from bt.verify import verify
from bt.verify.engines import compare_operations
from bt.verify.guest import find
from bt.verify.observation import observe
from emulator.engine.kvm.engine import KvmEngine
from emulator.engine.protocol import Capabilities
from emulator.errors import EngineMissing, RetrapError
from emulator.machine import EndKind, Limits
from paravirt.hypervisor import Hypervisor

pytestmark = pytest.mark.kvm
SAMPLE = Path(__file__).parents[2] / "samples/x86_64/sample.elf"
LIMITS = Limits(None, 200.0)
QUICK = (
    *("registers", "tables", "segments", "returns", "flags", "exceptions", "paging", "ports"),
    *("interrupts.timer", "interrupts.queued", "interrupts.sti", "interrupts.popf", "interrupts.masked", "user."),
)
"""Prefixes of checks that take less than a second, by traps alone as well."""
LONG = (
    *("processes", "memory", "compatibility", "self-modifying", "user-self-modifying"),
    *("interrupts.million", "interrupts.nested", "interrupts.flag", "interrupts.hlt", "interrupts.iretq"),
)
"""Those that exit up to a hundred thousand times."""
FEWER = " rounds=1000"
"""Of each form of self-modifying code, where each round exits several times."""
NEEDS: dict[str, Callable[[Capabilities], bool]] = {
    "exceptions.device-not-available": lambda can: can.task_switched_faults,
    "user.time-stamp-disable": lambda can: can.time_stamp_faults,
    "user.io-privilege-level": lambda can: can.shows_io_privilege,
    # A second tick may come before CLI where time is the host's: exactly one is a promise of counted progress alone.
    "interrupts.sti-hlt": lambda can: can.deterministic,
    "interrupts.hlt": lambda can: can.deterministic,
}
"""Checks of what not every host's KVM can do, and the capability that says so."""


@pytest.fixture(scope="module")
def capabilities() -> Capabilities:
    try:
        engine = KvmEngine()
    except EngineMissing as error:
        pytest.skip(str(error))
    engine.close()
    return engine.capabilities


def console_of(mode: str, only: str = "") -> tuple[str, EndKind]:
    """What the sample prints on KVM."""
    printed = bytearray()
    line = f"only={only}{FEWER if only.endswith(('modifying', 'nested')) else ''}"
    options = Options(mode=mode, engine="kvm", command_line=line, limits=LIMITS, cache=False)
    session = Session(load(SAMPLE), options, printed.extend)
    try:
        outcome = session.run()
    finally:
        session.close()
    return printed.decode(), outcome.kind


def failures(text: str, capabilities: Capabilities) -> list[str]:
    """Failed checks that this host's KVM could do."""
    beyond = tuple(name for name, able in NEEDS.items() if not able(capabilities))
    return [line for line in text.splitlines() if line.startswith("FAIL") and not line[5:].startswith(beyond or "\0")]


@pytest.mark.parametrize("mode", ["trap", "inline"])
@pytest.mark.parametrize("group", QUICK)
def test_the_samples_checks_pass_but_for_what_the_host_cannot_do(
    capabilities: Capabilities, group: str, mode: str
) -> None:
    text, kind = console_of(mode, group)
    assert kind is EndKind.DEBUG_EXIT
    assert failures(text, capabilities) == []
    assert "checks," in text.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("group", LONG)
def test_the_samples_long_checks_pass(capabilities: Capabilities, group: str) -> None:
    text, kind = console_of("inline", group)
    assert kind is EndKind.DEBUG_EXIT
    assert failures(text, capabilities) == []
    assert "checks," in text.splitlines()[-1]


@pytest.fixture(scope="module")
def debian(capabilities: Capabilities) -> guests.Guest:
    del capabilities
    try:
        return guests.find("debian-amd64")
    except RetrapError as error:
        pytest.skip(f"Debian's kernel is not here: {error}")


@pytest.mark.kernel
def test_a_stock_kernel_boots_to_user_space_in_few_exits(debian: guests.Guest) -> None:
    printed = bytearray()
    options = Options(engine="kvm", initrd=read_initrd(debian.initrd), command_line=debian.command_line, limits=LIMITS)
    session = Session(load(debian.kernel), options, printed.extend)
    try:
        assert session.run().kind is EndKind.HALTED
        assert b"retrap: user space reached" in printed
        assert (
            session.machine.engine.entered <= 60_000
        )  # it counts the host's signals, too: the figure is `retrap bench engine`'s
        assert isinstance(session.driver, Hypervisor)
        assert session.driver.code.intact()
        inside = session.driver.exits.counts.get(("SYSTEM_CALL", "inside"), 0)
        assert inside > 100 if session.machine.engine.capabilities.crosses else inside == 0
    finally:
        session.close()


def program_of_32_bits() -> Entry:
    """An i386 program that writes a line by INT 80H, and then executes SYSCALL."""
    text = b"by int 80h\n"
    # mov eax, 4; mov ebx, 1; mov ecx, text; mov edx, ..; int 80h; syscall; ud2
    code = "b804000000 bb01000000 b9{} ba{} cd80 0f05 0f0b"
    size = len(bytes.fromhex(code.format("00000000", "00000000")))
    first = 0x8048000
    at = first + 84 + size
    body = bytes.fromhex(code.format(at.to_bytes(4, "little").hex(), len(text).to_bytes(4, "little").hex())) + text
    head = b"\x7fELF\1\1\1".ljust(16, b"\0")
    head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, first + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    head += struct.pack("<8I", 1, 0, first, first, 84 + len(body), 84 + len(body), 5, 4096)
    return Entry("bin/of-32-bits", stat.S_IFREG | 0o755, head + body)


@pytest.mark.kernel
def test_programs_compute_what_they_should_although_their_calls_make_no_exit(debian: guests.Guest) -> None:
    lines = (
        "busybox dd if=/dev/zero bs=4096 count=256 2>/dev/null | busybox sha256sum",
        "i=0; while [ $i -lt 20 ]; do busybox true && i=$((i+1)); done; echo counted $i",
    )
    printed = bytearray()
    busybox = read_member(debian.initrd.read_bytes(), "bin/busybox")
    initrd = initramfs_of(busybox, (*lines, "of-32-bits; echo status $?"), [program_of_32_bits()])
    options = Options(engine="kvm", initrd=initrd, command_line=debian.command_line, limits=LIMITS)
    session = Session(load(debian.kernel), options, printed.extend)
    try:
        assert session.run().kind is EndKind.HALTED
        assert isinstance(session.driver, Hypervisor)
        counts = session.driver.exits.counts
        crosses = session.machine.engine.capabilities.crosses
    finally:
        session.close()
    assert hashlib.sha256(bytes(1 << 20)).hexdigest().encode() in printed
    assert b"counted 20" in printed
    assert b"by int 80h\r\n" in printed
    assert b"Illegal instruction\r\nstatus 132" in printed, "SYSCALL is not for 32-bit code"
    if crosses:
        calls, returns = (counts.get((name, "inside"), 0) for name in ("SYSTEM_CALL", "RETURN_FROM_SYSTEM_CALL"))
        faults = counts.get(("page fault to the guest", "inside"), 0)
        assert calls > 512 < returns <= calls + faults + 1
        assert faults > 20 * 30


@pytest.mark.kernel
@pytest.mark.slow
def test_a_stock_kernel_on_kvm_is_the_reference_by_every_rule(debian: guests.Guest) -> None:
    del debian
    guest = find("debian-amd64")
    assert guest.initrd is not None
    options = Options(initrd=read_initrd(guest.initrd), command_line=guest.command_line, limits=LIMITS)
    result = verify(guest, options, ("inline",), engines=("unicorn", "kvm"))
    assert result.passed, [one.first for one in result.comparisons]
    assert [one.pair.rewritten.engine for one in result.comparisons] == ["unicorn", "kvm"]


def test_the_same_operations_are_done_on_both_engines(capabilities: Capabilities) -> None:
    del capabilities
    options = Options(command_line="only=tables", limits=LIMITS, cache=False)
    image = load(SAMPLE)
    runs = [observe(image, replace(options, engine=name)) for name in ("unicorn", "kvm")]
    result = compare_operations(*runs)
    assert result.passed
    assert result.engines == ("unicorn", "kvm")
    assert {name: left for name, left, _ in result.counts}["WRITE_DESCRIPTOR_TABLE"] > 0
