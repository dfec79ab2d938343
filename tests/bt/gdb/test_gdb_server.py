"""The server, spoken to by hand and by gdb: a guest under a debugger is the guest that it was."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt.gdb.monitor import Monitor
from bt.gdb.packets import packet
from bt.gdb.server import Gone, Killed, Server, listen
from bt.gdb.symbol_file import write_symbol_file
from bt.gdb.targets import target_for, translation
from bt.image import load
from bt.session import Options, Session
from emulator.errors import UsageError
from paravirt.services.breakpoints import StopKind
from paravirt.services.debug import Debugger
from paravirt.services.positions import position_of

SAMPLE = Path(__file__).parents[3] / "samples/x86_64/sample.elf"
FOLDERS = ("x86_64", "i386", "aarch64", "armv7", "mips32")


class Opened:
    """A session and who debugs it."""

    def __init__(
        self, mode: str = "inline", *, reverse: bool = False, image: Path = SAMPLE, technique: str = ""
    ) -> None:
        self.console = bytearray()
        options = Options(mode=mode, memory=64 << 20, cache=False, technique=technique)
        self.session = Session(load(image), options, self.console.extend)
        self.target = target_for(self.session)
        self.debugger = Debugger(self.session.driver, translation(self.session), reverse=reverse)
        self.monitor = Monitor(self.session, self.debugger, self.target)
        self.listener = listen("127.0.0.1", 0)
        self.port: int = self.listener.getsockname()[1]
        self.server = Server(self.debugger, self.target, self.listener, self.monitor)

    def symbol(self, name: str) -> int:
        address = self.session.image.symbols.address_of(name)
        assert address is not None
        return address

    def close(self) -> None:
        self.listener.close()
        self.debugger.close()
        self.session.close()


@contextlib.contextmanager
def opened(
    mode: str = "inline", *, reverse: bool = False, image: Path = SAMPLE, technique: str = ""
) -> Iterator[Opened]:
    one = Opened(mode, reverse=reverse, image=image, technique=technique)
    try:
        yield one
    finally:
        one.close()


def ask(port: int, *payloads: bytes) -> list[bytes]:
    """Answers to packets, over a connection."""
    answers = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        for payload in payloads:
            peer.sendall(packet(payload))
            data = b""
            while b"#" not in data or len(data) < data.index(b"#") + 3:
                data += peer.recv(65536)
            answers.append(data[data.index(b"$") + 1 : data.index(b"#")])
            peer.sendall(b"+")
    return answers


@pytest.mark.parametrize("mode", ["native", "trap", "inline"])
def test_a_breakpoint_stops_before_its_instruction_and_a_step_does_one(mode: str) -> None:
    with opened(mode) as one:
        address = one.symbol("check_cli_pushf")
        one.debugger.stops.set_breakpoint(address)
        stop = one.debugger.go()
        assert (stop.kind, one.session.driver.pc) == (StopKind.BREAKPOINT, address)
        assert one.debugger.read(address, 2) == one.session.image.view(address, 2)
        one.debugger.step()
        behind = one.session.driver.pc
        # A fixup stands for CLI; PUSHF; POP and what follows it in the same patch.
        assert address < behind <= address + 0x10
        one.debugger.stops.remove_breakpoint(address)
        progress = one.session.machine.engine.progress
        for _ in range(3):
            before = one.session.driver.pc
            assert one.debugger.step().kind is StopKind.STEP
            assert one.session.driver.pc != before
        assert one.session.machine.engine.progress <= progress + 3
        assert b"flags.pushf-after-cli" not in one.console


def test_a_watchpoint_stops_behind_the_store() -> None:
    with opened("trap") as one:
        address = one.symbol("caught")
        one.debugger.stops.set_breakpoint(one.symbol("check_popf_sets_if"))
        one.debugger.go()
        place = one.debugger.place(address)
        assert place is not None
        before = one.debugger.read(address, 8)
        one.debugger.stops.watch(place, 8, address)
        stop = one.debugger.go()
        assert (stop.kind, stop.address) == (StopKind.WATCHPOINT, address)
        assert one.debugger.read(address, 8) != before


def test_breakpoints_that_are_passed_change_nothing() -> None:
    ends = []
    for names in ((), ("catch_fault", "trap", "print")):
        with opened() as one:
            for name in names:
                one.debugger.stops.set_breakpoint(one.symbol(name), lambda: False)
            last = one.symbol("check_popf_sets_if")
            one.debugger.stops.set_breakpoint(last)
            assert one.debugger.go().address == last
            ends.append((one.session.driver.state, one.session.machine.engine.progress, bytes(one.console)))
            assert (one.debugger.stops.hits > 1) == bool(names)
    assert ends[0] == ends[1]


def test_stops_change_nothing_either() -> None:
    ends = []
    for stops in (False, True):
        with opened() as one:
            last = one.symbol("check_popf_sets_if")
            one.debugger.stops.set_breakpoint(last)
            if stops:
                one.debugger.stops.set_breakpoint(one.symbol("print"))
            while one.debugger.go().address != last:
                assert stops
            ends.append((one.session.driver.state, one.session.machine.engine.progress, bytes(one.console)))
    assert ends[0] == ends[1]


def test_one_step_back_is_where_the_guest_was() -> None:
    with opened(reverse=True) as one:
        debugger, driver = one.debugger, one.session.driver
        address = one.symbol("catch_fault")
        debugger.stops.set_breakpoint(address)
        debugger.go()
        first = driver.state
        debugger.go()
        before, position = driver.state, debugger.position
        debugger.step()
        assert driver.state != before
        debugger.step_back()
        assert (driver.state, debugger.position) == (before, position)
        assert debugger.go_back() == (StopKind.BREAKPOINT, address, None)
        assert driver.state == first
        debugger.go()
        assert driver.state == before


def test_the_text_is_shown_as_it_was_unless_asked() -> None:
    with opened() as one:
        address = one.symbol("check_cli_pushf")
        one.debugger.stops.set_breakpoint(address)
        one.debugger.go()
        original = one.debugger.read(address, 8)
        assert original == one.session.image.view(address, 8)
        one.monitor("text rewritten")
        assert one.debugger.read(address, 8) != original
        assert f"site {address:#x}" in one.monitor(f"sites {address:#x}")
        assert f"is guest-physical {one.session.physical(address):#x}" in one.monitor("walk check_cli_pushf")
        assert f"{address & ~0xFFF:#018x}"[:14] in one.monitor("tables")
        assert "cr3" in one.monitor("cpu")
        assert "in all" in one.monitor("exits")


def test_a_second_gdb_is_told_and_one_that_vanishes_harms_nothing() -> None:
    with opened() as one:
        serving = threading.Thread(target=one.server.serve)
        serving.start()
        with socket.create_connection(("127.0.0.1", one.port), timeout=60) as first:
            first.sendall(b"$m0,1")  # broken off in the midst of a packet
            with socket.create_connection(("127.0.0.1", one.port), timeout=60) as second:
                assert b"another gdb" in second.recv(200)
        pc = one.session.driver.pc
        answers = ask(one.port, b"qSupported", b"p10", b"nonsense", b"m%x,4" % one.session.image.entry, b"vCont?")
        assert answers[1] == pc.to_bytes(8, "little").hex().encode()
        assert answers[2] == b""
        with socket.create_connection(("127.0.0.1", one.port), timeout=60) as last:
            last.sendall(packet(b"k"))
        serving.join(60)
        assert not serving.is_alive()


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="give another --port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_who_never_reads_is_dropped_and_the_next_one_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bt.gdb.server._PATIENCE", 0.2)
    with opened() as one:
        said: list[str] = []
        one.server.say = said.append
        before = one.session.driver.state
        serving = threading.Thread(target=one.server.serve)
        serving.start()
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.settimeout(60)
            deaf.connect(("127.0.0.1", one.port))
            with contextlib.suppress(OSError):  # a reset, or a broken pipe: how the endless loop ends
                while True:
                    deaf.sendall(packet(b"m%x,1000" % one.session.image.entry) * 64)
        assert ask(one.port, b"?") == [b"T05thread:1;"]
        assert said[0] == "gdb is gone; the guest waits where it is for another"
        assert one.session.driver.state == before
        with socket.create_connection(("127.0.0.1", one.port), timeout=60) as last:
            last.sendall(packet(b"k"))
        serving.join(60)
        assert not serving.is_alive()


def test_garbage_before_a_packet_and_a_running_guest_that_loses_its_gdb() -> None:
    with opened(image=SAMPLE.parent / "hostile/spin.elf") as one:
        serving = threading.Thread(target=one.server.serve)
        serving.start()
        with socket.create_connection(("127.0.0.1", one.port), timeout=60) as peer:
            peer.sendall(bytes(range(4, 36)) + b"#zz$%\xff#00" + bytes(200) + packet(b"?"))
            data = b""
            while b"thread:1;#" not in data:
                data += peer.recv(4096)
            assert b"-" in data, "the damaged packet is asked for again"
            peer.sendall(packet(b"vCont;c"))
            with socket.create_connection(("127.0.0.1", one.port), timeout=60) as second:
                assert b"another gdb" in second.recv(200), "while the guest runs, too"
        # The guest runs, its gdb is gone: it stops, and the next one finds it standing.
        (where,) = ask(one.port, b"?")
        assert where.startswith(b"T02")
        with socket.create_connection(("127.0.0.1", one.port), timeout=60) as last:
            last.sendall(packet(b"k"))
        serving.join(60)
        assert not serving.is_alive()


def test_whoever_listens_does_so_on_loopback_unless_told_otherwise() -> None:
    from bt.cli.debug import command

    assert next(one.default for one in command.params if one.name == "listen") == "127.0.0.1"
    with pytest.raises(UsageError, match="give another --listen"):
        listen("nowhere.invalid", 0)


_SERVED = Opened()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=40), st.text("gGpPmMXZzqvHTD?0123456789abcdef,:;=", max_size=30).map(str.encode)))
def test_any_packet_has_an_answer_and_the_guest_stays_where_it_is(payload: bytes) -> None:
    if payload[:1] in (b"c", b"s", b"b", b"D", b"k", b"G", b"P", b"M", b"X") or payload.startswith((b"v", b"Q")):
        payload = b"q" + payload  # what may change the guest, or ends the connection, is tested elsewhere
    before = _SERVED.session.driver.state
    with contextlib.suppress(Killed):
        answer = _SERVED.server.answer(payload)
        assert answer is not None
    assert _SERVED.session.driver.state == before


_CHANGED = Opened()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from((b"G", b"P", b"M", b"X", b"Z", b"z", b"vCont;x", b"qXfer:features:read:", b"qRcmd,", b"v", b"Q")),
    st.one_of(st.binary(max_size=30), st.text("0123456789abcdef,:;=", max_size=40).map(str.encode)),
)
def test_what_may_change_the_guest_is_answered_whatever_it_says(start: bytes, rest: bytes) -> None:
    if (start + rest).startswith((b"vCont;c", b"vCont;s", b"vKill", b"QStartNoAckMode")):
        return
    with contextlib.suppress(Gone):  # of what is printed for `monitor`, which nobody is there to read
        answer = _CHANGED.server.answer(start + rest)
        assert answer is not None
        assert answer in (b"", b"OK") or answer[:1] in b"EmlOv", answer


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


@pytest.mark.parametrize("folder", ["i386", "aarch64", "armv7", "mips32"])
def test_other_instruction_sets_stop_and_step_as_well(folder: str) -> None:
    with opened(image=SAMPLE.parents[1] / folder / "portable.elf") as one:
        address = one.symbol("catch_fault")
        one.debugger.stops.set_breakpoint(address)
        stop = one.debugger.go()
        assert (stop.kind, one.session.driver.pc) == (StopKind.BREAKPOINT, address)
        assert one.debugger.read(address, 4) == one.session.image.view(address, 4)
        shown = one.server.answer(b"g")
        assert shown is not None
        assert len(shown) == sum(row.bits // 4 for row in one.target.registers)
        one.debugger.step()
        assert address < one.session.driver.pc <= address + 8
        if folder != "i386":
            number = next(n for n, row in one.target.by_number.items() if row.name == "pc")
            size = 2 * one.target.word
            assert (
                one.server.answer(b"p%x" % number) == one.session.driver.pc.to_bytes(size // 2, "little").hex().encode()
            )
        again = one.debugger.go()
        assert (again.kind, again.address) == (StopKind.BREAKPOINT, address)


@pytest.mark.parametrize("folder", FOLDERS)
def test_reads_and_accesses_are_watched_and_change_nothing(folder: str) -> None:
    ends = []
    for kinds in ((), (StopKind.READ, StopKind.ACCESS)):
        with opened(image=SAMPLE.parents[1] / folder / "portable.elf") as one:
            debugger = one.debugger
            address, until = one.symbol("checks_done"), one.symbol("catch_fault")
            debugger.stops.set_breakpoint(until)
            debugger.go()
            place = debugger.place(address)
            assert place is not None
            seen = []
            for kind in kinds:
                debugger.stops.watch(place, 4, address, kind)
                before, stop = debugger.read(address, 4), debugger.go()
                while stop.kind is StopKind.BREAKPOINT:
                    before, stop = debugger.read(address, 4), debugger.go()
                seen.append((stop.kind, stop.address))
                if kind is StopKind.READ:
                    # x86 counts up by one instruction, the others have only read so far.
                    assert (debugger.read(address, 4) != before) == (folder in {"x86_64", "i386"})
                debugger.stops.unwatch(4, address, kind)
            assert seen == [(kind, address) for kind in kinds]
            debugger.stops.clear()
            debugger.stops.set_breakpoint(one.symbol("check_paging"))
            assert debugger.go().kind is StopKind.BREAKPOINT
            ends.append((one.session.driver.state, one.session.machine.engine.progress, bytes(one.console)))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("folder", FOLDERS)
def test_at_full_privilege_guests_stop_and_what_is_not_known_is_said(folder: str) -> None:
    with opened("native", image=SAMPLE.parents[1] / folder / "portable.elf") as one:
        address = one.symbol("catch_fault")
        one.debugger.stops.set_breakpoint(address)
        assert one.debugger.go() == (StopKind.BREAKPOINT, address, None)
        assert one.debugger.read(address, 4) == one.session.image.view(address, 4)
        place = f"{address:#x} is guest-physical {one.session.physical(address):#x}"
        if folder in {"x86_64", "i386"}:
            assert place in one.monitor("walk catch_fault")
            assert " rx\n" in one.monitor("tables")
        else:
            assert f"{place} by where the image was placed" in one.monitor("walk catch_fault")
            with pytest.raises(UsageError, match="run it without --virt native"):
                one.monitor("tables")
        assert one.debugger.step().kind is StopKind.STEP


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_ported_guest_stops_steps_and_goes_back_as_others_do(folder: str) -> None:
    with opened("para", reverse=True, image=SAMPLE.parents[1] / folder / "pv.elf") as one:
        debugger, address = one.debugger, one.symbol("catch_fault")
        debugger.stops.set_breakpoint(address)
        stop = debugger.go()
        assert (stop.kind, one.session.driver.pc) == (StopKind.BREAKPOINT, address)
        assert debugger.read(address, 4) == one.session.image.view(address, 4)
        assert f"{address:#x} is guest-physical" in one.monitor("walk catch_fault")
        state = one.session.driver.state
        assert debugger.step().kind is StopKind.STEP
        assert one.session.driver.pc != address
        debugger.step_back()
        assert one.session.driver.state == state


@pytest.mark.parametrize(("folder", "technique"), [("x86_64", "batched"), ("i386", "direct"), ("aarch64", "direct")])
def test_a_guest_whose_own_tables_are_walked_shows_them_as_it_reads_them(folder: str, technique: str) -> None:
    with opened("para", reverse=True, image=SAMPLE.parents[1] / folder / "pv.elf", technique=technique) as one:
        debugger, address = one.debugger, one.symbol("catch_fault")
        debugger.stops.set_breakpoint(address)
        assert debugger.go().kind is StopKind.BREAKPOINT
        assert f"{address:#x} is guest-physical {one.session.physical(address):#x}" in one.monitor("walk catch_fault")
        assert any(line.endswith(" rx") for line in one.monitor("tables").splitlines())
        state, position = one.session.driver.state, debugger.position
        debugger.stops.remove_breakpoint(address)
        assert debugger.step().kind is StopKind.STEP
        debugger.step_back()
        assert (one.session.driver.state, debugger.position) == (state, position)


def test_a_guest_of_xen_stops_and_shows_its_own_tables_and_registers() -> None:
    ends = []
    for stops in (True, False):
        with opened("xen", image=SAMPLE.parents[1] / "xen/hostile.elf") as one:
            debugger, address = one.debugger, one.symbol("check_calls")
            if stops:
                debugger.stops.set_breakpoint(address)
                assert debugger.go() == (StopKind.BREAKPOINT, address, None)
                assert debugger.read(address, 8) == one.session.image.view(address, 8)
                assert f"{address:#x} is guest-physical" in one.monitor("walk check_calls")
                walk = one.target.walk(one.session.driver, address)
                assert len(walk.steps) == 4
                assert "(hypercall)" in one.monitor("exits")
                shown = one.server.answer(b"g")
                assert shown is not None
                assert address.to_bytes(8, "little").hex().encode() in shown
                assert one.server.answer(b"P10=%s" % address.to_bytes(8, "little").hex().encode()) == b"OK"
                before = one.session.machine.engine.registers.gpr[0]
                assert one.server.answer(b"P0=0100000000000000") == b"OK"
                assert one.session.machine.engine.registers.gpr[0] == 1
                assert one.server.answer(b"P0=%s" % before.to_bytes(8, "little").hex().encode()) == b"OK"
                assert debugger.step().kind is StopKind.STEP
                debugger.stops.clear()
            assert debugger.go().kind is StopKind.ENDED
            ends.append((bytes(one.console), one.session.machine.engine.progress))
    assert ends[0] == ends[1]


def test_what_was_read_cannot_be_gone_back_to() -> None:
    with opened(reverse=True) as one:
        debugger = one.debugger
        debugger.stops.set_breakpoint(one.symbol("check_cli_pushf"))
        debugger.go()
        assert one.server.answer(b"Z3,%x,8" % one.symbol("caught")) == b"OK"
        assert one.server.answer(b"bc") == b"E.rwatch and awatch work forwards only; delete them before you go back"
        assert one.server.answer(b"z3,%x,8" % one.symbol("caught")) == b"OK"
        assert one.server.answer(b"bs") is not None
        assert one.server.answer(b"Z3,dead0000,8") == b"E.the guest has no memory there that could be watched"


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_the_tables_map_is_what_walks_find(folder: str) -> None:
    with opened(image=SAMPLE.parents[1] / folder / "portable.elf") as one:
        assert one.monitor("tables" if folder == "mips32" else "position"), "before the guest has any tables"
        one.debugger.stops.set_breakpoint(one.symbol("catch_fault"))
        one.debugger.go()
        driver, target = one.session.driver, one.target
        before = driver.state
        assert target.mappings is not None
        listed = list(target.mappings(driver))
        assert listed == sorted(listed)
        executed = [piece for piece in listed if piece.address <= driver.pc < piece.address + piece.size]
        assert len(executed) == 1
        assert "x" in executed[0].rights
        for piece in listed[:: len(listed) // 64 + 1]:
            for at in (0, piece.size - 1):
                found = target.walk(driver, piece.address + at).physical
                # MIPS maps what is no memory as well, which has no place.
                assert found == piece.physical + at or (folder == "mips32" and found is None)
        assert driver.state == before


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
