"""A KVM engine whose runs repeat: a guest without exits is stopped again where it was when the run is done again."""

import pytest

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.kvm import probe
from emulator.engine.kvm.probe import Bench, findings_of_host
from emulator.engine.kvm.repeating import UNIT, RepeatingKvm
from emulator.engine.landing import Landing, Passed
from emulator.errors import EngineMissing, VerifyFailed
from emulator.isa.x86 import registers as r

pytestmark = pytest.mark.kvm
CODE, DATA = 0x1000, 0x2000
UD2 = "0f0b"
COUNTS = "48ffc1 ebfb"
"""again: inc rcx; jmp again."""
WAITS = "48833c2500200000 00 74f5" + UD2
"""again: cmp qword [data], 0; je again; ud2."""


class RepeatingBench(Bench):
    """The bench of the probes with an engine whose runs repeat."""

    engine: RepeatingKvm


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> type[RepeatingBench]:
    try:
        findings_of_host()
    except EngineMissing as error:
        pytest.skip(str(error))
    monkeypatch.setattr(probe, "KvmEngine", RepeatingKvm)
    return RepeatingBench


def begin(make: type[RepeatingBench], code: str) -> RepeatingBench:
    bench = make(findings_of_host())
    bench.words[DATA >> 3] = 0
    bench.start(code)
    return bench


def to_a_tick(bench: RepeatingBench) -> tuple[int, ...]:
    """Run to a BUDGET exit, which is due at once; RIP and the general registers there."""
    seen: list[tuple[int, ...]] = []
    engine = bench.engine

    def handler(exit_: Exit) -> None:
        assert exit_.kind == ExitKind.BUDGET
        seen.append((engine.registers.rip, *engine.registers.gpr, engine.progress))
        engine.stop()

    engine.set_deadline(engine.progress + 1)
    engine.run(handler)
    return seen[0]


def recorded(make: type[RepeatingBench], code: str) -> tuple[tuple[int, ...], list[Passed]]:
    bench, told = begin(make, code), list[Passed]()
    bench.engine.on_passed = told.append
    try:
        return to_a_tick(bench), told
    finally:
        bench.engine.close()


def repeated(make: type[RepeatingBench], code: str, told: list[Passed]) -> tuple[int, ...]:
    bench = begin(make, code)
    bench.engine.repeat(told)
    try:
        return to_a_tick(bench)
    finally:
        bench.engine.close()


@pytest.mark.parametrize("code", [COUNTS, WAITS])
def test_a_guest_that_never_exits_lands_where_it_landed(make: type[RepeatingBench], code: str) -> None:
    there, told = recorded(make, code)
    assert told[-1].landing is not None
    assert (told[-1].landing.meter is not None) == (code == COUNTS)
    assert repeated(make, code, told) == there


def test_a_trap_that_was_planted_is_not_left_behind(make: type[RepeatingBench]) -> None:
    bench = begin(make, COUNTS)
    try:
        to_a_tick(bench)
        assert bytes(bench.memory[CODE : CODE + 5]) == bytes.fromhex(COUNTS)
    finally:
        bench.engine.close()


def test_progress_is_counted_in_exits_and_what_is_told(make: type[RepeatingBench]) -> None:
    bench = begin(make, UD2)
    try:
        bench.engine.repeat([Passed(2, 777)])
        bench.go()
        assert (bench.engine.exits, bench.engine.progress) == (1, UNIT)
        bench.start(UD2)
        bench.go()
        assert (bench.engine.exits, bench.engine.progress) == (2, 2 * UNIT + 777)
    finally:
        bench.engine.close()


def test_a_place_that_the_guest_does_not_come_to_is_named(make: type[RepeatingBench]) -> None:
    landing = Landing(CODE, 0, (7,) * 16, "0" * 16)
    with pytest.raises(VerifyFailed, match=f"behind exit 0 the guest does not come to {CODE:#x}"):
        repeated(make, "90" + UD2, [Passed(0, 1, landing)])
    with pytest.raises(VerifyFailed, match="does not come to 0x123000"):
        repeated(make, "90" + UD2, [Passed(0, 1, landing._replace(place=0x123000))])


def test_stepping_over_a_place_leaves_no_trap_flag(make: type[RepeatingBench]) -> None:
    # mov ecx, 3; again: dec ecx; jnz again; pushfq; pop rax; ud2
    code = "b903000000 ffc9 75fc 9c58" + UD2
    landing = Landing(CODE + 5, 0, (7,) * 16, "0" * 16)
    bench = begin(make, code)
    try:
        bench.engine.repeat([Passed(0, 1, landing)])
        with pytest.raises(VerifyFailed):
            bench.go()
        assert not bench.engine.registers.gpr[r.RAX] & r.FLAG_TF
        assert bytes(bench.memory[CODE : CODE + 5]) == bytes.fromhex(code[:10])
    finally:
        bench.engine.close()
