"""Shadow paging under random guests: every access is right, and code is not writable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.isa.x86.processor import Fault
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from tests.emulator.guest_image import USER_TABLE
from tests.paravirt.model_mmu import NX, ModelMmu
from tests.paravirt.shadowed_pages import FRAME, HIGH, PAGE, PS, P, U, W, tables

ACCESSES = st.tuples(st.just("access"), st.integers(0, 7), st.sampled_from(["read", "write", "fetch"]))
RIGHTS = st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans())
EDITS = st.tuples(
    st.just("edit"), st.integers(0, 7), st.integers(0, 3), RIGHTS, st.sampled_from(["page", "root", "all"])
)
UPPER = st.tuples(
    st.just("upper"), st.sampled_from([2, 3, 4]), st.booleans(), st.booleans(), st.sampled_from(["root", "all"])
)
VIEWS = st.tuples(st.just("view"), st.sampled_from([KERNEL_VIEW, USER_VIEW]))
PROTECT = st.tuples(st.just("protect"), st.booleans())
STORES = st.tuples(st.just("store"), st.integers(0, 3))
LARGE_PAGES = st.tuples(st.just("large"), st.booleans(), st.sampled_from(["root", "all"]))
PLACES = [PAGE + index * 4096 for index in range(4)] + [HIGH + index * 4096 for index in range(4)]


def perform(mmu: ModelMmu, step: Any) -> None:
    """One step of a random guest; every access must reach what the guest's tables say."""
    match step:
        case ("access", number, kind):
            access = {"write": kind == "write", "fetch": kind == "fetch"}
            address = PLACES[number]
            expected = mmu.expected(address, **access)
            try:
                found: int | Fault = mmu.source(mmu.access(address, **access))
            except Fault as fault:
                found = fault
            if isinstance(expected, Fault):
                assert isinstance(found, Fault), f"{address:#x} {kind} gives {found:#x} instead of {expected}"
                assert (found.vector, found.error) == (expected.vector, expected.error)
            else:
                assert found == expected
        case ("edit", number, frame, (present, writable, user, execute), how):
            entry = FRAME + frame * 4096 | W * writable | U * user | (0 if execute else NX)
            address = PLACES[number]
            if mmu.tables.entry(address, 2) & PS:
                return
            mmu.tables.map(address, entry | P if present else 0)
            flush(mmu, how, address)
        case ("upper", level, writable, execute, how):
            at = mmu.tables.place(PAGE, level)
            word = mmu.tables.words[at]
            mmu.tables.words[at] = word & ~(W | NX) | W * writable | (0 if execute else NX)
            flush(mmu, how, PAGE)
        case ("large", on, how):
            at = mmu.tables.place(PAGE, 2)
            small = 0x18_0000
            mmu.tables.words[at] = 0x20_0000 | P | W | U | PS if on else small | USER_TABLE
            flush(mmu, how, PAGE)
        case ("view", view):
            mmu.shadow.use(view)
        case ("protect", on):
            mmu.context.write_protect = on
            mmu.shadow.flush_all()
        case ("store", frame):
            mmu.shadow.written((FRAME >> 12) + frame)
            at = FRAME + frame * 4096
            mmu.memory[at] = mmu.memory[at] + 1 & 0xFF


def flush(mmu: ModelMmu, how: str, address: int) -> None:
    if how == "page":
        mmu.shadow.invalidate(address)
    elif how == "root":
        mmu.shadow.load_root()
    else:
        mmu.shadow.flush_all()


STEPS = st.lists(
    st.one_of(ACCESSES, ACCESSES, ACCESSES, EDITS, UPPER, VIEWS, PROTECT, STORES, LARGE_PAGES), max_size=40
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, guard=st.booleans(), count=st.sampled_from([12, 20, 64]))
def test_whatever_a_guest_does_its_accesses_are_right_and_its_code_is_not_writable(
    steps: list[Any], guard: bool, count: int
) -> None:
    mmu = ModelMmu(guard=guard, places=replace(tables(count), code_count=8))
    mmu.tables.map(PAGE, 0x18_0000 | USER_TABLE, 2)
    for number, place in enumerate(PLACES):
        mmu.tables.map(place, FRAME + (number & 3) * 4096 | P | W | U)
    for step in steps:
        perform(mmu, step)
        mmu.check()
