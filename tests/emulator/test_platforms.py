"""Every instruction set that can be run has its place in every table; one that has none is refused in a sentence."""

from __future__ import annotations

from itertools import pairwise

import pytest

from emulator.engine.engines import ENGINES
from emulator.errors import BadImage
from emulator.isa.isas import ISAS
from emulator.machine import Machine
from emulator.platforms import PLATFORMS, platform_of
from paravirt.modes import MODES, hypervisor_for
from paravirt.translator import Untouched

MEMORY = 16 << 20


def test_an_instruction_set_without_a_machine_is_refused() -> None:
    with pytest.raises(BadImage, match="there is no machine for vax guests yet; those of x86-64"):
        platform_of("vax")


def test_what_has_a_machine_is_known_and_has_an_engine_and_a_hypervisor() -> None:
    for isa in PLATFORMS:
        assert isa in ISAS
        assert isa in ENGINES
        assert isa in MODES


@pytest.mark.parametrize("isa", PLATFORMS)
def test_a_machine_has_its_memory_where_the_platform_says_and_devices_elsewhere(isa: str) -> None:
    platform = platform_of(isa)
    machine = Machine(MEMORY, lambda _: None, platform=platform)
    try:
        assert (machine.memory.base, machine.memory.size) == (platform.memory_base, MEMORY)
        for start, size in machine.board.device_space:
            assert size > 0
            assert start + size <= machine.memory.base or start >= machine.memory.end
        assert machine.clock.units_per_second == machine.engine.capabilities.progress_per_second
    finally:
        machine.close()


@pytest.mark.parametrize("isa", MODES)
def test_the_hypervisors_memory_is_apart_from_the_guests_and_its_devices(isa: str) -> None:
    machine = Machine(MEMORY, lambda _: None, platform=platform_of(isa))
    try:
        hypervisor = hypervisor_for(machine, Untouched())
        layout = hypervisor.LAYOUT
        ranges = sorted(
            [
                (machine.memory.base, machine.memory.size),
                (layout.tables, layout.tables_size),
                (layout.code, layout.code_count << 12),
                (layout.window, layout.window_size),
                (layout.open_bus, 4096),
                *machine.board.device_space,
            ]
        )
        for (start, size), (following, _) in pairwise(ranges):
            assert start + size <= following, f"{start:#x}+{size:#x} reaches {following:#x}"
        window = hypervisor.WINDOW
        assert window.isa == isa
        assert window.end <= window.base + window.size <= window.last_address + 1
    finally:
        machine.close()
