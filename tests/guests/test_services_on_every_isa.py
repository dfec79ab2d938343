"""The portable sample stopped, saved, resumed and gone through backwards, on every instruction set but the PC's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal, cast

import pytest

from bt.image import load
from bt.session import Options, Session
from bt.snapshot import ResumedSession, Snapshot, save_session
from emulator.machine import EndKind, Outcome
from paravirt.hypervisor import Hypervisor
from paravirt.services.machine_state import capture, reinstate
from paravirt.services.positions import Position
from paravirt.services.timeline import PAUSED, ConsoleOnce, Timeline
from tests.paravirt.services.ticking_guest import fingerprint

SAMPLES = Path(__file__).parents[2] / "samples"
GUESTS = {name: SAMPLES / name / "portable.elf" for name in ("aarch64", "armv7", "mips32", "mips32/big")}
CHECKS = "only=processes."
"""System calls, page tables, processes that take turns by a timer."""
HERE = Outcome(EndKind.STOPPED, detail="paused")


def start(isa: str, console: Any = lambda _: None, mode: str = "inline") -> Session:
    """A session that has not run yet."""
    image = GUESTS[isa].with_name("pv.elf") if mode == "para" else GUESTS[isa]
    session = Session(load(image), Options(mode=mode, memory=64 << 20, command_line=CHECKS), console)
    session.machine.begin()
    session.machine.arm()
    return session


def run_to(session: Session, progress: int) -> None:
    driver = cast(Hypervisor, session.driver)
    session.machine.engine.pause_at(progress, lambda: driver.end(HERE))
    assert driver.resume() is HERE


class Whole:
    """A guest that was run to its end with a history, and without."""

    def __init__(self, isa: str) -> None:
        heard = bytearray()
        plain = start(isa, heard.extend)
        self.outcome = cast(Hypervisor, plain.driver).resume()
        self.end, self.console = fingerprint(plain.driver), bytes(heard)
        plain.close()
        self.heard = bytearray()
        self.session = start(isa, console := ConsoleOnce(self.heard.extend))
        self.driver = cast(Hypervisor, self.session.driver)
        self.timeline = Timeline(self.driver, console, interval=1_000_000, begun=True)
        self.last = self.end[0] - 1

    def physical(self, symbol: str) -> int:
        """Guest-physical address of a symbol."""
        address = self.session.image.symbols.address_of(symbol)
        memory = self.session.machine.memory
        assert address is not None
        return int(memory.base + (self.driver.shadow.frame_of(address) << 12) + (address & 0xFFF))


@pytest.fixture(scope="module", params=GUESTS)
def whole(request: pytest.FixtureRequest) -> Iterator[tuple[str, Whole]]:
    made = Whole(request.param)
    assert made.timeline.run() == made.outcome
    assert fingerprint(made.driver) == made.end, "checkpoints leave no trace"
    yield request.param, made
    made.timeline.close()
    made.session.close()


@pytest.mark.parametrize(("share", "mode"), [(0.2, "inline"), (0.7, "trap"), (0.4, "para")])
def test_a_resumed_guest_goes_on_exit_for_exit(
    whole: tuple[str, Whole], share: float, mode: str, tmp_path: Path
) -> None:
    isa, known = whole
    path, before, behind = tmp_path / "guest.snapshot", bytearray(), bytearray()
    first = start(isa, before.extend, mode)
    run_to(first, int(known.end[0] * share))
    save_session(first, path)
    there, said = fingerprint(first.driver), len(before)
    outcome = cast(Hypervisor, first.driver).resume()
    end = fingerprint(first.driver)
    assert mode != "inline" or end == known.end
    first.close()
    second = ResumedSession(Snapshot(path), behind.extend)
    assert second.exact
    assert fingerprint(second.driver) == there
    assert second.run() == outcome
    assert fingerprint(second.driver) == end
    assert behind == before[said:]
    second.close()


@pytest.mark.parametrize("share", [0.15, 0.55, 0.85])
def test_a_state_is_the_same_reached_forwards_or_backwards(whole: tuple[str, Whole], share: float) -> None:
    _, known = whole
    timeline, driver = known.timeline, known.driver
    place = Position(int(known.last * share))
    assert timeline.goto(place) is PAUSED
    backwards = fingerprint(driver)
    timeline.goto(timeline.start)
    timeline.run(place)
    assert fingerprint(driver) == backwards
    seen = [driver.state]
    for _ in range(6):
        timeline.step()
        seen.append(driver.state)
    for state in reversed(seen[:-1]):
        timeline.step_back()
        assert driver.state == state


def test_what_the_engine_forgets_on_the_way_changes_nothing(whole: tuple[str, Whole]) -> None:
    """Translated code, cached translations of addresses, or all of it, for a state that is taken and put back."""
    _, known = whole
    timeline, driver = known.timeline, known.driver
    engine, choose = cast(Any, driver.engine), Random(known.last)
    forget = engine.flush_code, engine.flush_tlb, lambda: reinstate(driver, capture(driver, whole=False))
    places = sorted(choose.sample(range(int(known.last * 0.8), known.last), 500))

    def paused() -> None:
        choose.choice(forget)()
        if places:
            engine.pause_at(places.pop(0), paused)

    timeline.goto(Position(places[0] - 1))
    engine.pause_at(places.pop(0), paused)
    assert timeline.run() == known.outcome
    assert not places
    assert fingerprint(driver) == known.end


def test_a_guest_that_has_shut_down_stays_so(whole: tuple[str, Whole]) -> None:
    _, known = whole
    known.timeline.goto(Position(known.last))
    for go_on in (known.timeline.run, known.timeline.run, known.timeline.step, known.driver.resume):
        assert go_on() == known.outcome
        assert fingerprint(known.driver) == known.end


def test_a_reverse_watchpoint_lands_on_every_store_one_after_the_other(whole: tuple[str, Whole]) -> None:
    _, known = whole
    timeline, memory = known.timeline, known.session.machine.memory
    timeline.goto(Position(known.last))
    ticks = known.physical("ticks")
    at = ticks - memory.base
    order = cast(Literal["little", "big"], known.session.image.byte_order)
    values = [int.from_bytes(memory.view[at : at + 4], order)]
    places = set()
    for _ in range(3):
        assert timeline.find_previous_write(ticks, 4) is not None
        values.append(int.from_bytes(memory.view[at : at + 4], order))
        places.add(known.driver.pc)
    assert values == [values[0], *(values[0] - 1 - number for number in range(3))]
    assert len(places) == 1, "it is the same instruction"


def test_the_end_is_the_same_after_any_journey(whole: tuple[str, Whole]) -> None:
    _, known = whole
    assert known.timeline.run() == known.outcome
    assert fingerprint(known.driver) == known.end
    assert known.heard == known.console, "what was printed is not printed again"
