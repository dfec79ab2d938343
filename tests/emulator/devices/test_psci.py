"""The power interface of one CPU, call by call."""

import pytest

from emulator.devices import psci as p
from emulator.devices.psci import Psci


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def psci(ended: list[str]) -> Psci:
    return Psci(lambda: ended.append("off"), lambda: ended.append("reset"))


def test_it_is_version_1_1_and_has_no_trusted_system(psci: Psci) -> None:
    assert psci.call(p.VERSION, [0]) == 0x1_0001
    assert psci.call(p.MIGRATE_TYPE, [0]) == 2


def test_it_ends_the_run(psci: Psci, ended: list[str]) -> None:
    psci.call(p.SYSTEM_OFF, [0])
    psci.call(0xFFFF_FFFF_0000_0000 | p.SYSTEM_RESET, [0])  # the upper half of a register is not looked at
    assert ended == ["off", "reset"]


def test_features_are_those_that_can_be_called(psci: Psci) -> None:
    assert psci.call(p.FEATURES, [p.CPU_ON | p.WIDE]) == p.SUCCESS
    assert psci.call(p.FEATURES, [0x8400_0012]) == p.NOT_SUPPORTED
    assert psci.call(0x8400_0012, [0]) == p.NOT_SUPPORTED


def test_the_only_cpu_is_on_and_stays_on(psci: Psci) -> None:
    assert psci.call(p.CPU_ON | p.WIDE, [0, 0x1000, 0]) == p.ALREADY_ON
    assert psci.call(p.CPU_ON, [1, 0x1000, 0]) == p.INVALID_PARAMETERS
    assert psci.call(p.AFFINITY_INFO | p.WIDE, [0, 0]) == 0
    assert psci.call(p.CPU_OFF, [0]) == p.DENIED
    assert psci.call(p.CPU_SUSPEND | p.WIDE, [0, 0, 0]) == p.SUCCESS
