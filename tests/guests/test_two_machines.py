"""Two machines' memories in one engine: a hostile guest reaches neither the other's nor the hypervisor's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.errors import EngineMissing
from emulator.isa.x86 import walk
from emulator.machine import EndKind, Limits
from paravirt.mmu import frame_types
from paravirt.mmu.direct_host import MACHINE_BASE, DirectHost
from paravirt.mmu.frame_types import Domain, Refusal
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.techniques import PARA_TECHNIQUES, TECHNIQUES

SAMPLES = Path(__file__).parents[2] / "samples"
MEBIBYTE = 1 << 20
SHADOWED = [
    *((isa, name) for isa in ("x86_64", "i386", "aarch64", "armv7") for name in TECHNIQUES),
    ("mips32", ""),
]
HELD = {
    "pages",
    "stale entries",
    "pages beside one's own",
    "tables",
    "large pages",
    "a table in itself",
    "the window",
}
"""What such a kernel says of each way that it tries: another's frames, mapped and not flushed; accessed and dirty bits,
for which pages may be mapped ahead, in `tables` too; another's tables; large pages that go beyond memory; tables mapped
to be written; fixups and the shared page overwritten."""
WITHOUT_TABLES = {"pages", "stale entries", "pages beside one's own"}
REFUSED_CALLS = {"x86_64": 136, "aarch64": 146}
LEVELS: dict[str, Callable[[Any], int]] = {"x86_64": attrgetter("privilege"), "aarch64": attrgetter("level")}
DEPRIVILEGED = {"x86_64": 3, "aarch64": 0}
"""The real level of a guest's kernel."""
NEIGHBOUR = {"x86_64": MACHINE_BASE + 16 * MEBIBYTE, "i386": MACHINE_BASE, "aarch64": MACHINE_BASE + 16 * MEBIBYTE}
"""Engine-physical address of the other's memory in the hostile guest's engine, one of those that it tries; where there
is none, it is one of 32 bits."""


