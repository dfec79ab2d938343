"""Comparing consoles: excerpts of real QEMU runs of one kernel, and what must never be excused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt.console_compare import LINUX, Effect, Side, compare, kernel_lines

FIRST = b"""\
\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2-debian-1.16.2-1)\r
Booting from ROM..[    0.000000] Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org)\r
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\r
[    0.000000] tsc: Fast TSC calibration using PIT\r
[    0.000000] tsc: Detected 1000.000 MHz processor\r
[    0.089174] RAMDISK: [mem 0x0fe1b000-0x0fffffff]\r
[    0.476546] clocksource: tsc-early: mask: 0xff max_cycles: 0x1cd42e4dffb, max_idle_ns: 881590591483 ns\r
[    0.853729] audit: initializing netlink subsys (disabled)\r
[    0.859526] audit: type=2000 audit(1795367712.372:1): state=initialized audit_enabled=0 res=1\r
[    0.860740] cpuidle: using governor ladder\r
[    1.254500] Trying to unpack rootfs image as initramfs...\r
[    1.263718] Initialise system trusted keyrings\r
[    1.306584] Freeing initrd memory: 1940K\r
[    1.316417] zbud: loaded\r
[    1.453155] rtc_cmos rtc_cmos: setting system clock to 2026-11-22T17:15:13 UTC (1795367713)\r
[    1.629824] sched_clock: Marking stable (1588677486, 37146616)->(2428106850, -802282748)\r
[    2.970411] Run /init as init process\r
retrap: user space reached\r
[    3.212535] reboot: System halted\r
"""

SECOND = b"""\
[    0.000000] Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org)\r
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable\r
[    0.000000] tsc: Detected 2596.137 MHz processor\r
[    0.033641] RAMDISK: [mem 0x0fdf3000-0x0ffd7fff]\r
[    0.221524] clocksource: tsc-early: mask: 0xff max_cycles: 0x256bfae2bfa, max_idle_ns: 440795267028 ns\r
[    0.578602] audit: initializing netlink subsys (disabled)\r
[    0.578602] cpuidle: using governor ladder\r
[    0.601000] audit: type=2000 audit(1795367775.000:1): state=initialized audit_enabled=0 res=1\r
[    0.700000] Initialise system trusted keyrings\r
[    0.700001] zbud: loaded\r
[    0.800000] Trying to unpack rootfs image as initramfs...\r
[    0.900000] Freeing initrd memory: 1940K\r
[    1.300000] rtc_cmos rtc_cmos: setting system clock to 2026-11-22T17:16:16 UTC (1795367776)\r
[    1.400000] sched_clock: Marking stable (526280690, 48321858)->(574602548, 0)\r
[    4.499575] Run /init as init process\r
retrap: user space reached[    4.347567] clocksource: tsc: mask: 0xff max_cycles: 0x1, max_idle_ns: 8 ns\r
[    4.347568] clocksource: Switched to clocksource tsc\r
\r
[    4.512535] reboot: System halted\r
"""


def test_two_runs_on_different_machines_agree_with_every_difference_explained() -> None:
    comparison = compare(FIRST, SECOND)
    assert comparison.passed, comparison.report()
    assert comparison.equal == 16
    reasons = {(difference.side, difference.explanation) for difference in comparison.differences}
    assert reasons == {
        (Side.OURS, "memory map"),
        (Side.THEIRS, "memory map"),
        (Side.OURS, "timers and clock sources"),
        (Side.THEIRS, "timers and clock sources"),
    }


def test_firmware_output_escapes_and_timestamps_are_left_out() -> None:
    lines = kernel_lines(FIRST)
    assert lines[0] == "Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org)"
    assert lines[-1] == "reboot: System halted"


def test_a_message_printed_into_a_line_from_user_space_is_a_line_of_its_own() -> None:
    lines = kernel_lines(SECOND)
    at = lines.index("retrap: user space reached")
    assert lines[at + 2] == "clocksource: Switched to clocksource tsc"


@pytest.mark.parametrize(
    "line",
    [
        b"zbud: loaded",
        b"Run /init as init process",
        b"retrap: user space reached",
        b"Freeing initrd memory: 1940K",
        b"audit: initializing netlink subsys (disabled)",
        b"reboot: System halted",
    ],
)
def test_a_line_that_only_one_console_lacks_is_unexplained(line: bytes) -> None:
    kept = [text for text in SECOND.split(b"\n") if line not in text]
    for ours, theirs, side in (
        (FIRST, b"\n".join(kept), Side.OURS),
        (b"\n".join(kept), FIRST, Side.THEIRS),
    ):
        missing = compare(ours, theirs).unexplained
        assert [(difference.side, difference.line) for difference in missing] == [(side, line.decode())]


@pytest.mark.parametrize(
    "line",
    [b"BUG: kernel NULL pointer dereference", b"WARNING: CPU: 0 PID: 1 at kernel/x.c", b"general protection fault"],
)
def test_a_new_line_is_unexplained(line: bytes) -> None:
    worse = SECOND.replace(b"[    4.499575]", b"[    4.4] " + line + b"\n[    4.499575]")
    comparison = compare(worse, FIRST)
    assert not comparison.passed
    assert line.decode() in comparison.report()


def test_two_lines_in_another_order_are_unexplained() -> None:
    swapped = FIRST.replace(b"cpuidle: using governor ladder", b"X").replace(
        b"zbud: loaded", b"cpuidle: using governor ladder"
    )
    swapped = swapped.replace(b"] X", b"] zbud: loaded")
    assert {difference.side for difference in compare(swapped, FIRST).unexplained} == {Side.MOVED}


def test_a_changed_value_inside_a_line_is_unexplained_where_no_rule_names_it() -> None:
    other = SECOND.replace(b"Freeing initrd memory: 1940K", b"Freeing initrd memory: 1936K")
    assert len(compare(FIRST, other).unexplained) == 2


def test_an_empty_console_never_passes() -> None:
    assert not compare(b"", b"").passed
    assert not compare(FIRST, b"").passed


@given(st.binary(max_size=300))
def test_any_console_agrees_with_itself(console: bytes) -> None:
    comparison = compare(console, console)
    assert comparison.differences == ()
    assert comparison.equal == len(kernel_lines(console))


def test_every_value_rule_has_something_to_blank() -> None:
    for rule in LINUX:
        assert all((pattern.groups > 0) or rule.effect is not Effect.VALUE for pattern in rule.patterns), rule.name
