"""A guest's history: the same state however a position is reached, and the way back to who did it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.errors import UsageError
from emulator.machine import EndKind
from paravirt.services.breakpoints import StopKind
from paravirt.services.debug import Debugger
from paravirt.services.positions import Position, position_of
from paravirt.services.timeline import PAUSED, ConsoleOnce, Timeline
from tests.emulator.guest_image import DATA, HALT, KERNEL
from tests.paravirt.services.ticking_guest import BUG_AT, LOOP_AT, ROUNDS, VICTIM, TickingGuest, fingerprint


class Travelled:
    """A guest that was run to its end, with a history."""

    def __init__(self, interval: int = 20_000) -> None:
        self.guest = TickingGuest()
        self.heard = bytearray()
        self.console = ConsoleOnce(self.heard.extend)
        self.guest.listen(self.console)
        self.driver = self.guest.driver
        self.timeline = Timeline(self.driver, self.console, interval=interval)
        self.outcome = self.timeline.run()
        self.end = self.timeline.position
        self.fingerprint = fingerprint(self.driver)

    def close(self) -> None:
        self.timeline.close()
        self.guest.close()


@pytest.fixture(scope="module")
def travelled() -> Iterator[Travelled]:
    made = Travelled()
    yield made
    made.close()


def test_checkpoints_leave_no_trace_in_a_run(travelled: Travelled) -> None:
    plain = TickingGuest()
    plain.machine.begin()
    plain.machine.arm()
    assert plain.driver.resume() == travelled.outcome
    assert fingerprint(plain.driver) == travelled.fingerprint
    assert len(travelled.timeline.checkpoints.kept) > 3
    plain.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_state_is_the_same_reached_forwards_or_backwards(travelled: Travelled, data: st.DataObject) -> None:
    timeline = travelled.timeline
    first, last = timeline.start.progress, travelled.end.progress - 1
    progress, other = data.draw(st.integers(first, last)), data.draw(st.integers(first, last))
    assert timeline.goto(Position(progress)) is PAUSED
    assert timeline.position == Position(progress)
    backwards = fingerprint(travelled.driver)
    timeline.goto(Position(other))
    timeline.goto(timeline.start)
    timeline.run(Position(progress))
    assert fingerprint(travelled.driver) == backwards


def test_the_end_is_the_same_after_any_journey(travelled: Travelled) -> None:
    timeline = travelled.timeline
    for progress in (timeline.start.progress + 5, travelled.end.progress // 2, 1000):
        timeline.goto(Position(progress))
        timeline.step()
        timeline.step_back()
    assert timeline.run() == travelled.outcome
    assert fingerprint(travelled.driver) == travelled.fingerprint
    assert travelled.heard == b"x" * ROUNDS, "what was printed is not printed again"


def test_a_guest_at_its_end_stays_there_whatever_is_asked(travelled: Travelled) -> None:
    """It waits for an interrupt that cannot come: nothing behind the HLT is ever done."""
    timeline, end = travelled.timeline, travelled.end
    timeline.goto(timeline.start)
    assert timeline.run() == travelled.outcome
    for again in (
        timeline.run,
        timeline.step,
        lambda: timeline.run(Position(end.progress + 1)),
        lambda: timeline.goto(end),
        lambda: timeline.goto(Position(end.progress + 5, 2)),
        lambda: timeline.peek(timeline.run),
        timeline.run,
    ):
        assert again() == travelled.outcome
        assert timeline.position == end
        assert fingerprint(travelled.driver) == travelled.fingerprint
    assert timeline.step_back() is PAUSED
    assert timeline.position < end
    assert timeline.run() == travelled.outcome
    assert fingerprint(travelled.driver) == travelled.fingerprint


@pytest.mark.parametrize("reverse", [False, True])
def test_a_debugger_does_not_go_on_behind_the_end(reverse: bool) -> None:
    guest = TickingGuest()
    debugger = Debugger(guest.driver, lambda address: address, reverse=reverse)
    ended = debugger.go()
    assert (ended.kind, ended.outcome and ended.outcome.kind) == (StopKind.ENDED, EndKind.HALTED)
    there = fingerprint(guest.driver)
    for act in (debugger.go, debugger.step):
        assert act() == ended
        assert fingerprint(guest.driver) == there
    if reverse:
        assert debugger.step_back().kind is StopKind.STEP
        assert debugger.go() == ended
        assert fingerprint(guest.driver) == there
    guest.driver.vcpu.pc = KERNEL + len(bytes.fromhex("b011e620")) - 2  # by hand: OUT, as at the beginning
    debugger.changed()
    guest.driver.vcpu.gpr[0] = 0x11
    assert debugger.step().kind is StopKind.STEP
    debugger.close()
    guest.close()


def test_steps_back_undo_steps(travelled: Travelled) -> None:
    timeline = travelled.timeline
    timeline.goto(Position(travelled.end.progress // 3))
    there = fingerprint(travelled.driver)
    seen = [(timeline.position, travelled.driver.state)]
    for _ in range(8):
        timeline.step()
        seen.append((timeline.position, travelled.driver.state))
    assert len({position for position, _ in seen}) == len(seen)
    assert [position for position, _ in seen] == sorted(position for position, _ in seen)
    for _, state in reversed(seen[:-1]):
        timeline.step_back()
        assert travelled.driver.state == state
    timeline.goto(seen[0][0])
    assert fingerprint(travelled.driver) == there


def test_a_step_goes_over_one_instruction_and_a_page_that_comes_is_none(travelled: Travelled) -> None:
    timeline = travelled.timeline
    timeline.goto(timeline.start)
    addresses = [travelled.driver.pc]
    for _ in range(6):
        timeline.step()
        addresses.append(travelled.driver.pc)
    # mov al, 11H; out 20H, al; ... are of two bytes each
    assert [address - addresses[0] for address in addresses] == [0, 2, 4, 6, 8, 10, 12]


def test_a_reverse_watchpoint_lands_on_the_store_that_did_it(travelled: Travelled) -> None:
    timeline = travelled.timeline
    timeline.goto(Position(travelled.end.progress - 1))
    assert travelled.guest.words[VICTIM >> 3] == 7
    found = timeline.find_previous_write(VICTIM, 8)
    assert found == timeline.position
    assert travelled.driver.pc == BUG_AT
    assert travelled.guest.words[VICTIM >> 3] == 0x1234_5678, "it is about to be done"
    timeline.step()
    assert travelled.guest.words[VICTIM >> 3] == 7
    assert timeline.find_previous_write(VICTIM, 8) == found
    assert timeline.find_previous_write(VICTIM, 8) is None, "nothing else ever wrote there"
    assert timeline.position == found


def test_every_write_is_found_one_after_the_other(travelled: Travelled) -> None:
    timeline = travelled.timeline
    timeline.goto(Position(travelled.end.progress - 1))
    values = []
    for _ in range(4):
        assert timeline.find_previous_write(DATA + 8, 8) is not None
        values.append(travelled.guest.words[DATA + 8 >> 3])
    assert values == [29, 28, 27, 26]


def test_what_the_hypervisor_stored_for_the_guest_is_found_too(travelled: Travelled) -> None:
    """An interrupt's frame: no instruction of the guest's wrote it."""
    timeline = travelled.timeline
    timeline.goto(Position(travelled.end.progress - 1))
    frame = (travelled.driver.vcpu.gpr[4] & ~0xF) - 40
    found = timeline.find_previous_write(frame, 8)
    assert found is not None
    before = travelled.guest.words[frame >> 3]
    interrupted = travelled.driver.pc
    timeline.run(Position(found.progress + 1))
    pushed = travelled.guest.words[frame >> 3]
    assert before != pushed
    assert LOOP_AT <= pushed <= LOOP_AT + 0x40
    assert interrupted >= LOOP_AT


@pytest.mark.parametrize("instruction", ["f3a4", "f348a5"], ids=["movsb", "movsq"])
def test_a_repeated_store_is_found_in_a_page_that_was_never_touched(instruction: str) -> None:
    guest = TickingGuest()
    fresh = 0x9_8000
    guest.put(KERNEL, "48c7c600000400 48c7c700800900 48c7c140000000" + instruction + HALT)
    timeline = Timeline(guest.driver)
    timeline.run()
    assert guest.words[fresh >> 3] != 0
    assert timeline.find_previous_write(fresh, 8) is not None
    assert guest.driver.pc == KERNEL + 21
    assert bytes(guest.memory[fresh : fresh + 8]) != bytes(guest.memory[KERNEL : KERNEL + 8])
    timeline.close()
    guest.close()


def test_the_last_execution_of_a_place_is_found(travelled: Travelled) -> None:
    timeline = travelled.timeline
    timeline.goto(Position(travelled.end.progress - 1))
    rounds = []
    for _ in range(3):
        assert timeline.find_previous([LOOP_AT]) is not None
        assert travelled.driver.pc == LOOP_AT
        rounds.append(travelled.driver.vcpu.gpr[3])
    assert rounds == [1, 2, 3]
    assert timeline.find_previous([0x1234]) is None


def test_after_a_change_the_future_is_another() -> None:
    changed = Travelled()
    timeline = changed.timeline
    timeline.goto(Position(changed.end.progress // 2))
    changed.driver.vcpu.gpr[3] += 5
    timeline.diverge()
    assert timeline.run() == changed.outcome
    assert changed.guest.words[DATA + 8 >> 3] == ROUNDS + 5
    assert fingerprint(changed.driver) != changed.fingerprint
    there = fingerprint(changed.driver)
    timeline.goto(timeline.start)
    timeline.run()
    assert changed.guest.words[DATA + 8 >> 3] in (ROUNDS, ROUNDS + 5)
    timeline.goto(timeline.checkpoints.kept[-1].position)
    timeline.run()
    assert fingerprint(changed.driver) == there
    changed.close()


def test_looking_at_a_guest_changes_nothing(travelled: Travelled) -> None:
    timeline = travelled.timeline
    timeline.goto(Position(travelled.end.progress // 2))
    before = fingerprint(travelled.driver)

    def look() -> int:
        travelled.guest.words[VICTIM >> 3] = 99
        return 5

    assert timeline.peek(look) == 5
    assert fingerprint(travelled.driver) == before


def test_thinned_out_checkpoints_still_lead_everywhere() -> None:
    small = Travelled(interval=5_000)
    timeline = small.timeline
    before = len(timeline.checkpoints.kept)
    timeline.checkpoints._budget = 1
    timeline.checkpoints._thin()
    assert len(timeline.checkpoints.kept) < before
    timeline.goto(Position(small.end.progress // 3))
    timeline.run()
    assert fingerprint(small.driver) == small.fingerprint
    small.close()


def test_positions_before_the_history_are_refused(travelled: Travelled) -> None:
    with pytest.raises(UsageError, match="begins at"):
        travelled.timeline.goto(Position(-1))


@pytest.mark.parametrize("text", ["", "x", "-1", "1+", "1+2+3", "0x10", "1" * 30])
def test_what_is_no_position_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="is no position"):
        position_of(text)


def test_a_position_is_read_as_it_is_written() -> None:
    for position in (Position(0), Position(7, 3), Position(10**12)):
        assert position_of(str(position)) == position
