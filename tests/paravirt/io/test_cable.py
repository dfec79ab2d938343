"""Two processes' switches, joined by a stream socket: frames arrive whole, and a peer that lies is left."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.errors import UsageError
from paravirt.io.packets import ACK, TCP, Segment, frame_of, half_checksum, packet_of, segment_bytes, with_checksum
from paravirt.io.stream import Cable, address_of
from paravirt.io.switch import Switch

ONE, TWO = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"


class End:
    """A switch with a guest and a cable."""

    takes_long = True

    def __init__(self) -> None:
        self.switch = Switch()
        self.switch.connect(self)
        self.frames: list[bytes] = []
        self.cable: Cable | None = None

    def receive(self, frame: bytes, _blank: bool, _segment: int = 0) -> None:
        self.frames.append(frame)

    def poll(self) -> None:
        assert self.cable is not None
        select.select([self.cable.descriptor], [], [], 2)
        self.cable.poll()

    def wait(self, count: int) -> list[bytes]:
        for _ in range(100):
            if len(self.frames) >= count:
                break
            self.poll()
        return self.frames


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[End, End]]:
    one, two = End(), End()
    path = str(tmp_path / "cable")
    one.cable = Cable.join(one.switch, path)  # nobody listens yet
    two.cable = Cable.join(two.switch, path)
    one.poll()
    yield one, two
    two.cable.close()
    one.cable.close()
    assert not os.path.exists(path)


def frame(to: bytes, source: bytes, data: bytes) -> bytes:
    return to + source + b"\x88\xb5" + data


def test_frames_of_every_size_arrive_whole_and_in_order(ends: tuple[End, End]) -> None:
    one, two = ends
    sent = [frame(TWO, ONE, bytes([size & 0xFF]) * size) for size in (0, 1, 46, 1500, 9000, 60_000)] * 3
    for each in sent:
        one.switch.send(one, each)
        assert one.cable is not None
        one.cable.poll()
    assert two.wait(len(sent)) == sent
    two.switch.send(two, frame(ONE, TWO, b"back"))
    assert one.wait(1) == [frame(ONE, TWO, b"back")]


def test_what_leaves_has_its_checksum_and_is_cut(ends: tuple[End, End]) -> None:
    one, two = ends
    here, there = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    body = segment_bytes(Segment(80, 90, 1, 2, ACK, 500, b"", bytes(3000)))
    one.switch.send(one, frame_of(TWO, ONE, here, there, TCP, half_checksum(here, there, TCP, body)), True, 1000)
    assert [len(each) for each in two.wait(3)] == [1054] * 3
    packet = packet_of(two.frames[0])
    assert packet is not None
    assert with_checksum(here, there, TCP, packet.body) == packet.body


@pytest.mark.parametrize("data", [b"\0\0\0\1x", b"\xff\xff\xff\xff", b"\0\1\0\x20" + bytes(40)])
def test_a_peer_whose_lengths_cannot_be_is_left_and_the_next_one_taken(data: bytes, tmp_path: Path) -> None:
    end, path = End(), str(tmp_path / "cable")
    end.cable = Cable.listen(end.switch, path)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        end.poll()
        peer.sendall(data)
        end.poll()
        peer.settimeout(2)
        assert gone(peer)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        end.poll()
        whole = frame(ONE, TWO, b"good")
        peer.sendall(len(whole).to_bytes(4, "big") + whole[:5])
        end.poll()
        peer.sendall(whole[5:])
        assert end.wait(1) == [whole]
    end.cable.close()


def gone(peer: socket.socket) -> bool:
    """Whether the other end has closed."""
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


def test_addresses_are_paths_or_hosts_and_ports_and_errors_say_what_to_give(tmp_path: Path) -> None:
    assert address_of("./a") == "./a"
    assert address_of("127.0.0.1:99") == ("127.0.0.1", 99)
    for text in ("plain", "host:", ":5", "host:0", "host:70000", "host:x"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            address_of(text)
    with pytest.raises(UsageError, match="cannot be connected to"):
        Cable.connect(Switch(), str(tmp_path / "nobody"))
    taken = Cable.listen(Switch(), str(tmp_path / "one"))
    with pytest.raises(UsageError, match="cannot be listened at"):
        Cable.listen(Switch(), str(tmp_path / "one"))
    taken.close()
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(UsageError, match="cannot be listened at"):
        Cable.listen(Switch(), str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_socket_that_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    path = str(tmp_path / "left")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    cable = Cable.listen(Switch(), path)
    cable.close()


@pytest.mark.qemu
def test_qemu_at_the_other_end_answers_for_its_own_network(tmp_path: Path) -> None:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        pytest.skip("no qemu-system-x86_64 on this host (scripts/system-packages)")
    end, path = End(), str(tmp_path / "cable")
    end.cable = Cable.listen(end.switch, path)
    command = [program, "-machine", "none", "-nodefaults", "-display", "none", "-monitor", "none"]
    command += ["-netdev", f"stream,id=cable,server=off,addr.type=unix,addr.path={path}"]
    command += ["-netdev", "user,id=user"]
    for name in ("cable", "user"):
        command += ["-netdev", f"hubport,id=port-{name},hubid=0,netdev={name}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as qemu:
        try:
            gateway = bytes((10, 0, 2, 2))
            ask = bytes.fromhex("0001080006040001") + ONE + bytes((10, 0, 2, 15)) + bytes(6) + gateway
            for _ in range(50):  # until it has connected
                end.poll()
                end.switch.send(end, b"\xff" * 6 + ONE + b"\x08\x06" + ask)
                if end.frames or qemu.poll() is not None:
                    break
            if qemu.poll() is not None and qemu.stderr is not None and b"stream" in qemu.stderr.read():
                pytest.skip("this QEMU has no stream network (7.2 and later have)")
            answer = end.wait(1)[0]
            assert answer[:6] == ONE
            assert answer[28:32] == gateway
        finally:
            qemu.kill()
            end.cable.close()
