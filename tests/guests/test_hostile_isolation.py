"""Hostile guests under a watched hypervisor: real CPL 3 at every exit, and nothing of the hypervisor's reached."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.engine.exit import Exit
from emulator.machine import Limits
from paravirt import abi, layout
from paravirt.mmu.views import KERNEL_VIEW
from paravirt.modes.x86.hypervisor import X86Hypervisor
from paravirt.translator import Fixup, Translation

SAMPLES = Path(__file__).parents[2] / "samples"
MANIFEST: dict[str, Any] = tomllib.loads((SAMPLES / "manifest.toml").read_text())
HOSTILE = {guest["name"]: guest for guest in MANIFEST["guest"] if guest["kind"] == "hostile"}

ENDLESS = {"spin": 0.002, "spin-with-exits": 0.002, "fault-loop": 0.002, "hypervisor-pages-run": 0.0001}
"""Guest time that shows what such a guest does, in seconds; the last one's instructions are slow."""

_PRESENT, _WRITABLE, _USER, _LARGE, _NO_EXECUTE = 1, 2, 4, 0x80, 1 << 63
_FRAME = 0x000F_FFFF_FFFF_F000


class Mapping(NamedTuple):
    """One leaf of the shadow tables."""

    window: bool
    """It lies in the last 2 MiB of the address space."""
    physical: int
    writable: bool
    executable: bool


class Watched:
    """A session whose every exit is looked at, and whose hypervisor's memory is known."""

    def __init__(self, name: str, mode: str) -> None:
        guest = HOSTILE[name]
        self.console = bytearray()
        limits = Limits(guest_seconds=ENDLESS.get(name, 10.0), host_seconds=60)
        options = Options(mode=mode, memory=guest["memory"] << 20, limits=limits, cache=False)
        self.session = Session(load(SAMPLES / guest["file"]), options, self.console.extend)
        driver = self.session.driver
        assert isinstance(driver, X86Hypervisor)
        self.hypervisor = driver
        self.levels: set[tuple[int, int]] = set()
        """Real CPL, and the privilege that the real CS selector asks for, at every exit."""
        self.fixups: list[Fixup] = []
        self.exits = 0
        handle = driver._handle
        registers: Any = driver.engine.registers

        def watched(exit_: Exit) -> None:
            self.exits += 1
            self.levels.add((registers.privilege, registers.segment(1)[0] & 3))
            handle(exit_)
            self.levels.add((registers.privilege, registers.segment(1)[0] & 3))

        monkey: Any = driver
        monkey._handle = watched
        translator = self.session.translator
        if translator is not None:
            self._watch_fixups(translator)

    def _watch_fixups(self, translator: Any) -> None:
        translate = translator.translate

        def watched(address: int, code: bytes, before: bytes, after: bytes, entry: int) -> Translation:
            translation: Translation = translate(address, code, before, after, entry)
            self.fixups.extend(translation.fixups)
            return translation

        translator.translate = watched

    def mapped(self, root: int) -> Iterator[Mapping]:
        """Every different mapping below a shadow root. Tables may contain each other, so paths are not all followed."""
        words = self.hypervisor.shadow.pool.words
        waiting = [(root, 4, True, _WRITABLE | _USER)]
        seen = set(waiting)
        while waiting:
            table, level, at_top, rights = waiting.pop()
            for index in range(512):
                entry = words[(table << 9) + index]
                if not entry & _PRESENT:
                    continue
                # The hypervisor's window is the last 2 MiB: the last entry of the three upper levels.
                window = at_top and (level == 1 or index == 511)
                here = (rights & entry & (_WRITABLE | _USER)) | ((rights | entry) & _NO_EXECUTE)
                if level == 1 or entry & _LARGE:
                    yield Mapping(window, entry & _FRAME, here & _WRITABLE != 0, not here & _NO_EXECUTE)
                    continue
                below = entry & _FRAME
                assert layout.TABLES_BASE <= below < layout.TABLES_BASE + (layout.TABLE_COUNT << 12)
                step = (below - layout.TABLES_BASE) >> 12, level - 1, window, here
                if step not in seen:
                    seen.add(step)
                    waiting.append(step)

    def looked_up(self) -> set[str]:
        """Check every mapping of every root; what they point to."""
        memory = self.session.options.memory
        return {
            check(mapping, role & 1 == KERNEL_VIEW, memory)
            for (_, _, role), root in self.hypervisor.shadow._roots.items()
            for mapping in self.mapped(root)
        }


@pytest.fixture
def watched(request: pytest.FixtureRequest) -> Any:
    name, mode = request.param
    made = Watched(name, mode)
    yield made
    made.session.close()


CASES = [(name, mode) for name in sorted(HOSTILE) for mode in ("none", "trap", "inline")]


@pytest.mark.slow
@pytest.mark.parametrize("watched", CASES, indirect=True, ids=["-".join(case) for case in CASES])
def test_a_hostile_guest_never_leaves_user_mode_nor_reaches_the_hypervisor(watched: Watched) -> None:
    outcome = watched.session.run()
    assert watched.exits > 50
    assert watched.levels == {(3, 3)}, f"after {outcome}"
    hypervisor = watched.hypervisor
    window = bytes(hypervisor.code._window)
    for fixup in watched.fixups:
        at = fixup.address - abi.FIXUP_BASE
        assert window[at : at + len(fixup.code)] == fixup.code
    assert "guest" in watched.looked_up()


@pytest.mark.parametrize("watched", [("shared-page", "inline")], indirect=True)
def test_the_watch_sees_the_hypervisors_pages_and_a_mapping_that_must_not_be(watched: Watched) -> None:
    watched.session.run()
    assert {"guest", "code", "window"} <= watched.looked_up()
    shadow = watched.hypervisor.shadow
    words = shadow.pool.words
    copy = next(
        at
        for at in range(len(words))
        if layout.CODE_BASE <= words[at] & _FRAME < layout.CODE_BASE + (layout.CODE_COUNT << 12)
    )
    words[copy] |= _WRITABLE
    with pytest.raises(AssertionError, match="writable=True"):
        watched.looked_up()


def check(mapping: Mapping, kernel_view: bool, memory: int) -> str:
    """What a shadow entry may point to, and with which rights; says what it points to."""
    physical, where = mapping.physical, f"{mapping} in the {'kernel' if kernel_view else 'user'} view"
    assert not (kernel_view and mapping.writable and mapping.executable), where
    if physical < layout.TABLES_BASE:
        assert not (kernel_view and mapping.window), where
        assert physical < memory or not mapping.executable, where
        return "guest"
    if layout.WINDOW_BASE <= physical < layout.WINDOW_BASE + layout.WINDOW_SIZE:
        shared = physical == layout.WINDOW_BASE + abi.SHARED_PAGE - abi.HYPERVISOR_BASE
        assert kernel_view, where
        assert mapping.window, where
        assert mapping.writable == shared, where
        assert mapping.executable != shared, where
        return "window"
    if layout.CODE_BASE <= physical < layout.CODE_BASE + (layout.CODE_COUNT << 12):
        assert kernel_view, where
        assert not mapping.writable, where
        return "code"
    if layout.DESCRIPTORS_BASE <= physical < layout.DESCRIPTORS_BASE + layout.DESCRIPTORS_SIZE:
        assert not mapping.writable, where
        assert not mapping.executable, where
        return "descriptors"
    assert physical == layout.OPEN_BUS, where
    assert not mapping.executable, where
    return "device"
