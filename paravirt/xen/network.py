"""The network back end: a guest's frames to a switch and back, as its stock driver moves them (io/netif.h).

Room: `paravirt/xen`. Both ways are copies out of and into pages that are granted for one frame each. Frames for a guest
that has no room wait, up to a limit, and are dropped beyond it. Checksums and the cutting of long TCP frames are left
to whoever is the last to have a frame. A slot that makes no sense is answered with an error; a ring that lies, or a
chain without an end, is disconnected.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from paravirt.io.packets import completed
from paravirt.io.switch import Switch
from paravirt.xen.backend import BackEnd, Broken
from paravirt.xen.grants import PAGE, GrantError
from paravirt.xen.ring import Ring

if TYPE_CHECKING:
    from paravirt.xen.domain import Domain

_SENT = struct.Struct("<IHHHH")
"""Grant, offset, flags, identity, size."""
_SENT_ANSWER = struct.Struct("<Hh")
_ROOM = struct.Struct("<HxxI")
_RECEIVED = struct.Struct("<HHHh")
_BLANK, _VALIDATED, _MORE, _EXTRA = 1, 2, 4, 8
_OKAY, _ERROR, _NOTHING = 0, -1, 1
_EXTRA_SEGMENTS = struct.Struct("<BBHBxH")
"""Type and flags of extra information, then the size to cut to, of what protocol, and features."""
_SEGMENTS, _TCP4 = 1, 1
_MOST_SLOTS: Final = 18
_LEAST_SEGMENT: Final = 64
_MOST_WAITING: Final = 256
"""Frames that wait for a guest to make room."""


class NetworkBackEnd(BackEnd):
    """One network interface of one guest."""

    def __init__(self, domain: Domain, switch: Switch, station: bytes, index: int = 0) -> None:
        """`station`: six bytes of Ethernet address; `index`: 0 for the first interface."""
        self.switch = switch
        self._name = f"vif {index}"
        self.sent = self.received = self.dropped = self.refused = 0
        """Frames."""
        self.long = 0
        """Frames, either way, that were still to be cut."""
        self.takes_long = self._checks = False
        self._waiting: deque[tuple[bytes, bool, int]] = deque()
        back = {"handle": str(index), "mac": station.hex(":"), "feature-rx-copy": "1", "feature-rx-flip": "0"}
        back |= {"feature-sg": "1", "feature-split-event-channels": "0", "feature-gso-tcpv4": "1"}
        super().__init__(domain, "vif", index, {"handle": str(index), "mac": station.hex(":")}, back)

    def connect(self) -> None:
        """As `BackEnd.connect`."""
        if self.number("request-rx-copy", 0) != 1:
            raise Broken("it does not ask for copies, and pages are not flipped")
        queues = self.number("multi-queue-num-queues", 1)
        if queues != 1:
            raise Broken(f"it asks for {queues} queues, and one is offered")
        self.takes_long = self.number("feature-gso-tcpv4", 0) == 1 and self.number("feature-sg", 0) == 1
        self._checks = self.number("feature-no-csum-offload", 0) != 1
        self._tx = Ring(self.share(self.number("tx-ring-ref")), _SENT.size)
        self._rx = Ring(self.share(self.number("rx-ring-ref")), _ROOM.size)
        self._channel = self.channel(self.number("event-channel"), self.kicked)
        self.switch.connect(self)

    def disconnect(self) -> None:
        """As `BackEnd.disconnect`."""
        self.switch.disconnect(self)
        self._waiting.clear()
        self.takes_long = False
        super().disconnect()

    def counters(self) -> list[tuple[str, str]]:
        """As `BackEnd.counters`."""
        text = f"{self.sent} frames sent, {self.received} received, {self.long} of these long; {self.dropped} dropped"
        return [(self._name, f"{text}, {self.refused} refused")]

    def kicked(self) -> None:
        """The guest has sent, or made room."""
        if not self.connected:
            return
        try:
            tell = self._send()
            tell |= self._fill()
        except Broken as error:
            self.fail(str(error))
            return
        if tell and self.connected:
            self._channel.notify()
        self.domain.settle_tables()

    # -- from the guest -------------------------------------------------------------------------

    def _send(self) -> bool:
        requests = self._tx.requests()
        for request in requests:
            slots = [_SENT.unpack(request)]
            extra, segment = slots[0][2] & _EXTRA != 0, 0
            if extra:
                segment = self._read_extra(next(requests, None))
            while slots[-1][2] & _MORE:
                following = next(requests, None)
                if following is None or len(slots) == _MOST_SLOTS:
                    raise Broken("a frame in its ring has no end")
                slots.append(_SENT.unpack(following))
            try:
                frame = self._gather(slots)
            except GrantError:
                frame = None
                self.refused += 1
            for number, slot in enumerate(slots):
                self._tx.respond(_SENT_ANSWER.pack(slot[3], _ERROR if frame is None else _OKAY))
                if extra and not number:
                    self._tx.respond(_SENT_ANSWER.pack(0, _NOTHING))
            if frame is not None:
                self.sent += 1
                self.long += segment != 0
                self.switch.send(self, frame, slots[0][2] & _BLANK != 0, segment)
            if not self.connected:
                return False
        return self._tx.publish()

    @staticmethod
    def _read_extra(slot: bytes | None) -> int:
        """The size that a frame is to be cut to, from the slot behind its first one. Raises `Broken`."""
        if slot is None:
            raise Broken("a frame in its ring has no end")
        kind, flags, size, protocol, _features = _EXTRA_SEGMENTS.unpack_from(slot)
        if kind != _SEGMENTS or flags or protocol != _TCP4 or size < _LEAST_SEGMENT:
            raise Broken("its frame has extra information that was not offered")
        return int(size)

    def _gather(self, slots: list[tuple[int, int, int, int, int]]) -> bytes | None:
        """A frame out of its slots: the first one's size is the whole frame's. None for one that cannot be."""
        sizes = [slot[4] for slot in slots]
        sizes[0] -= sum(sizes[1:])
        if any(size <= 0 or slot[1] + size > PAGE for slot, size in zip(slots, sizes, strict=True)):
            self.refused += 1
            return None
        grants, parts = self.domain.grants, []
        for slot, size in zip(slots, sizes, strict=True):
            grant = grants.acquire(slot[0], 0, False)
            try:
                parts.append(bytes(grants.memory(grant)[slot[1] : slot[1] + size]))
            finally:
                grants.release(grant)
        return b"".join(parts)

    # -- to the guest ---------------------------------------------------------------------------

    def receive(self, frame: bytes, blank: bool, segment: int = 0) -> None:
        """As `Port.receive`."""
        if blank and not self._checks:
            frame, blank = completed(frame), False
        if len(self._waiting) == _MOST_WAITING:
            self.dropped += 1
            return
        self._waiting.append((frame, blank, segment))
        try:
            tell = self._fill()
        except Broken as error:
            self.fail(str(error))
            return
        if tell:
            self._channel.notify()
        self.domain.settle_tables()

    def _fill(self) -> bool:
        """Move frames that wait into pages that the guest offers."""
        ring = self._rx
        while self._waiting:
            frame, blank, segment = self._waiting[0]
            needed = -(-len(frame) // PAGE) + (segment != 0)
            if ring.waiting < needed:
                break
            self._waiting.popleft()
            requests = ring.requests()
            for at in range(0, len(frame), PAGE):
                identity, reference = _ROOM.unpack(next(requests))
                piece = frame[at : at + PAGE]
                flags = _MORE if at + PAGE < len(frame) else 0
                if not at:
                    flags |= _BLANK | _VALIDATED if blank else 0
                    flags |= _EXTRA if segment else 0
                status = len(piece) if self._store(reference, piece) else _ERROR
                ring.respond(_RECEIVED.pack(identity, 0, flags, status))
                if segment and not at:
                    next(requests)  # its page is not used, and is the guest's to offer again
                    ring.respond(_EXTRA_SEGMENTS.pack(_SEGMENTS, 0, segment, _TCP4, 0))
            self.received += 1
            self.long += segment != 0
        if self._waiting:
            ring.wait()
        return ring.publish()

    def _store(self, reference: int, piece: bytes) -> bool:
        grants = self.domain.grants
        try:
            grant = grants.acquire(reference, 0, True)
        except GrantError:
            self.refused += 1
            return False
        grants.memory(grant)[: len(piece)] = piece
        grants.release(grant)
        return True


__all__ = ["NetworkBackEnd"]
