"""What an engine reads in place lies where it is looked for, or the engine does not open: on every instruction set.

The experiments of `test_unicorn_opening` are those of 64-bit x86; i386 is the same processor.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from emulator.engine.engines import open_engine
from emulator.engine.unicorn import aarch64_state, arm_state, mips_blocks, mips_state, state
from emulator.errors import EngineMissing


def refused(open_one: Callable[[], Any]) -> None:
    """It does not open, and says so in a sentence with the way out."""
    with pytest.raises(EngineMissing) as caught:
        open_one().close()
    text = str(caught.value)
    assert "\n" not in text
    assert "unicorn" in text
    assert "install unicorn==2.1.4" in text


def fields(isa: str, module: ModuleType, text: str) -> list[Any]:
    """Fields of a module as `name:step`: how far elsewhere it is said to be."""
    return [
        pytest.param(isa, module, name, int(step), id=f"{isa}-{name}")
        for name, _, step in (word.partition(":") for word in text.split())
    ]


FIELDS = [
    *fields(
        "mips32",
        mips_state,
        "CPU_POINTER:8 STATE:4 STOP_INTERRUPT:8 EXCEPTION_INDEX:4 INVALID_ERROR:4 _PC:1 _HI:1 _LO:1 _USER_LOCAL:1 "
        "_FPR:8 _FCSR:1 _ROUNDING:1 _FLUSH:1 _LINK:1 _LINKED:1 _ERROR_CODE:1 _HFLAGS:1 _TARGET:1 _CONDITION:1",
    ),
    *fields(
        "armv7",
        arm_state,
        "_MODE:1 _SPSR:1 _BANKED_SPSR:2 _BANKED_SP:1 _BANKED_LR:1 _THUMB:1 _IT:1 W_SYNDROME:1 W_STATUS:1 "
        "W_FAULT_ADDRESS:1 _FPEXC:1 _EXCLUSIVE:1",
    ),
    *fields(
        "aarch64",
        aarch64_state,
        "_PSTATE:4 _MODE:4 _CARRY:4 _OVERFLOW:4 _NEGATIVE:4 _ZERO:4 _DAIF:8 _VECTORS:8 _EXCLUSIVE:8 _HCR:8 _SCR:8 "
        "_MDSCR:8 W_PC:1 W_FAULT_ADDRESS:1 H_SYNDROME:1 STATE_AT:8 _STATE_POINTER:8",
    ),
    *fields("i386", state, "W_RIP:1 _W_CC_SRC:1 _H_FLAGS:1 _SEGMENTS:24 _GDT:24 _IDT:24 _DR:8 I_OLD:1 W_EVENT:1"),
]


@pytest.mark.parametrize(("isa", "module", "name", "step"), FIELDS)
def test_a_field_that_is_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, isa: str, module: ModuleType, name: str, step: int
) -> None:
    monkeypatch.setattr(module, name, getattr(module, name) + step)
    refused(lambda: open_engine(isa))


@pytest.mark.parametrize("name", ["_ROOT", "_DOMAINS", "_USER_THREAD", "_USER_THREAD_RO"])
def test_a_register_of_both_worlds_that_is_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(arm_state, name, tuple(place + 1 for place in getattr(arm_state, name)))
    refused(lambda: open_engine("armv7"))


@pytest.mark.parametrize("name", sorted(aarch64_state.IN_PLACE))
def test_a_system_register_of_aarch64_that_is_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(aarch64_state.IN_PLACE, name, aarch64_state.IN_PLACE[name] + 8)
    refused(lambda: open_engine("aarch64"))


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("name", sorted(set(mips_state.CP0) - {"SegCtl0", "SegCtl1", "SegCtl2"}))
def test_a_register_of_coprocessor_0_that_is_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, order: str
) -> None:
    monkeypatch.setitem(mips_state.CP0, name, mips_state.CP0[name] + 4)
    refused(lambda: open_engine("mips32", byte_order=order))


def test_another_translator_of_mips_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mips_blocks, "_kept", {})
    monkeypatch.setattr(mips_blocks, "_BEGINS", bytes(len(mips_blocks._BEGINS)))
    refused(lambda: open_engine("mips32"))
