"""The comparisons on runs made by hand: each sees what it is there for, and nothing that its rule leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bt.image import Image, from_bytes
from bt.initramfs import Entry, newc
from bt.knowledge.linux_verify import LINUX, members
from bt.verify import devices
from bt.verify.observation import Event, Observation, Write, pages_of
from bt.verify.profiles import EXACT, profile_for, profiles
from bt.verify.rules import Comparison, Finding, Pair, compare, rows
from bt.verify.views import GENERAL
from emulator.machine import EndKind, Outcome
from tests.bt.image.image_files import BASE, PHYSICAL, make_elf

TABLES = frozenset({8})
SPACE_A, SPACE_B = 0x1000, 0x2000


@pytest.fixture(scope="module")
def image() -> Image:
    return from_bytes(make_elf(), "made by hand")


def run(
    mode: str = "trap", memory: bytes = b"", events: tuple[Event, ...] = (), writes: tuple[Write, ...] = ()
) -> Observation:
    registers = {name: number for number, name in enumerate((*GENERAL, "RFLAGS"))}
    return Observation(
        mode=mode,
        outcome=Outcome(EndKind.DEBUG_EXIT),
        console=b"one\ntwo\n",
        events=list(events),
        writes=list(writes),
        memory=pages_of(memoryview(bytearray(memory.ljust(0x10_0000, b"\0")))),
        processor={**registers, "RIP": BASE},
        loader_tables=TABLES,
        exits={},
        left=0,
        blocks=1000,
        nanoseconds=1,
    )


def event(number: int = 14, rip: int = BASE, space: int = SPACE_A, progress: int = 1, kind: str = "exception") -> Event:
    error = 2 if kind == "exception" else 0
    return Event(kind, number, error, rip, 0, space, progress, (0,) * 17, 64, b"\x90\xc3")


def write(device: str, offset: int, value: int, progress: int = 1) -> Write:
    return Write(device, offset, 1, value, BASE, progress)


def compared(image: Image, reference: Observation, rewritten: Observation, **known: object) -> Comparison:
    return compare(EXACT, replace(Pair(image, reference, rewritten), **known))  # type: ignore[arg-type]


def differing(comparison: Comparison) -> list[str]:
    return [finding.rule.name for finding in comparison.findings if not finding.passed]


def finding(comparison: Comparison, name: str) -> Finding:
    return next(finding for finding in comparison.findings if finding.rule.name == name)


def test_equal_runs_differ_in_nothing(image: Image) -> None:
    one = run(memory=b"x" * 9000, events=(event(),), writes=(write("com1", 0, 65),))
    assert differing(compared(image, one, one)) == []


def test_a_page_fault_at_another_address_is_seen(image: Image) -> None:
    one, other = (run(events=(event()._replace(address=address),)) for address in (0x1000, 0x1008))
    comparison = compared(image, one, other)
    assert differing(comparison) == ["exceptions"]
    divergence = finding(comparison, "exceptions").result.divergence
    assert divergence is not None
    assert divergence.reference is not None
    assert "accessing 0x1000" in divergence.reference.text


def test_another_end_is_seen(image: Image) -> None:
    other = replace(run(), outcome=Outcome(EndKind.DEBUG_EXIT, 1))
    assert differing(compared(image, run(), other)) == ["outcome"]


def test_one_byte_of_the_console_is_seen_with_its_line(image: Image) -> None:
    comparison = compared(image, run(), replace(run(), console=b"one\ntwx\n"))
    assert differing(comparison) == ["console"]
    divergence = finding(comparison, "console").result.divergence
    assert divergence is not None
    assert divergence.what == "the consoles differ from byte 6 on, in line 2"


def test_a_lost_device_write_is_seen(image: Image) -> None:
    left = run(writes=(write("post", 0, 1), write("post", 0, 2, 7)))
    assert differing(compared(image, left, run(writes=(write("post", 0, 1),)))) == ["device writes"]


def test_how_often_interrupts_are_ended_does_not_count(image: Image) -> None:
    left = run(writes=(write("pic-master", 1, 0xFE), write("pic-master", 0, 0x20), write("pic-master", 0, 0x60)))
    right = run(writes=(write("pic-master", 1, 0xFE),))
    assert differing(compared(image, left, right)) == []


def test_an_exception_at_another_place_is_seen_with_its_code(image: Image) -> None:
    comparison = compared(image, run(events=(event(),)), run(events=(event(rip=BASE + 1),)))
    assert differing(comparison) == ["exceptions"]
    first = comparison.first
    assert first is not None
    assert first.result.divergence is not None
    assert first.result.divergence.rewritten is not None
    assert first.result.divergence.rewritten.address == BASE + 1
    assert "nop" in first.result.divergence.rewritten.disassembly[0]
    assert first.result.divergence.rewritten.registers["RAX"] == 0


def test_turns_of_address_spaces_do_not_count_but_what_each_does(image: Image) -> None:
    a, b = event(), event(space=SPACE_B, rip=BASE + 8)
    left = run(events=(a, b, a, b))
    assert differing(compared(image, left, run(events=(a, a, b, b)))) == []
    assert differing(compared(image, left, run(events=(a, b, b, b)))) == ["exceptions"]


def test_of_several_divergences_the_earliest_is_the_first(image: Image) -> None:
    left = run(events=(event(),), writes=(write("post", 0, 1),))
    right = run(events=(event(rip=BASE + 4, progress=50),), writes=(write("post", 0, 2, 40),))
    comparison = compared(image, left, replace(right, console=b""))
    assert differing(comparison) == ["console", "device writes", "exceptions"]
    assert comparison.first is not None
    assert comparison.first.rule.name == "device writes"


def test_one_bit_of_memory_is_seen(image: Image) -> None:
    comparison = compared(image, run(memory=bytes(0x9000)), run(memory=bytes(0x5123) + b"\x10"))
    assert differing(comparison) == ["memory"]
    divergence = finding(comparison, "memory").result.divergence
    assert divergence is not None
    assert "0x5123" in divergence.what


def test_volatile_memory_and_accessed_bits_of_the_loaders_tables_do_not_count(image: Image) -> None:
    left, right = bytearray(0x9000), bytearray(0x9000)
    right[0x8000], right[0x5123] = 0x20, 1
    runs = run(memory=bytes(left)), run(memory=bytes(right))
    assert differing(compared(image, *runs, volatile=((0x5120, 16),))) == []
    right[0x8000] = 0x40
    assert differing(compared(image, runs[0], run(memory=bytes(right)), volatile=((0x5120, 16),))) == ["memory"]
    assert differing(compared(image, *runs, volatile=((0x5120, 3),))) == ["memory"]


def test_a_register_at_the_end_is_seen(image: Image) -> None:
    other = run()
    other.processor["RBX"] = 77
    assert differing(compared(image, run(), other)) == ["processor"]


def test_rip_may_be_behind_the_instruction_that_ended_the_run_but_no_further(image: Image) -> None:
    reference = run(memory=bytes(PHYSICAL)[:0x10_0000])
    other = run()
    other.processor["RIP"] = BASE + 100
    assert differing(compared(image, reference, other)) == ["processor"]


def test_an_interrupt_that_one_run_never_had_is_seen(image: Image) -> None:
    one = run(events=(event(0x20, kind="interrupt"),))
    assert differing(compared(image, one, run())) == ["interrupts"]
    twice = run(events=(one.events[0], one.events[0]._replace(rip=BASE + 9)))
    assert differing(compared(image, one, twice)) == []


def test_a_page_table_root_of_an_ended_process_is_another_process(image: Image) -> None:
    end = event(231, kind="system call")
    first, second = event(rip=BASE + 4, space=SPACE_A), event(rip=BASE + 8, space=SPACE_A)
    other = event(rip=BASE + 8, space=SPACE_B)
    pair = Pair(image, run(events=(first, end, second)), run(events=(other, first, end)), command_line="norandmaps")
    exceptions = finding(compare(LINUX, pair), "exceptions")
    assert exceptions.passed
    assert exceptions.result.compared == "2 in 2 address spaces"


def test_when_a_signal_comes_does_not_count_for_linux_but_what_is_called(image: Image) -> None:
    def calls(*numbers: int) -> Observation:
        return run(events=tuple(event(number, kind="system call") for number in numbers))

    wait, back, read, write_ = 61, 15, 0, 1
    reference = calls(read, wait, back, wait, write_)

    def same(other: Observation) -> bool:
        return finding(compare(LINUX, Pair(image, reference, other)), "system calls").passed

    assert same(calls(read, back, wait, write_))
    assert same(calls(read, wait, wait, write_))
    assert not same(calls(read, wait))
    assert not same(calls(wait, read, write_))
    assert not same(calls(read, read, wait, write_))


def test_page_faults_of_linux_count_where_addresses_are_fixed(image: Image) -> None:
    left, right = run(events=(event(rip=BASE + 4),)), run(events=(event(rip=BASE + 5),))
    for command_line, same in (("quiet", True), ("quiet norandmaps", False)):
        pair = Pair(image, left, right, command_line=command_line)
        assert finding(compare(LINUX, pair), "exceptions").passed is same


def test_latching_a_count_does_not_count_and_loading_one_does() -> None:
    latch, read_back, load = write("pit", 3, 0x00), write("pit", 3, 0xE2), write("pit", 3, 0x34)
    assert devices.timer([latch, read_back, load, write("pit", 0, 9)]) == [load, write("pit", 0, 9)]


def test_an_index_of_the_clock_chip_counts_when_something_is_written_there() -> None:
    index, other, value = write("rtc", 0, 0x0B), write("rtc", 0, 0x0A), write("rtc", 1, 2)
    assert devices.clock_chip([other, other, index, value, other]) == [index, value]
    assert devices.clock_chip([]) == []


def test_only_the_set_up_of_an_interrupt_controller_counts_for_linux() -> None:
    setup = [write("pic-master", 0, 0x11), *(write("pic-master", 1, value) for value in (0x30, 4, 1))]
    traffic = [write("pic-master", 1, 0xFB), write("pic-master", 0, 0x60)]
    assert devices.interrupt_controller_setup([*setup, *traffic]) == setup
    assert devices.interrupt_controller_setup(traffic) == []


def test_files_of_an_archive_are_found_again() -> None:
    archive = newc([Entry("bin", 0o040755), Entry("bin/sh", 0o100755, b"x" * 5000), Entry("init", 0o100755, b"#!")])
    assert dict(members(archive)) == {"bin/sh": b"x" * 5000, "init": b"#!"}


@pytest.mark.parametrize("archive", [b"", b"070701", b"070701" + b"zz" * 60, b"\x1f\x8b" + bytes(200)])
def test_what_is_no_archive_has_no_files(archive: bytes) -> None:
    assert list(members(archive)) == []


def test_every_rule_that_leaves_something_out_says_why() -> None:
    for profile in profiles():
        assert len({rule.name for rule in profile.rules}) == len(profile.rules)
        assert all(rule.why and rule.compares for rule in profile.rules)
        assert len(rows(profile)) == len(profile.rules)


def test_a_guest_that_is_no_linux_is_compared_exactly(image: Image) -> None:
    assert profile_for(image) is EXACT
    assert LINUX in profiles()
