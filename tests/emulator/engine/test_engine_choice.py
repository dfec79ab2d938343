"""Which engine a guest gets: by name, or the fastest that will do; and one sentence where it gets none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from emulator.engine import engines
from emulator.engine.protocol import Capabilities
from emulator.engine.unicorn.engine import CAPABILITIES
from emulator.errors import EngineMissing, UsageError


class Stub:
    """An engine that was opened."""

    def __init__(self, name: str, **able: Any) -> None:
        self.capabilities = replace(CAPABILITIES, name=name, **able)
        self.closed = False

    def close(self) -> None:
        """Remembers it."""
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Stub]:
    """An instruction set with two engines, of which the fast one has no full privilege."""
    made: list[Stub] = []

    def opener(name: str, **able: Any) -> Any:
        def open_it() -> Stub:
            made.append(Stub(name, **able))
            return made[-1]

        return open_it

    table: Any = {"unicorn": opener("unicorn"), "kvm": opener("kvm", full_privilege=False)}
    monkeypatch.setitem(engines.ENGINES, "toy", table)
    return made


def privileged(capabilities: Capabilities) -> str:
    return "" if capabilities.full_privilege else "it runs no kernel at full privilege"


def test_without_a_name_the_first_of_the_table_is_taken(opened: list[Stub]) -> None:
    assert engines.open_engine("toy").capabilities.name == "unicorn"


def test_auto_takes_the_fastest(opened: list[Stub]) -> None:
    assert engines.open_engine("toy", "auto").capabilities.name == "kvm"


def test_auto_closes_what_lacks_something_says_why_and_takes_the_next(opened: list[Stub]) -> None:
    reasons: list[str] = []
    assert engines.open_engine("toy", "auto", privileged, reasons).capabilities.name == "unicorn"
    assert [stub.closed for stub in opened] == [True, False]
    assert reasons == ["the kvm engine cannot run this guest so: it runs no kernel at full privilege"]


def test_a_named_engine_that_lacks_something_is_refused_in_one_sentence(opened: list[Stub]) -> None:
    with pytest.raises(EngineMissing, match="the kvm engine cannot run this guest so: it runs no kernel"):
        engines.open_engine("toy", "kvm", privileged)
    assert opened[0].closed


def test_auto_names_every_reason_when_none_will_do(opened: list[Stub]) -> None:
    with pytest.raises(EngineMissing, match=r"no engine can run this toy guest here: the kvm .*; the unicorn "):
        engines.open_engine("toy", "auto", lambda _: "it is too small")
    assert all(stub.closed for stub in opened)


def test_an_unknown_name_and_an_unknown_instruction_set_are_refused(opened: list[Stub]) -> None:
    with pytest.raises(UsageError, match="no engine called 'bochs'; take one of auto, kvm, unicorn"):
        engines.open_engine("toy", "bochs")
    with pytest.raises(EngineMissing, match="no engine runs vax guests yet"):
        engines.open_engine("vax")


def test_an_engine_that_the_instruction_set_has_not_is_refused() -> None:
    with pytest.raises(EngineMissing, match="the kvm engine runs no mips32 guests; take one of unicorn"):
        engines.open_engine("mips32", "kvm")
