"""One TCP connection of a guest to a socket of the host: the guest's segments to bytes, and back (RFC 9293).

Room: `paravirt/io`. The other end of the guest's connection is here, a few instructions away: nothing is lost but what
a guest has no room for, so that going back to the first byte that is not acknowledged is all there is of repair. Only
guests open connections.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Final

from paravirt.io.packets import ACK, FIN, PSH, RST, SYN, Segment, options_of

_MASK: Final = 0xFFFF_FFFF
_SCALE: Final = 7
_MOST_SEGMENT: Final = 1460
_MOST_PIECES: Final = 44
"""Segments sent as one frame, which is cut by whoever cannot take it."""
_MOST_KEPT: Final = 1 << 20
"""Bytes that wait in either direction."""
_STALLED: Final = 1.0
"""Seconds without an acknowledgement after which is sent again."""
_DUPLICATES: Final = 3
_WINDOW, _MSS = 3, 2

Send = Callable[[Segment, int], None]
"""Sends a segment to the guest; the number is the size that it is to be cut to, or 0."""


class Flow:
    """A connection, from the guest's first segment on."""

    def __init__(self, first: Segment, address: tuple[str, int], send: Send, number: int) -> None:
        """`first` has SYN; `address` is the host's; `number` begins the sequence. Raises `OSError`."""
        self._ports = first.target_port, first.source_port
        self._send_segment = send
        self._next_wanted = first.sequence + 1 & _MASK
        self._first = self._acknowledged = self._sent = number & _MASK
        options = options_of(first)
        scale, size = options.get(_WINDOW), options.get(_MSS)
        self._scales = scale is not None and len(scale) == 1
        self._shift = min(scale[0], 14) if scale is not None and self._scales else 0
        self._piece = _MOST_SEGMENT
        if size is not None and len(size) == 2:
            self._piece = max(64, min(_MOST_SEGMENT, int.from_bytes(size, "big")))
        self._window = first.window
        self._to_guest = bytearray()
        """From the first byte on that the guest has not acknowledged."""
        self._to_host = bytearray()
        self._duplicates = 0
        self._since: float | None = None
        """When what is on its way to the guest was sent, or last acknowledged."""
        self.open = False
        self._guest_ended = self._host_ended = self._said_end = self._end_heard = self._shut = False
        self.done = False
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        error = self.socket.connect_ex(address)
        if error not in (0, errno.EINPROGRESS):
            self.socket.close()
            raise OSError(error, os.strerror(error))

    # -- what the host's socket may be asked ----------------------------------------------------

    @property
    def wants_read(self) -> bool:
        """There is room for what the host sends."""
        return self.open and not self._host_ended and len(self._to_guest) < _MOST_KEPT

    @property
    def wants_write(self) -> bool:
        """It connects, or something waits for the host."""
        return not self.open or bool(self._to_host)

    def ready(self, readable: bool, writable: bool, now: float) -> None:
        """The socket can be read or written."""
        if not self.open:
            if not (readable or writable):
                return
            if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.refuse()
                return
            self._accept()
            return
        try:
            if readable and self.wants_read:
                data = self.socket.recv(_MOST_KEPT - len(self._to_guest))
                self._to_guest += data
                self._host_ended = not data
            self._flush()
        except BlockingIOError:
            pass
        except OSError:
            self.refuse()
            return
        self._transmit(now)

    def look(self, now: float) -> None:
        """Send again what the guest has not acknowledged for long."""
        if self._since is not None and now - self._since >= _STALLED:
            self._go_back(now)

    def refuse(self) -> None:
        """The connection is over, at once."""
        if not self.done:
            self._put(RST | ACK)
        self.close()

    def close(self) -> None:
        """Let the socket go."""
        self.done = True
        self.socket.close()

    # -- segments -------------------------------------------------------------------------------

    def _room(self) -> int:
        return max(0, _MOST_KEPT - len(self._to_host))

    def _put(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        window = self._room() if flags & SYN else self._room() >> (_SCALE if self._scales else 0)
        cut_to = self._piece if len(data) > self._piece else 0
        source, target = self._ports
        self._send_segment(
            Segment(source, target, self._sent, self._next_wanted, flags, min(0xFFFF, window), options, data), cut_to
        )

    def _accept(self) -> None:
        """The host has taken the connection."""
        self.open = True
        options = bytes((_MSS, 4)) + _MOST_SEGMENT.to_bytes(2, "big")
        if self._scales:
            options += bytes((1, _WINDOW, 3, _SCALE))
        self._sent = self._first
        self._put(SYN | ACK, options=options)
        self._sent = self._acknowledged = self._first + 1 & _MASK

    def take(self, segment: Segment, now: float) -> None:
        """A segment comes from the guest."""
        if segment.flags & RST:
            self.close()
            return
        if segment.flags & SYN:
            if self.open:
                self._accept()  # the answer was lost
            return
        if not self.open or not segment.flags & ACK:
            return
        self._heard(segment, now)
        if segment.data or segment.flags & FIN:
            self._receive(segment)
        if not self.done:
            self._transmit(now)

    def _heard(self, segment: Segment, now: float) -> None:
        """Take what the segment acknowledges."""
        new = segment.acknowledged - self._acknowledged & _MASK
        on_way = self._sent - self._acknowledged & _MASK
        window = segment.window << self._shift
        if 0 < new <= on_way:
            if self._said_end and new == on_way:
                self._end_heard = True
                new -= 1
            del self._to_guest[:new]
            self._acknowledged = segment.acknowledged
            self._duplicates = 0
            self._since = now if self._sent != self._acknowledged else None
        elif not new and on_way and not segment.data and window == self._window:
            self._duplicates += 1
            if self._duplicates == _DUPLICATES:
                self._go_back(now)
        self._window = window

    def _receive(self, segment: Segment) -> None:
        """Take the segment's data, as far as it is new and there is room."""
        known = self._next_wanted - segment.sequence & _MASK
        if known <= len(segment.data) and not self._guest_ended:
            data = segment.data[known:]
            taken = data[: self._room()]
            self._to_host += taken
            self._next_wanted = self._next_wanted + len(taken) & _MASK
            if segment.flags & FIN and len(taken) == len(data):
                self._guest_ended = True
                self._next_wanted = self._next_wanted + 1 & _MASK
            try:
                self._flush()
            except OSError:
                self.refuse()
                return
        self._put(ACK)

    def _flush(self) -> None:
        """Give the host what waits for it. Raises `OSError`."""
        try:
            while self._to_host:
                full = self._room() < _MOST_SEGMENT
                del self._to_host[: self.socket.send(self._to_host)]
                if full:
                    self._put(ACK)  # there is room again
        except BlockingIOError:
            return
        if self._guest_ended and not self._shut:
            self._shut = True
            self.socket.shutdown(socket.SHUT_WR)

    def _transmit(self, now: float) -> None:
        """Send the guest what it has a window for."""
        while True:
            on_way = self._sent - self._acknowledged & _MASK
            if self._said_end:
                break
            size = min(self._window - on_way, len(self._to_guest) - on_way, self._piece * _MOST_PIECES)
            if size <= 0:
                break
            data = bytes(self._to_guest[on_way : on_way + size])
            self._put(ACK | (PSH if on_way + size == len(self._to_guest) else 0), data)
            self._sent = self._sent + size & _MASK
            self._since = now
        if self._host_ended and not self._said_end and self._sent - self._acknowledged & _MASK == len(self._to_guest):
            self._put(FIN | ACK)
            self._sent = self._sent + 1 & _MASK
            self._said_end, self._since = True, now
        if self._end_heard and self._guest_ended and not self._to_host:
            self.close()

    def _go_back(self, now: float) -> None:
        self._sent, self._said_end, self._duplicates, self._since = self._acknowledged, False, 0, None
        self._transmit(now)


__all__ = ["Flow", "Send"]
