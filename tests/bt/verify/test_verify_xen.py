"""Verification of a Xen guest: what is looked at, and by whose numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bt import xen
from bt.image import load
from bt.initramfs import MARKER
from bt.knowledge.linux_verify_xen import LINUX_XEN, user_lines
from bt.session import Options
from bt.verify.observation import observe
from bt.verify.profiles import profile_for
from emulator.errors import BadImage, UsageError
from emulator.machine import EndKind, Outcome

SAMPLES = Path(__file__).parents[3] / "samples"
HOSTILE = SAMPLES / "xen" / "hostile.elf"


def test_memory_is_shown_by_the_guests_own_frame_numbers() -> None:
    image = load(HOSTILE)
    seen = observe(image, Options(mode="xen", memory=16 << 20))
    assert seen.memory.size == 16 << 20
    text = image.segments[0]
    assert seen.memory.read(text.paddr, 256) == bytes(text.data[:256])
    assert seen.outcome.kind is EndKind.POWER_OFF


def test_events_of_user_code_have_its_level_and_code() -> None:
    calls = observe(load(HOSTILE), Options(mode="xen", memory=16 << 20))
    asked = [event for event in calls.events if event.kind == "system call"]
    assert [event.registers[0] for event in asked] == [1, 3, 99] * 4
    assert {event.level for event in asked} == {3}
    assert {event.code[:2] for event in asked} == {b"\x0f\x05"}
    faults = [event.number for event in calls.events if event.kind == "exception" and event.level == 3]
    assert faults == [14, 13, 13, 13]


def test_lines_of_the_kernel_and_of_firmware_are_left_out() -> None:
    console = f"BIOS\r\n[    0.000000] Linux\r\n{MARKER}\r\n[    1.5] more\r\nhello\r\n".encode()
    assert user_lines(console) == [MARKER.encode(), b"hello"]


def pair(left: EndKind, right: EndKind, consoles: tuple[bytes, bytes] = (b"a", b"a")) -> Any:
    runs = [
        SimpleNamespace(outcome=Outcome(kind), console=console)
        for kind, console in zip((left, right), consoles, strict=True)
    ]
    return SimpleNamespace(reference=runs[0], rewritten=runs[1])


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (EndKind.HALTED, EndKind.POWER_OFF, True),
        (EndKind.RESET, EndKind.RESET, True),
        (EndKind.HALTED, EndKind.RESET, False),
        (EndKind.HALTED, EndKind.CRASHED, False),
        (EndKind.POWER_OFF, EndKind.HOST_TIMEOUT, False),
    ],
)
def test_only_halting_and_powering_off_are_the_same_end(left: EndKind, right: EndKind, same: bool) -> None:
    rule = next(rule for rule in LINUX_XEN.rules if rule.name == "outcome")
    assert (rule.check(pair(left, right)).divergence is None) is same


@pytest.mark.parametrize(
    ("consoles", "same"),
    [((b"one\ntwo\n", b"one\r\ntwo\r\n"), True), ((b"one\n", b"one\ntwo\n"), False), ((b"", b""), False)],
)
def test_each_line_of_user_space_must_be_there(consoles: tuple[bytes, bytes], same: bool) -> None:
    rule = next(rule for rule in LINUX_XEN.rules if rule.name == "console")
    assert (rule.check(pair(EndKind.RESET, EndKind.RESET, consoles)).divergence is None) is same


def test_the_rules_go_by_the_mode() -> None:
    image = load(HOSTILE)
    assert profile_for(image, xen.MODE) is LINUX_XEN
    assert profile_for(image, "inline") is not LINUX_XEN


def test_a_command_line_for_a_pc_becomes_one_for_a_guest() -> None:
    line = "console=ttyS0 panic=-1 acpi=off nosmp noapic norandmaps quiet"
    assert xen.command_line(line).split() == [*xen.COMMAND_LINE.split(), "norandmaps", "quiet"]


@pytest.mark.parametrize(
    "change",
    [{"technique": "lazy"}, {"delta": 2 << 20}, {"physical_delta": 2 << 20}],
)
def test_what_a_xen_guest_cannot_have_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(mode="xen", **change).check()


def test_a_kernel_without_xens_notes_is_refused() -> None:
    image = load(SAMPLES / "x86_64" / "sample.elf")
    assert not xen.speaks_xen(image)
    with pytest.raises(BadImage, match="no notes"):
        xen.kernel_of(image, b"", "")


def test_a_kernel_for_another_instruction_set_is_refused() -> None:
    with pytest.raises(BadImage, match="x86-64"):
        xen.kernel_of(load(SAMPLES / "i386" / "portable.elf"), b"", "")