class Two:
    """A victim in the middle of its work, and a guest that is after it."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.printed = bytearray()

    def open(self, file: str, **options: Any) -> Session:
        session = Session(load(SAMPLES / file), Options(**options), self.printed.extend)
        self.sessions.append(session)
        return session

    def attack(self, victim: Session, attacker: Session) -> str:
        """Let the victim begin, and the attacker do all that it has; what that printed."""
        assert victim.run().kind is EndKind.GUEST_TIMEOUT
        before = victim.machine.memory.digest()
        assert any(victim.machine.memory.view[:: 1 << 12])
        self.printed.clear()
        outcome = attacker.run()
        assert outcome.kind in (EndKind.POWER_OFF, EndKind.DEBUG_EXIT), outcome
        self.status = outcome.status
        self.unchanged = victim.machine.memory.digest() == before
        return self.printed.decode()


@pytest.fixture
def two() -> Iterator[Two]:
    made = Two()
    yield made
    for session in made.sessions:
        session.close()


def shadowed(two: Two, isa: str, technique: str) -> str:
    begins = Limits(guest_seconds=0.005, host_seconds=60)
    chosen: dict[str, Any] = {"technique": technique}
    victim = two.open(f"{isa}/portable.elf", memory=64 * MEBIBYTE, limits=begins, **chosen)
    attacker = two.open(
        f"{isa}/isolation.elf", memory=63 * MEBIBYTE, limits=Limits(guest_seconds=60, host_seconds=120), **chosen
    )
    attacker.machine.engine.map_memory(NEIGHBOUR.get(isa, 0xD000_0000), victim.machine.memory.view)
    return two.attack(victim, attacker)


def walked(two: Two, technique: str, engine: str = "unicorn", isa: str = "x86_64") -> tuple[str, Any]:
    host = DirectHost(192 * MEBIBYTE)
    begins = Limits(guest_seconds=0.01, host_seconds=60)
    chosen: dict[str, Any] = {"mode": "para", "technique": technique, "engine": engine}
    victim = two.open(f"{isa}/memory-para.elf", memory=128 * MEBIBYTE, limits=begins, **chosen)
    attacker = two.open(
        f"{isa}/isolation-walked.elf",
        memory=64 * MEBIBYTE,
        limits=Limits(guest_seconds=60, host_seconds=120),
        **chosen,
    )
    drivers: list[Any] = [session.driver for session in (victim, attacker)]
    for driver in drivers:
        driver.shadow.technique.host = host
    printed = two.attack(victim, attacker)
    return printed, drivers[1]


@pytest.mark.parametrize(("isa", "technique"), SHADOWED)
def test_a_kernel_under_shadow_tables_finds_nothing_of_anothers_whatever_it_maps(
    two: Two, isa: str, technique: str
) -> None:
    printed = shadowed(two, isa, technique)
    assert two.unchanged
    assert "FAIL" not in printed, printed
    assert printed.endswith("\n0 failed\n")
    held = {line.removeprefix("held ") for line in printed.splitlines() if line.startswith("held ")}
    assert held == (WITHOUT_TABLES if isa == "mips32" else HELD)
    assert two.status == 0
    driver: Any = two.sessions[1].driver
    faults = sum(count for (what, _), count in driver.exits.counts.items() if what.endswith("to the guest"))
    assert faults + getattr(driver.shadow, "outside", 0) > 150


@pytest.mark.parametrize(
    ("isa", "engine"),
    [("x86_64", "unicorn"), pytest.param("x86_64", "kvm", marks=pytest.mark.kvm), ("aarch64", "unicorn")],
)
@pytest.mark.parametrize("technique", PARA_TECHNIQUES)
def test_a_kernel_whose_own_tables_are_walked_is_refused_all_that_is_not_its_own(
    two: Two, technique: str, isa: str, engine: str
) -> None:
    try:
        printed, driver = walked(two, technique, engine, isa)
    except EngineMissing as error:
        pytest.skip(str(error))
    assert two.unchanged
    assert "FAIL" not in printed, printed
    calls = REFUSED_CALLS[isa] + (7 if technique == "batched" else 0)
    assert printed.endswith(f"\n{calls} calls refused, 0 failed\n")
    assert two.status == 0
    tables = driver.shadow.tables
    refused = tables.domain.refused
    assert {Refusal.NO_FRAME, Refusal.FOREIGN, Refusal.WRITABLE_TABLE, Refusal.OTHER_TYPE, Refusal.MALFORMED} < set(
        refused
    )
    assert 100 < refused.total() <= calls
    assert driver.shared[0xC20 // 8] == refused.total()
    assert LEVELS[isa](driver.engine.registers) == DEPRIVILEGED[isa]


@pytest.mark.parametrize("isa", ["x86_64", "aarch64"])
def test_the_attack_sees_what_a_hypervisor_that_does_not_flush_would_let_through(
    two: Two, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_types.FrameTable, "_must_flush", lambda _self: None)
    with suppress(ValueError):  # its counts are wrong once the guest has written a table
        walked(two, "batched", isa=isa)
    assert b"FAIL a store by the entry that was" in two.printed


def test_the_attack_sees_what_a_hypervisor_that_forgets_who_owns_a_frame_would_let_through(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = DirectHost.add

    def forgetful(self: DirectHost, memory: memoryview, base: int = 0) -> Domain:
        domain = add(self, memory, base)
        self.frames.owner_array[self.frames.owner_array > 1] = domain.number
        return domain

    monkeypatch.setattr(DirectHost, "add", forgetful)
    printed, _ = walked(two, "batched")
    assert "FAIL mapped to be written" in printed


def test_the_attack_sees_what_shadow_tables_that_map_anything_would_let_through(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "RESERVED", 0)

    def anything(self: ShadowPaging, frame: int) -> int:
        there = NEIGHBOUR["x86_64"]
        return frame if there <= frame < there + 64 * MEBIBYTE else self._layout.open_bus

    monkeypatch.setattr(ShadowPaging, "device_page", anything)
    printed = shadowed(two, "x86_64", "snapshot")
    assert "FAIL a page of another's 0x2001000000" in printed
    assert not two.unchanged
