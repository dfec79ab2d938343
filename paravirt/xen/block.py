"""The block back end: a guest's requests to a disk, as its stock driver makes them (io/blkif.h).

Room: `paravirt/xen`. A request is answered before the guest goes on: read, write, barrier, flush, discard, and lists of
segments in pages of their own. Pages are granted for one request each. What is wrong with a request, such as a sector
beyond the end or a page that is not granted, is answered with an error; a ring that lies is disconnected.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from paravirt.io.disk import SECTOR, Disk
from paravirt.xen.announce import FIRST_DISK, disk_name
from paravirt.xen.backend import BackEnd, Broken
from paravirt.xen.grants import PAGE, Grant, GrantError
from paravirt.xen.ring import Ring

if TYPE_CHECKING:
    from paravirt.xen.domain import Domain

_READ, _WRITE, _BARRIER, _FLUSH, _DISCARD, _INDIRECT = 0, 1, 2, 3, 5, 6
_NAMES: Final = {
    _READ: "read",
    _WRITE: "written",
    _BARRIER: "barriers",
    _FLUSH: "flushes",
    _DISCARD: "discards",
    _INDIRECT: "lists of segments",
}
_OKAY, _ERROR, _UNKNOWN = 0, -1, -2
_REQUEST: Final = 112
_MOST_SEGMENTS, _MOST_INDIRECT = 11, 256
_SEGMENT = struct.Struct("<IBBxx")
_RESPONSE = struct.Struct("<QBxh")
_CDROM, _READ_ONLY = 1, 4


class _Wrong(Exception):
    """A request that cannot be done."""


class BlockBackEnd(BackEnd):
    """One disk of one guest."""

    def __init__(self, domain: Domain, disk: Disk, index: int = 0) -> None:
        """`index`: 0 for xvda, 1 for xvdb."""
        self.disk = disk
        self.requests: dict[int, int] = {}
        """How many of each operation there were."""
        self.refused = 0
        self._name = disk_name(index)
        number = FIRST_DISK + index * 16
        mode = "w" if disk.writable else "r"
        back = {"mode": mode, "dev": disk_name(index), "removable": "0", "type": "phy"}
        front = {"virtual-device": str(number), "device-type": "disk"}
        super().__init__(domain, "vbd", number, front, back)

    def connect(self) -> None:
        """As `BackEnd.connect`."""
        protocol = self.tree.value(f"{self.front}/protocol") or "x86_64-abi"
        if protocol != "x86_64-abi":
            raise Broken(f"its protocol is {protocol!r}, and not x86_64-abi")
        self._ring = Ring(self.share(self.number("ring-ref")), _REQUEST)
        self._channel = self.channel(self.number("event-channel"), self.kicked)
        for name, value in {
            "feature-flush-cache": 1,
            "feature-barrier": 1,
            "feature-discard": int(self.disk.writable),
            "discard-granularity": PAGE,
            "discard-alignment": 0,
            "discard-secure": 0,
            "feature-max-indirect-segments": _MOST_INDIRECT,
            "feature-persistent": 0,
            "sector-size": SECTOR,
            "physical-sector-size": SECTOR,
            "sectors": self.disk.sectors,
            "info": 0 if self.disk.writable else _READ_ONLY,
        }.items():
            self.say(name, str(value))

    def counters(self) -> list[tuple[str, str]]:
        """As `BackEnd.counters`."""
        counts = (f"{count} {_NAMES.get(number, number)}" for number, count in sorted(self.requests.items()))
        return [(self._name, f"{', '.join(counts) or 'no requests'}; {self.refused} refused")]

    def kicked(self) -> None:
        """The guest has put requests into the ring."""
        if not self.connected:
            return
        ring = self._ring
        try:
            for request in ring.requests():
                ring.respond(self._answer(request))
        except Broken as error:
            self.fail(str(error))
            return
        if ring.publish():
            self._channel.notify()
        self.domain.settle_tables()

    def _answer(self, request: bytes) -> bytes:
        operation, identity = request[0], int.from_bytes(request[8:16], "little")
        self.requests[operation] = self.requests.get(operation, 0) + 1
        status = _OKAY
        try:
            if operation in (_READ, _WRITE, _BARRIER, _FLUSH):
                self._direct(operation, request)
            elif operation == _INDIRECT:
                self._indirect(request)
            elif operation == _DISCARD:
                self._discard(request)
            else:
                status = _UNKNOWN
        except (_Wrong, GrantError, OSError):
            status = _ERROR
        self.refused += status != _OKAY
        # What is answered is what was asked for, whichever way its segments were listed.
        return _RESPONSE.pack(identity, request[1] if operation == _INDIRECT else operation, status)

    def _direct(self, operation: int, request: bytes) -> None:
        count, sector = request[1], int.from_bytes(request[16:24], "little")
        if count > _MOST_SEGMENTS or (not count and operation in (_READ, _WRITE)):
            raise _Wrong
        if operation in (_BARRIER, _FLUSH):
            self.disk.flush()
        if count:  # an empty flush names no sector
            self._transfer(operation == _READ, sector, request[24 : 24 + count * 8])
        if operation == _BARRIER or (operation == _FLUSH and count):
            self.disk.flush()

    def _indirect(self, request: bytes) -> None:
        operation, count, sector = request[1], *struct.unpack_from("<HxxxxxxxxxxxxQ", request, 2)
        if operation not in (_READ, _WRITE) or not 0 < count <= _MOST_INDIRECT:
            raise _Wrong
        segments = b""
        for reference in struct.unpack_from("<8I", request, 28)[: -(-count // 512)]:
            grant = self.domain.grants.acquire(reference, 0, False)
            try:
                segments += bytes(self.domain.grants.memory(grant))
            finally:
                self.domain.grants.release(grant)
        self._transfer(operation == _READ, sector, segments[: count * 8])

    def _discard(self, request: bytes) -> None:
        sector, count = struct.unpack_from("<QQ", request, 16)
        if not self.disk.writable or request[1] & 1 or sector + count > self.disk.sectors:
            raise _Wrong
        self.disk.discard(sector, count)

    def _transfer(self, reading: bool, sector: int, segments: bytes) -> None:
        """Move sectors between the disk and pages that are granted; nothing of it where one is not."""
        grants = self.domain.grants
        pieces = []
        size = 0
        for reference, first, last in _SEGMENT.iter_unpack(segments):
            if not first <= last < PAGE // SECTOR:
                raise _Wrong
            pieces.append((reference, first * SECTOR, (last + 1) * SECTOR))
            size += last + 1 - first
        if sector + size > self.disk.sectors or not (reading or self.disk.writable):
            raise _Wrong
        held: list[Grant] = []
        try:
            for reference, _start, _end in pieces:
                held.append(grants.acquire(reference, 0, reading))
            views = [grants.memory(grant)[start:end] for grant, (_r, start, end) in zip(held, pieces, strict=True)]
            if not reading:
                self.disk.write(sector, b"".join(views))
                return
            data = self.disk.read(sector, size)
            done = 0
            for view in views:
                view[:] = data[done : done + len(view)]
                done += len(view)
        finally:
            for grant in held:
                grants.release(grant)


__all__ = ["BlockBackEnd"]
