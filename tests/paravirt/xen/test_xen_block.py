"""The block back end held to its protocol by a front end that keeps it, and by ones that do not."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.errors import UsageError
from emulator.machine import Machine
from paravirt.io.disk import FileDisk
from paravirt.xen.audit import violations
from paravirt.xen.backend import State
from paravirt.xen.block import BlockBackEnd
from paravirt.xen.board import XEN_PV
from paravirt.xen.builder import Piece, XenKernel
from paravirt.xen.host import Host
from paravirt.xen.hypervisor import XenHypervisor

BASE = 0xFFFF_FFFF_8000_0000
KERNEL = XenKernel(
    "block",
    (Piece(0x100000, memoryview(b"\xeb\xfe"), 0x1000, True), Piece(0x101000, memoryview(b""), 0x40000, False)),
    BASE + 0x100000,
    virtual_base=BASE,
)
RING, DATA = BASE + 0x102000, BASE + 0x110000
READ, WRITE, BARRIER, FLUSH, DISCARD, INDIRECT = 0, 1, 2, 3, 5, 6
SECTORS = 64


class Front:
    """A front end whose guest does not run."""

    def __init__(self, file: Path, writable: bool = True) -> None:
        file.write_bytes(bytes(range(256)) * (SECTORS * 2))
        self.disk = FileDisk(file, writable)
        self.machine = Machine(Host.machine_size(4 << 20), lambda _data: None, platform=XEN_PV)
        self.guest = XenHypervisor(self.machine, 1024)
        self.guest.load(KERNEL)
        self.domain = self.guest.domain
        self.block = BlockBackEnd(self.domain, self.disk)
        self.grants = self.domain.grants
        self.produced = 0
        self.connect()

    def frame(self, address: int) -> int:
        return self.guest.access.translate(address) >> 12

    def connect(self, **changed: str) -> None:
        self.grants.permit(8, 0, self.frame(RING))
        for page in range(4):
            self.grants.permit(9 + page, 0, self.frame(DATA + page * 4096))
        self.page = self.domain.page(self.frame(RING))
        self.page[:] = bytes(4096)
        self.page[12:16] = (1).to_bytes(4, "little")  # it wants to be told of the first response
        self.produced = self.consumed = 0
        self.port = self.domain.events.allocate_unbound(0)
        values = {"ring-ref": "8", "event-channel": str(self.port), "protocol": "x86_64-abi", **changed}
        for name, value in values.items():
            self.say(name.replace("_", "-"), value)
        self.say("state", "3")

    def state(self) -> State:
        return self.block.state

    def say(self, name: str, value: str) -> None:
        self.domain.host.store.put(f"{self.block.front}/{name}", value)

    def put(self, request: bytes) -> None:
        at = 64 + self.produced % 32 * 112
        self.page[at : at + 112] = request.ljust(112, b"\0")
        self.produced += 1
        self.page[:4] = self.produced.to_bytes(4, "little")

    def kick(self) -> list[int]:
        """Statuses of what was answered."""
        self.domain.events.send(self.port)
        produced = int.from_bytes(self.page[8:12], "little")
        found = []
        for number in range(self.consumed, produced):
            at = 64 + number % 32 * 112
            found.append(struct.unpack_from("<h", self.page, at + 10)[0])
        self.consumed = produced
        return found

    def ask(self, operation: int, sector: int, *segments: tuple[int, int, int], count: int | None = None) -> int:
        listed = b"".join(struct.pack("<IBBxx", *segment) for segment in segments[:11])
        number = len(segments) if count is None else count
        self.put(struct.pack("<BBHxxxxQQ", operation, number, 0, 7, sector) + listed)
        (status,) = self.kick()
        return status

    def close(self) -> None:
        assert violations(self.domain) == []
        self.machine.close()
        self.disk.close()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    made = Front(tmp_path / "disk")
    yield made
    made.close()


def test_sectors_go_to_the_page_and_from_it(front: Front) -> None:
    assert front.state() is State.CONNECTED
    assert front.domain.host.store.value(f"{front.block.back}/sectors") == str(SECTORS)
    assert front.ask(READ, 2, (9, 1, 2), (10, 7, 7)) == 0
    assert front.guest.access.read(DATA + 512, 1024) == bytes(range(256)) * 4
    assert front.guest.access.read(DATA + 4096 + 7 * 512, 512) == bytes(range(256)) * 2
    front.guest.access.write(DATA, b"written")
    assert front.ask(WRITE, 63, (9, 0, 0)) == 0
    assert front.disk.read(63, 1)[:7] == b"written"
    assert front.domain.events.is_pending(front.port)
    assert not front.grants.writers.keys() - {8}


def test_a_flush_and_a_barrier_reach_the_file(front: Front) -> None:
    assert front.ask(FLUSH, (1 << 64) - 1) == 0  # as Linux asks
    assert front.disk.flushes == 1
    assert front.ask(BARRIER, 0, (9, 0, 0)) == 0
    assert front.disk.flushes == 3  # before it and behind it


def test_what_is_discarded_reads_as_zeros(front: Front) -> None:
    front.put(struct.pack("<BBHxxxxQQQ", DISCARD, 0, 0, 1, 8, 16))
    front.put(struct.pack("<BBHxxxxQQQ", DISCARD, 0, 0, 1, 1, (1 << 64) - 1))
    front.put(struct.pack("<BBHxxxxQQQ", DISCARD, 1, 0, 1, 0, 1))
    assert front.kick() == [0, -1, -1]
    assert front.disk.read(8, 16) == bytes(16 * 512)
    assert front.disk.read(24, 1) == bytes(range(256)) * 2


def test_segments_may_be_listed_in_pages_of_their_own(front: Front) -> None:
    front.guest.access.write(DATA, struct.pack("<IBBxx", 11, 0, 7) * 8)
    front.put(struct.pack("<BBHIQQHHI", INDIRECT, READ, 8, 0, 5, 0, 0, 0, 9))
    front.put(struct.pack("<BBHIQQHHI", INDIRECT, READ, 257, 0, 5, 0, 0, 0, 9))
    front.put(struct.pack("<BBHIQQHHI", INDIRECT, FLUSH, 8, 0, 5, 0, 0, 0, 9))
    front.put(struct.pack("<BBHIQQHHI", INDIRECT, READ, 8, 0, 5, 1, 0, 0, 9))
    assert front.kick() == [0, -1, -1, -1]
    assert front.page[64 + 8] == READ
    assert front.guest.access.read(DATA + 8192, 4096) == bytes(range(256)) * 16


@pytest.mark.parametrize(
    ("operation", "sector", "segments", "count", "status"),
    [
        (READ, SECTORS, [(9, 0, 0)], None, -1),
        (READ, (1 << 64) - 1, [(9, 0, 0)], None, -1),
        (READ, 0, [(9, 3, 2)], None, -1),
        (READ, 0, [(9, 0, 8)], None, -1),
        (READ, 0, [(400, 0, 0)], None, -1),  # nothing is granted
        (READ, 0, [(1 << 31, 0, 0)], None, -1),
        (READ, 0, [], 12, -1),
        (READ, 0, [], 0, -1),
        (4, 0, [(9, 0, 0)], None, -2),
        (255, 0, [], None, -2),
    ],
)
def test_a_request_that_cannot_be_is_answered_with_an_error(
    front: Front, operation: int, sector: int, segments: list[tuple[int, int, int]], count: int | None, status: int
) -> None:
    assert front.ask(operation, sector, *segments, count=count) == status
    assert front.ask(READ, 0, (9, 0, 0)) == 0  # the next one is served


def test_a_write_of_which_one_page_is_not_granted_writes_nothing(front: Front) -> None:
    before = front.disk.read(0, 2)
    assert front.ask(WRITE, 0, (9, 0, 0), (400, 0, 0)) == -1
    assert front.disk.read(0, 2) == before


def test_a_page_table_is_never_read_into(front: Front) -> None:
    front.grants.permit(9, 0, front.guest.vcpu.kernel_root)
    assert front.ask(READ, 0, (9, 0, 0)) == -1


def test_a_ring_that_lies_is_disconnected_and_may_connect_anew(front: Front) -> None:
    front.page[:4] = (1000).to_bytes(4, "little")
    assert front.kick() == []
    assert front.state() is State.CLOSED
    assert "1000 requests" in front.block.broken
    assert not front.grants.held
    front.say("state", "1")
    assert front.state() is State.INIT_WAIT
    front.connect()
    assert front.ask(READ, 0, (9, 0, 0)) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("ring_ref", "400"), ("ring_ref", "x"), ("ring_ref", "99999999999"), ("event_channel", "0"), ("protocol", "arm")],
)
def test_what_makes_no_sense_in_the_store_is_refused(front: Front, name: str, value: str) -> None:
    front.say("state", "6")
    assert front.state() is State.CLOSED
    assert not front.grants.held
    front.say("state", "1")
    front.connect(**{name: value})
    assert front.state() is State.CLOSED
    assert front.block.broken
    front.say("state", "nonsense")
    assert front.state() is State.CLOSED


def test_a_front_end_that_vanishes_is_seen(front: Front) -> None:
    front.domain.host.store.remove(front.block.front)
    assert front.state() is State.CLOSED
    assert not front.grants.held


def test_a_disk_that_is_read_only_stays_as_it_is(tmp_path: Path) -> None:
    front = Front(tmp_path / "disk", writable=False)
    assert front.ask(WRITE, 0, (9, 0, 0)) == -1
    assert front.ask(READ, 0, (9, 0, 0)) == 0
    assert front.domain.host.store.value(f"{front.block.back}/info") == "4"
    front.close()


def test_a_file_that_is_no_disk_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"x" * 513)
    for name in ("odd", "none", "."):
        with pytest.raises(UsageError, match="disk"):
            FileDisk(tmp_path / name)
