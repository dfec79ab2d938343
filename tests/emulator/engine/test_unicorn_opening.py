"""The embedded engine fulfils the protocol, and refuses to open on a Unicorn that it does not know."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from emulator.engine.unicorn import confirm as confirming
from emulator.engine.unicorn import state
from emulator.engine.unicorn.engine import UnicornEngine
from emulator.engine.x86 import X86Engine, X86Registers
from emulator.errors import EngineMissing


def one_sentence(open_engine: Callable[[], object]) -> str:
    with pytest.raises(EngineMissing) as caught:
        open_engine()
    text = str(caught.value)
    assert "\n" not in text
    assert "unicorn" in text
    return text


def test_the_engine_and_its_registers_fulfil_the_protocols() -> None:
    engine: X86Engine = UnicornEngine()
    registers: X86Registers = engine.registers
    assert engine.registers is registers
    engine.close()


def test_another_version_is_refused_and_the_way_out_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unicorn.__version__", "2.2.0")
    text = one_sentence(UnicornEngine)
    assert "2.2.0" in text
    assert "pip install unicorn==2.1.4" in text


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(("W_RIP", 1), ("_W_CC_SRC", 1), ("_W_CC_OP", 1), ("_W_CR", 1), ("_SEGMENTS", 24), ("_GDT", 24), ("_IDT", 24)),
        *(("_DR", 8), ("_H_FLAGS", 1), ("_H_FLAGS", -1), ("W_NEXT_RIP", 1), ("I_OLD", 1), ("W_EVENT", 1)),
    ],
)
def test_a_field_that_is_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, step: int) -> None:
    monkeypatch.setattr(state, name, getattr(state, name) + step)
    text = one_sentence(UnicornEngine)
    assert "unicorn==2.1.4" in text


def test_an_msr_that_is_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(state._MSRS, 0xC000_0082, state._MSRS[0xC000_0082] + 8)
    assert "MSR 0xc0000082" in one_sentence(UnicornEngine)


def test_a_state_that_is_not_found_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_lives", lambda *_: False)
    assert "CPU state" in one_sentence(UnicornEngine)


def test_another_processor_than_x86_64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert "riscv64" in one_sentence(UnicornEngine)


def test_without_execute_only_pages_the_capability_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_CR4_PKE", 0)
    engine = UnicornEngine()
    assert not engine.capabilities.execute_only
    engine.close()


def test_opening_leaves_a_fresh_processor() -> None:
    engine = UnicornEngine()
    registers = engine.registers
    assert list(registers.gpr) == [0] * 16
    assert (registers.privilege, registers.cr2, registers.control(3)) == (0, 0, 0)
    assert [registers.msr(number) for number in (0xC000_0081, 0xC000_0082, 0xC000_0084, 0xC000_0102)] == [0] * 4
    engine.close()


def test_memory_that_cannot_be_mapped_is_one_sentence() -> None:
    engine = UnicornEngine()
    memory: Any = memoryview(bytearray(4096 + 100))
    one_sentence(lambda: engine.map_memory(0x10, memory))
    engine.close()


def test_the_machine_can_be_imported_without_loading_unicorn() -> None:
    code = "import sys, emulator.machine; sys.exit('unicorn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_experiments_at_opening_name_what_they_found(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = confirming._refuse("RIP", 1, 2)
    assert "RIP" in str(refusal)
    assert "expected 1, found 2" in str(refusal)
    monkeypatch.setattr(confirming, "_CODE", bytes.fromhex("90" * 16 + "0f0b"))
    one_sentence(UnicornEngine)
