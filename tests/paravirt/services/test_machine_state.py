"""A machine's state as a value: whoever is given it goes on exactly as the machine that it was taken of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.errors import UsageError
from emulator.machine import EndKind, Outcome
from paravirt.services.machine_state import MachineState, capture, memory_regions, reinstate
from tests.paravirt.services.ticking_guest import ROUNDS, TickingGuest, fingerprint

PAUSED = Outcome(EndKind.STOPPED, detail="paused")


@pytest.fixture
def guest() -> Iterator[TickingGuest]:
    made = TickingGuest()
    yield made
    made.close()


def begin(guest: TickingGuest) -> None:
    guest.machine.begin()
    guest.machine.arm()


def run_to(guest: TickingGuest, progress: int) -> Outcome:
    engine = guest.machine.engine
    engine.pause_at(progress, lambda: guest.driver.end(PAUSED))
    return guest.driver.resume()


def contents(guest: TickingGuest) -> dict[str, bytes]:
    return {name: bytes(memory) for name, memory in memory_regions(guest.driver).items()}


def put(guest: TickingGuest, memories: dict[str, bytes], state: MachineState) -> None:
    for name, memory in memory_regions(guest.driver).items():
        memory.cast("B")[:] = memories[name]
    reinstate(guest.driver, state)


def whole_run() -> tuple[object, ...]:
    guest = TickingGuest()
    begin(guest)
    assert guest.driver.resume().kind is EndKind.HALTED
    end = fingerprint(guest.driver)
    guest.close()
    return end


END = whole_run()
LENGTH: int = END[0]  # type: ignore[assignment]


def test_the_guest_is_interrupted_and_prints_in_every_round() -> None:
    guest = TickingGuest()
    heard = bytearray()
    guest.listen(heard.extend)
    guest.run()
    assert heard == b"x" * ROUNDS
    assert sum(event[0] == "interrupt" for event in guest.events) > 10
    guest.close()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, LENGTH - 2), st.sampled_from(["inline", "trap"]))
def test_another_machine_goes_on_exit_for_exit(progress: int, mode: str) -> None:
    first, second = TickingGuest(mode), TickingGuest(mode)
    begin(first)
    assert run_to(first, progress) is PAUSED
    state, memories, seen = capture(first.driver), contents(first), fingerprint(first.driver)
    outcome = first.driver.resume()
    put(second, memories, state)
    assert fingerprint(second.driver) == seen
    assert second.driver.resume() == outcome
    assert fingerprint(second.driver) == fingerprint(first.driver)
    if mode == "inline":
        assert fingerprint(second.driver) == END, "and the stop has left no trace"
    first.close()
    second.close()


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, LENGTH - 2), min_size=2, max_size=5))
def test_one_machine_goes_back_and_forth_and_ends_the_same(places: list[int]) -> None:
    guest = TickingGuest()
    begin(guest)
    first = min(places)
    run_to(guest, first)
    state, memories = capture(guest.driver, whole=False), contents(guest)
    seen = fingerprint(guest.driver)
    for place in places:
        run_to(guest, place)
        put(guest, memories, state)
        assert fingerprint(guest.driver) == seen
    guest.driver.resume()
    assert fingerprint(guest.driver) == END
    guest.close()


def test_a_state_is_not_changed_by_what_the_guest_does_later(guest: TickingGuest) -> None:
    begin(guest)
    run_to(guest, LENGTH // 2)
    state = capture(guest.driver)
    told = repr(state)
    guest.driver.resume()
    assert repr(state) == told


def test_a_machine_at_full_privilege_is_refused_in_a_sentence(guest: TickingGuest) -> None:
    from emulator.native import native_for

    with pytest.raises(UsageError, match="at full privilege"):
        capture(native_for(guest.machine))  # type: ignore[arg-type]
