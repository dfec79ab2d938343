"""A saved x86 processor that lies: refused in a sentence, or a guest at level 3 that harms nobody but itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.engine.exit import Exit
from emulator.errors import RetrapError
from emulator.isa.x86 import registers as r
from emulator.machine import EndKind, Outcome
from paravirt.modes.x86.saved import X86Saved, X86Saving
from tests.paravirt.services.ticking_guest import TickingGuest

PAUSED = Outcome(EndKind.STOPPED, detail="paused")
LIES = [-1, 0, 1, 2, 3, 0xFF, 1 << 12, 3 << 12, 1 << 13, 1 << 15, 1 << 17, 1 << 21, 1 << 31, 1 << 32, 1 << 47, 1 << 63]
LIES += [(1 << 64) - 1, 1 << 64, 1 << 100]


@pytest.fixture
def guest() -> Iterator[TickingGuest]:
    made = TickingGuest()
    made.machine.begin()
    made.machine.arm()
    run(made, 100_000)
    yield made
    made.close()


def run(guest: TickingGuest, blocks: int) -> Outcome:
    engine = guest.machine.engine
    engine.pause_at(engine.progress + blocks, lambda: guest.driver.end(PAUSED))
    return guest.driver.resume()


def saving(guest: TickingGuest) -> X86Saving:
    assert isinstance(guest.driver, X86Saving)
    return guest.driver


def with_segment(saved: X86Saved, index: int, at: int, value: int) -> X86Saved:
    one = list(saved.segments[index])
    one[at] = value
    changed = one[0], one[1], one[2], one[3]
    return replace(saved, segments=(*saved.segments[:index], changed, *saved.segments[index + 1 :]))


def test_the_processor_of_a_running_guest_is_taken_back(guest: TickingGuest) -> None:
    saving(guest).set_processor_state(saving(guest).processor_state)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"general": (0,) * 15}, "other registers"),
        ({"segments": ((0, 0, 0, 0),) * 7}, "other registers"),
        ({"general": (1 << 64,) * 16}, "64 bits"),
        ({"rip": -1}, "64 bits"),
        ({"rflags": r.FLAG_FIXED | 3 << 12, "level": 0}, "flags cannot be"),
        ({"rflags": r.FLAG_FIXED | r.FLAG_VM, "level": 3}, "flags cannot be"),
        ({"rflags": r.FLAG_FIXED | 1 << 40, "level": 3}, "flags cannot be"),
        ({"level": 1}, "privilege level"),
        ({"io_privilege": 4}, "I/O privilege level"),
        ({"control": (0, 0, 0, 0, 16, 0)}, "CR8"),
        ({"tables": (0, 1 << 16, 0, 0)}, "limit"),
        ({"msrs": ((0x1234, 0),)}, "model-specific"),
        ({"virtual_segments": ((8, (0, 0, 0, 0, 0)),)}, "segment register"),
        ({"virtual_segments": ((1, (0, 0, 1 << 32, 0, 0)),)}, "limit"),
        ({"floating": b"\0" * 511}, "511 bytes"),
    ],
)
def test_what_no_processor_can_be_is_refused(guest: TickingGuest, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        saving(guest).set_processor_state(replace(saving(guest).processor_state, **changes))


@pytest.mark.parametrize(
    ("index", "at", "value"),
    [(r.CS, 3, 0xA09B00), (r.SS, 3, 0xC09300), (r.FS, 1, 1 << 47), (r.TR, 3, 0x8B00), (r.TR, 1, 1), (r.DS, 0, 1 << 16)],
)
def test_a_real_segment_that_no_deprivileged_guest_has_is_refused(
    guest: TickingGuest, index: int, at: int, value: int
) -> None:
    with pytest.raises(ValueError, match=r"segment|selector|table"):
        saving(guest).set_processor_state(with_segment(saving(guest).processor_state, index, at, value))


def lie(data: st.DataObject, value: Any) -> Any:
    """Another value in one place of a value."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return data.draw(st.one_of(st.sampled_from(LIES), st.integers(0, 63).map(lambda bit: value ^ 1 << bit)))
    if isinstance(value, bytes):
        return data.draw(st.sampled_from([b"", value[:-1], b"\xff" * len(value), struct.pack("<Q", 6)]))
    if not value:
        return value
    at = data.draw(st.integers(0, len(value) - 1))
    return (*value[:at], lie(data, value[at]), *value[at + 1 :])


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_lie_that_is_taken_up_harms_nobody_else(data: st.DataObject) -> None:
    guest = TickingGuest()
    try:
        guest.machine.begin()
        guest.machine.arm()
        run(guest, 100_000)
        driver = saving(guest)
        saved = driver.processor_state
        for _ in range(data.draw(st.integers(1, 3))):
            name = data.draw(st.sampled_from([field.name for field in fields(saved)]))
            saved = replace(saved, **{name: lie(data, getattr(saved, name))})
        try:
            driver.set_processor_state(saved)
        except ValueError:
            return
        driver.real_state_lost()
        levels: set[int] = set()
        handle = driver._handle

        def watched(exit_: Exit) -> None:
            levels.add(guest.machine.engine.registers.privilege)
            handle(exit_)

        driver._handle = watched  # type: ignore[method-assign]
        try:
            run(guest, 20_000)
        except RetrapError:
            return
        assert levels <= {3}
        assert driver.code.intact()
    finally:
        guest.close()
