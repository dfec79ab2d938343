"""gdb and gdb-multiarch, as people use them: breakpoints, symbols, `monitor`, and the way back."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from bt.gdb.symbol_file import write_symbol_file
from paravirt.services.positions import position_of
from tests.bt.gdb.debugged import FOLDERS, SAMPLE, Opened, opened


@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")
def test_gdb_debugs_the_guest_through_its_machine_interface(tmp_path: Path) -> None:
    with opened(reverse=True) as one:
        symbols = tmp_path / "guest.sym"
        write_symbol_file(one.session.image, symbols)
        serving = threading.Thread(target=one.server.serve)
        serving.start()
        commands = (
            f"-target-select remote 127.0.0.1:{one.port}",
            "-break-insert check_cli_pushf",
            "-exec-continue",
            "-data-evaluate-expression $cr3",
            "-data-disassemble -s $pc -e $pc+2 -- 0",
            "-exec-step-instruction",
            "-exec-step-instruction --reverse",
            '-interpreter-exec console "monitor walk check_cli_pushf"',
            '-interpreter-exec console "kill"',
            "-gdb-exit",
        )
        with subprocess.Popen(
            ("gdb", "-nx", "-q", "--interpreter=mi2", str(symbols)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as gdb:
            assert gdb.stdin is not None
            assert gdb.stdout is not None
            printed = []
            for command in commands:
                gdb.stdin.write(command + "\n")
                gdb.stdin.flush()
                for line in gdb.stdout:
                    printed.append(line)
                    waits = command.startswith(("-exec", "-target"))
                    if line.startswith(("^error", "^exit", "*stopped" if waits else "^done")):
                        break
        serving.join(60)
        text = "".join(printed)
        assert "^error" not in text, text
        assert 'reason="breakpoint-hit"' in text
        assert "cli" in text
        assert "is guest-physical" in text
        assert not serving.is_alive()


@pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="needs gdb-multiarch")
@pytest.mark.parametrize("folder", [*FOLDERS, "mips32/big"])
def test_gdb_has_symbols_by_itself_and_all_that_monitor_shows(folder: str, tmp_path: Path) -> None:
    with opened(image=SAMPLE.parents[1] / folder / "portable.elf") as one:
        symbols, trace = tmp_path / "guest.sym", tmp_path / "exits.txt"
        write_symbol_file(one.session.image, symbols)
        one.server.symbol_file = str(symbols)
        serving = threading.Thread(target=one.server.serve)
        serving.start()
        address = one.symbol("catch_fault")
        place = one.session.physical(address)
        lines = (
            *(f"target remote 127.0.0.1:{one.port}", "break *catch_fault", "continue", "stepi", "x/i $pc"),
            *(
                "monitor walk catch_fault",
                "monitor tables",
                "monitor cpu",
                "monitor exits",
                "monitor sites catch_fault",
            ),
            *(f"monitor trace on {trace}", "delete", "rwatch *(int *)&checks_done", "continue"),
            *("delete", "tbreak check_paging", "continue", "monitor trace off"),
            *("monitor physical on", f"x/4xb {place:#x}", "monitor physical off", "x/4xb &catch_fault"),
            *("monitor text rewritten", "monitor text original", "monitor nothing", "kill"),
        )
        shown = subprocess.run(
            ("gdb-multiarch", "-nx", "-q", "-batch", *(word for line in lines for word in ("-ex", line))),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        ).stdout
        serving.join(60)
    assert "Breakpoint 1, " in shown, shown
    assert "<catch_fault+" in shown, shown
    assert f"{address:#x} is guest-physical {place:#x}" in shown
    assert "Hardware read watchpoint" in shown
    assert "Value = " in shown
    assert trace.read_text()
    memory = [line.partition(":\t")[2] for line in shown.splitlines() if ":\t0x" in line and line.count("\t") == 4]
    assert len(memory) == 2, shown
    assert memory[0] == memory[1], "one place by both kinds of addresses"
    for text in (
        "-> ",
        "original  at ",
        "in all",
        "as it executes",
        "no trace is written",
        "there is no monitor command",
    ):
        assert text in shown, (text, shown)


@pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="needs gdb-multiarch")
@pytest.mark.parametrize("folder", FOLDERS[1:])
def test_gdb_multiarch_goes_backwards(folder: str, tmp_path: Path) -> None:
    with opened(reverse=True, image=SAMPLE.parents[1] / folder / "portable.elf") as one:
        symbols = tmp_path / "guest.sym"
        write_symbol_file(one.session.image, symbols)
        serving = threading.Thread(target=one.server.serve)
        serving.start()
        lines = (
            *(f"target remote 127.0.0.1:{one.port}", "break catch_fault", "continue", "continue 5", "delete"),
            *("watch *(int *)&checks_done", "reverse-continue", "output (long) $pc", 'printf " is the store\\n"'),
            *("stepi", "reverse-stepi", "output (long) $pc", 'printf " is back at it\\n"', "kill"),
        )
        shown = subprocess.run(
            ("gdb-multiarch", "-nx", "-q", "-batch", *(word for line in lines for word in ("-ex", line)), symbols),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        ).stdout
        serving.join(60)
        values = [int(line.split(" = ")[1]) for line in shown.splitlines() if line.startswith(("Old value", "New"))]
        assert len(values) >= 2, shown
        assert values[0] == values[1] + 1, "the store is undone: one check fewer is done before it"
        places = [line.split()[0] for line in shown.splitlines() if line.endswith((" is the store", " is back at it"))]
        assert len(places) == 2, shown
        assert places[0] == places[1]


def corrupted(one: Opened) -> int:
    """Give the guest a bug, before it begins: one of its checks stores into what is not its own. Where it does so."""
    address, victim = one.symbol("check_numbers"), one.symbol("checks_failed")
    code = b"\xc7\x04\x25" + (victim & 0xFFFF_FFFF).to_bytes(4, "little") + (0xBAD).to_bytes(4, "little") + b"\xc3"
    one.debugger.write(address, code)  # mov dword [victim], 0xbad ; ret
    return address


def hashed(one: Opened) -> tuple[object, str]:
    """The guest's whole state."""
    return one.session.driver.state, hashlib.sha256(one.session.machine.memory.view).hexdigest()


