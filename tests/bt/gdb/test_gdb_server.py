"""The server, spoken to by hand: a guest under a debugger is the guest that it was."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt.gdb.answers import Killed
from bt.gdb.packets import packet
from bt.gdb.server import Gone, listen
from emulator.errors import UsageError
from paravirt.services.breakpoints import StopKind
from tests.bt.gdb.debugged import SAMPLE, Opened, ask, opened


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
    with pytest.raises(UsageError, match="is no address of this host"):
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
