"""A domain that is killed leaves nothing behind: what it mapped is given back, its frames are cleared, others go on."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import pytest

from emulator.machine import EndKind, Limits, Machine
from paravirt.xen.audit import violations
from paravirt.xen.backend import State
from paravirt.xen.board import XEN_PV
from paravirt.xen.builder import Piece, XenKernel
from paravirt.xen.ending import end
from paravirt.xen.events import PortKind
from paravirt.xen.host import EXTRA_FRAMES, Host
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.served import Served, ServedDisk, ServedNetwork, make_server
from paravirt.xen.together import Together

BASE = 0xFFFF_FFFF_8000_0000
PAGES = 1024
KERNEL = XenKernel(
    "ending",
    (Piece(0x100000, memoryview(b"\xeb\xfe"), 0x1000, True), Piece(0x101000, memoryview(b""), 0x40000, False)),
    BASE + 0x100000,
    virtual_base=BASE,
)
ARGUMENT, DATA, HOLE = BASE + 0x101000, BASE + 0x110000, BASE + 0x120000
GRANT, MAP, UNMAP, HOST_MAP, READ_ONLY = 20, 0, 1, 2, 4
REFERENCE = 9


class Pair:
    """A guest (1) and a driver domain (2) that has mapped what the guest granted it, and is bound to its port."""

    def __init__(self) -> None:
        size = Host.machine_size(PAGES * 2 << 12) + (64 << 12)
        self.size = size
        self.first = Machine(size, lambda _data: None, platform=XEN_PV, limits=Limits(guest_seconds=0.05))
        self.machines = [self.first]
        self.host = Host(self.first.memory)
        self.guest = XenHypervisor(self.first, PAGES, number=1, host=self.host)
        self.guest.load(KERNEL)
        self.server = self.start()
        self.frame = self.guest.access.translate(DATA) >> 12
        self.port = self.guest.domain.events.allocate_unbound(2)
        self.guest.domain.grants.permit(REFERENCE, 2, self.frame)

    def start(self) -> XenHypervisor:
        machine = Machine(self.size, lambda _data: None, platform=XEN_PV, memory=self.first.memory)
        self.machines.append(machine)
        server = XenHypervisor(machine, PAGES, number=2, host=self.host)
        server.load(KERNEL)
        return server

    def ask(self, who: XenHypervisor, command: int, request: bytes) -> bytes:
        who.access.write(ARGUMENT, request)
        assert who.call(GRANT, command, ARGUMENT, 1, 0, 0) == 0
        return who.access.read(ARGUMENT, len(request))

    def map(self, server: XenHypervisor, address: int = HOLE, flags: int = HOST_MAP) -> int:
        request = struct.pack("<QIIHhIQ", address, flags, REFERENCE, 1, 0, 0, 0)
        status, handle = struct.unpack_from("<hI", self.ask(server, MAP, request), 18)
        assert status == 0
        return int(handle)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    for machine in pair.machines:
        machine.close()


def test_what_a_killed_domain_had_mapped_is_its_owners_alone(pair: Pair) -> None:
    frames = pair.guest.domain.frames
    at = pair.frame - frames.first
    before = frames.uses[at], frames.refs[at]
    pair.map(pair.server)
    pair.map(pair.server, HOLE + 4096, HOST_MAP | READ_ONLY)
    assert (frames.uses[at], frames.refs[at]) != before
    assert end(pair.server.domain)
    assert (frames.uses[at], frames.refs[at]) == before
    assert pair.guest.domain.grants._word(pair.guest.domain.grants._entry(REFERENCE), 2) == 1  # nobody holds it
    assert violations(pair.guest.domain) == []
    assert pair.guest.call(14, DATA, 0, 0, 0, 0) == 0  # update_va_mapping: it is mapped no more
    pair.guest.domain.tables.pin(pair.frame, 1)  # and may be a page table again


def test_ports_that_a_killed_domain_was_bound_to_are_offered_to_its_successor(pair: Pair) -> None:
    events = pair.guest.domain.events
    bound = pair.server.domain.events.bind_interdomain(events, pair.port)
    end(pair.server.domain)
    assert events.get(pair.port).kind is PortKind.UNBOUND
    events.send(pair.port)  # nobody hears it, and it does no harm
    server = pair.start()
    again = server.domain.events.bind_interdomain(events, pair.port)
    assert bound
    assert server.domain.events.is_pending(again)
    pair.map(server)
    assert violations(pair.guest.domain) == []
    assert violations(server.domain) == []


def test_a_successor_has_the_same_frames_and_nothing_that_was_in_them(pair: Pair) -> None:
    pair.server.access.write(DATA, b"secret")
    owned = pair.server.domain.owned
    assert end(pair.server.domain)
    assert not np.frombuffer(owned.memory, dtype=np.uint8).any()
    assert not end(pair.server.domain)  # once
    server = pair.start()
    assert server.domain.owned.first == owned.first
    assert server.access.read(DATA, 6) == bytes(6)


def test_frames_that_another_domain_has_mapped_are_not_given_away(pair: Pair) -> None:
    server, guest = pair.server, pair.guest
    server.domain.grants.permit(REFERENCE, 1, server.access.translate(DATA) >> 12)
    server.access.write(DATA, b"lent")
    reply = pair.ask(guest, MAP, struct.pack("<QIIHhIQ", HOLE, HOST_MAP, REFERENCE, 2, 0, 0, 0))
    status, handle = struct.unpack_from("<hI", reply, 18)
    assert status == 0
    assert not end(server.domain)
    assert guest.access.read(HOLE, 4) == b"lent"
    assert not pair.host.free.get(PAGES + EXTRA_FRAMES)
    assert struct.unpack_from("<h", pair.ask(guest, UNMAP, struct.pack("<QQIhxx", HOLE, 0, handle, 0)), 20) == (0,)
    assert violations(guest.domain) == []


def test_a_driver_domain_and_its_guest_may_read_each_others_ends_in_the_store_and_no_one_else(pair: Pair) -> None:
    tree = pair.host.store
    devices: list[Served] = [ServedDisk(1, 2, (202, 0)), ServedNetwork(1, 2, bytes(6))]
    make_server(tree, 2)
    for device in devices:
        assert device.state(tree) is State.UNKNOWN
        device.tell_server(tree)
        device.tell_guest(tree)
        assert device.state(tree) is State.INITIALISING
    for kind, number in (("vbd", 51712), ("vif", 0)):
        front, back = f"/local/domain/1/device/{kind}/{number}", f"/local/domain/2/backend/{kind}/1/{number}"
        view = tree.view()
        assert view.get(1, f"{front}/backend", "rb").value.decode() == back
        assert view.get(2, f"{back}/frontend", "rb").value.decode() == front
        view.write(2, f"{back}/state", b"2")
        view.write(1, f"{front}/state", b"1")
        for domain, path, letters in ((1, back, "rb"), (2, front, "rb"), (1, front, "wb"), (2, back, "wb")):
            view.get(domain, path, letters)
        for domain, path, letters in ((1, back, "wb"), (2, front, "wb"), (3, back, "rb"), (3, front, "rb")):
            with pytest.raises(Exception, match="EACCES"):
                view.get(domain, path, letters)
    end(pair.server.domain)
    assert [device.state(tree) for device in devices] == [State.UNKNOWN] * 2


def test_a_run_ends_with_those_that_it_is_for_and_a_servant_that_ended_is_succeeded(pair: Pair) -> None:
    together = Together([pair.guest, pair.server])
    together.servants = {2}
    ended: list[tuple[int, EndKind]] = []

    def after(guest: XenHypervisor, outcome: object) -> None:
        ended.append((guest.domain.number, together.outcomes[guest.domain.number].kind))
        if guest is pair.server:
            together.add(pair.start())

    together.after_end = after
    calls = iter(range(1 << 30))

    def kill_once() -> bool:
        if next(calls) == 3:
            together.kill(pair.server, "by the test")
        return False

    pair.guest.machine.stop_when = kill_once
    outcomes = together.run()
    assert ended == [(2, EndKind.CRASHED), (1, EndKind.GUEST_TIMEOUT), (2, EndKind.STOPPED)]
    assert outcomes[1].kind is EndKind.GUEST_TIMEOUT