@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")
def test_a_reverse_watchpoint_lands_on_the_store_that_corrupted_memory(tmp_path: Path) -> None:
    image = SAMPLE.parent / "portable.elf"
    with opened(reverse=True, image=image) as one:
        culprit = corrupted(one)
        symbols = tmp_path / "guest.sym"
        write_symbol_file(one.session.image, symbols)
        serving = threading.Thread(target=one.server.serve)
        serving.start()
        lines = (
            *(f"target remote 127.0.0.1:{one.port}", "break check_paging", "continue", "monitor position"),
            *("print *(int *)&checks_failed", "delete", "watch *(int *)&checks_failed", "reverse-continue"),
            *('printf "the store is at %#lx\\n", (unsigned long) $pc', "monitor position"),
            *("print *(int *)&checks_failed", "stepi", "print *(int *)&checks_failed"),
            *("reverse-stepi", "monitor position", "kill"),
        )
        shown = subprocess.run(
            ("gdb", "-nx", "-q", "-batch", *(word for line in lines for word in ("-ex", line)), symbols),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        ).stdout
        serving.join(60)
        assert f"the store is at {culprit:#x}" in shown, shown
        values = [int(line.split(" = ")[1]) for line in shown.splitlines() if re.match(r"\$\d+ = ", line)]
        assert values == [0xBAD, 0, 0xBAD], shown
        places = [line for line in shown.splitlines() if re.fullmatch(r"\d+(\+\d+)?", line)]
        assert len(places) == 3, shown
        assert places[1] == places[2], "one step forwards and one back"
        backwards = hashed(one)
    with opened(reverse=True, image=image) as other:
        corrupted(other)
        timeline = other.debugger.timeline
        assert timeline is not None
        timeline.goto(position_of(places[1]))
        assert hashed(other) == backwards, "reached forwards and backwards, it is one state"
        timeline.goto(position_of(places[0]))
        timeline.goto(position_of(places[1]))
        assert hashed(other) == backwards
