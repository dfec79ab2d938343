"""What a host may be: its quirks have rows, what is missing is one sentence, and what was found is what is done."""

import dataclasses
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emulator.engine.engines import X86_ENGINES, open_engine
from emulator.engine.kvm import device
from emulator.engine.kvm.findings import Findings
from emulator.engine.kvm.quirks import QUIRKS
from emulator.errors import EngineMissing, UsageError


def one_sentence(caught: pytest.ExceptionInfo[EngineMissing]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert "--engine unicorn" in text
    return text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "denied"), "cannot be opened for reading and writing: "),
        (FileNotFoundError(errno.ENOENT, "gone"), "does not exist: this host offers no KVM"),
        (OSError(errno.EBUSY, "Device or resource busy"), "Device or resource busy"),
    ],
)
def test_a_device_that_cannot_be_had_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def refused(*_arguments: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(EngineMissing) as caught:
        device.open_device()
    assert words in one_sentence(caught)


@pytest.mark.parametrize(("mode", "words"), [(0o600, "its mode is 0600; have its owner"), (0o660, "join the group ")])
def test_who_has_no_rights_is_told_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int, words: str
) -> None:
    file = tmp_path / "kvm"
    file.touch()
    file.chmod(mode)

    def refused(*_arguments: object) -> int:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(EngineMissing) as caught:
        device.open_device(str(file))
    assert words in one_sentence(caught)


def test_a_file_that_is_no_kvm_is_one_sentence() -> None:
    with pytest.raises(EngineMissing) as caught:
        device.open_device("/dev/null")
    assert "/dev/null is not KVM" in one_sentence(caught)


def test_another_processor_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(EngineMissing) as caught:
        device.open_device()
    assert "aarch64" in one_sentence(caught)


def test_auto_takes_the_embedded_engine_where_there_is_no_kvm_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise EngineMissing("no such luck")

    monkeypatch.setitem(X86_ENGINES, "kvm", missing)
    reasons: list[str] = []
    engine = open_engine("x86-64", "auto", passed_over=reasons)
    assert (engine.capabilities.name, reasons) == ("unicorn", ["no such luck"])
    engine.close()
    with pytest.raises(EngineMissing, match="no such luck"):
        open_engine("x86-64", "kvm")


def test_a_guest_that_needs_full_privilege_gets_the_engine_that_has_it() -> None:
    engine = open_engine("x86-64", "auto", lambda can: "" if can.full_privilege else "it runs no kernels")
    assert engine.capabilities.full_privilege
    engine.close()


def test_no_32_bit_guest_is_given_to_kvm() -> None:
    with pytest.raises(EngineMissing, match="runs no i386 guests"):
        open_engine("i386", "kvm")
    with pytest.raises(UsageError):
        open_engine("x86-64", "hyperspace")


def test_every_quirk_is_a_row_with_what_is_seen_probed_and_done() -> None:
    fields = {field.name: field for field in dataclasses.fields(Findings)}
    assert len({quirk.name for quirk in QUIRKS}) == len({quirk.field for quirk in QUIRKS}) == len(QUIRKS)
    for quirk in QUIRKS:
        assert fields[quirk.field].type in (bool, "bool")
        assert quirk.seen
        assert quirk.probed
        assert quirk.hidden
        assert re.match(r"https://(docs\.kernel\.org|lore\.kernel\.org)/\S+$", quirk.upstream)
        assert quirk.found(dataclasses.replace(Findings(), **{quirk.field: quirk.present}))
        assert not quirk.found(dataclasses.replace(Findings(), **{quirk.field: not quirk.present}))


def test_a_processor_as_in_the_manual_has_no_quirk_but_those_of_optional_features() -> None:
    assert {quirk.field for quirk in QUIRKS if quirk.found(Findings())} <= {"identify_faults"}


def test_every_finding_is_a_quirk_or_a_measure() -> None:
    measures = {"counter_is_hosts", "crosses", "exit_cost", "flush_by_page", "flush_by_store", "flush_by_table"}
    assert {field.name for field in dataclasses.fields(Findings)} == {quirk.field for quirk in QUIRKS} | measures


def test_capabilities_follow_from_what_was_found() -> None:
    plain = Findings().capabilities()
    assert plain.time_stamp_faults
    assert plain.task_switched_faults
    assert not plain.names_changes
    assert not plain.names_gained
    assert not plain.wide_vectors
    odd = Findings(
        time_stamp_faults=False,
        task_switched_faults=False,
        flush_by_control=False,
        looks_again=False,
        wide_vectors_open=True,
        exit_cost=33.0,
    ).capabilities()
    assert not odd.time_stamp_faults
    assert not odd.task_switched_faults
    assert odd.names_changes
    assert odd.names_gained
    assert odd.wide_vectors
    assert odd.exit_cost == 33.0


def test_the_engine_is_python_alone_and_is_not_loaded_before_it_is_opened() -> None:
    code = "import sys, emulator.machine; sys.exit(any(name.startswith('emulator.engine.kvm') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
