"""The Python API does the same things with guests of every instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

import bt

SAMPLES = Path(__file__).parents[3] / "samples"
FOLDERS = ("x86_64", "i386", "aarch64", "armv7", "mips32", "mips32/big")


def open_guest(folder: str, *, reverse: bool = False) -> bt.Guest:
    return bt.open_guest(SAMPLES / folder / "portable.elf", bt.Options(memory=64 << 20, cache=False), reverse=reverse)


def number(guest: bt.Guest, name: str) -> int:
    """The value of an int of the guest's."""
    return int.from_bytes(guest.read(name, 4), order(guest))


def order(guest: bt.Guest) -> Literal["big", "little"]:
    """Its byte order."""
    return "big" if guest.target.byte_order == "big" else "little"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_guest_runs_until_whatever_is_asked(folder: str) -> None:
    with open_guest(folder) as guest:
        start = guest.address("kernel_main")
        stop = guest.run(start)
        assert (stop.kind, guest.pc, guest.name(guest.pc)) == (bt.StopKind.BREAKPOINT, start, "kernel_main")
        assert guest.run("arch_put_char").kind is bt.StopKind.BREAKPOINT
        assert guest.run(text="portable sample kernel").kind is bt.StopKind.ASKED
        assert b"retrap portable sample kernel" in guest.console
        assert guest.run(event="exception").kind is bt.StopKind.ASKED
        assert guest.run(when=lambda here: number(here, "checks_done") > 12).kind is bt.StopKind.ASKED
        assert number(guest, "checks_done") > 12
        assert number(guest, "checks_failed") == 0
        until = guest.time + 0.0001
        guest.run(seconds=until)
        assert guest.time >= until
        assert [seen.kind for seen, _ in zip(guest.exits(), range(5), strict=False)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_registers_and_memory_are_read_and_written(folder: str) -> None:
    with open_guest(folder) as guest:
        guest.run("catch_fault")
        name = {"x86_64": "rax", "i386": "eax", "aarch64": "x9"}.get(folder, "r9")
        before = guest.registers[name]
        guest.registers[name] = 0x1234_5678
        assert guest.registers[name] == 0x1234_5678
        guest.registers[name] = before
        assert set(guest.registers) == set(guest.target.by_name)
        assert all(isinstance(value, int) for value in guest.registers.values())
        size = guest.target.word
        place = guest.debugger.place(guest.address("checks_done"))
        assert place is not None
        guest.write("checks_done", (7).to_bytes(size, order(guest)))
        assert guest.word("checks_done") == 7
        assert guest.read(place, size, physical=True) == (7).to_bytes(size, order(guest))
        guest.write(place, (8).to_bytes(size, order(guest)), physical=True)
        assert guest.word("checks_done") == 8
        called: list[int] = []
        mark = guest.breakpoint("print", lambda here: called.append(here.pc))
        guest.run("check_paging")
        mark.remove()
        assert set(called) <= {guest.address("print")}
        address = guest.pc
        assert guest.step().kind is bt.StopKind.STEP
        assert guest.pc != address


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_snapshot_goes_on_and_a_history_goes_back(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "here.snapshot"
    with open_guest(folder) as guest:
        guest.run("check_exceptions")
        guest.snapshot(file)
        guest.run("check_paging")
        end = guest.session.driver.state, guest.time, bytes(guest.console)
    with bt.resume(file) as again:
        assert again.name(again.pc) == "check_exceptions"
        again.run("check_paging")
        assert (again.session.driver.state, again.time) == end[:2]
        assert end[2].endswith(bytes(again.console))
    with open_guest(folder, reverse=True) as guest:
        guest.run("catch_fault")
        guest.run("catch_fault")
        state, position = guest.session.driver.state, guest.position
        assert position is not None
        guest.step(5)
        guest.step_back()
        guest.goto(position)
        assert (guest.session.driver.state, guest.position) == (state, position)
        guest.run("check_paging")
        later, there = guest.session.driver.state, guest.position
        guest.goto(position)
        assert guest.session.driver.state == state, "backwards as forwards"
        assert there is not None
        guest.goto(str(there))
        assert guest.session.driver.state == later, "and forwards as before"
