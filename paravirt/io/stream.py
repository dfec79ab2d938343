"""A cable to another process: frames over a stream socket, each behind its length, as QEMU's `-netdev stream` has them.

Room: `paravirt/io`. One end listens and takes one peer at a time, the other connects; a listener whose peer has gone
waits for the next one. Checksums are filled in and long frames cut before anything leaves. What comes from the peer is
as little believed as what comes from a guest.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import stat
from typing import Final

from emulator.errors import UsageError
from paravirt.io.packets import completed
from paravirt.io.switch import LEAST_FRAME, MOST_FRAME, Switch

_LENGTH: Final = 4
_MOST_KEPT: Final = 4 << 20
"""Bytes that wait for a peer that does not read; frames beyond these are dropped."""
_PIECE: Final = 1 << 18

Address = str | tuple[str, int]
"""A path, or host and port."""


def address_of(text: str) -> Address:
    """A path where it has a slash, else HOST:PORT. Raises `UsageError`."""
    if "/" in text:
        return text
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65_536:
        raise UsageError(f"{text!r} is no address of a socket; give a path with a slash in it, or HOST:PORT")
    return host, int(port)


def _socket(address: Address) -> socket.socket:
    made = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(True)
    return made


def _text(address: Address) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


class Cable:
    """The port of a switch at which the cable is."""

    takes_long = False

    def __init__(
        self, switch: Switch, peer: socket.socket | None, listener: socket.socket | None, path: str = ""
    ) -> None:
        """Connected to `peer`, or waiting at `listener`, whose path (where it has one) is removed at the end."""
        self._switch, self._listener, self._path = switch, listener, path
        self._selector = selectors.DefaultSelector()
        self._peer: socket.socket | None = None
        self._in, self._out = bytearray(), bytearray()
        self._writes = False
        self.sent = self.received = self.dropped = 0
        """Frames."""
        if listener is not None:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
        if peer is not None:
            self._take_peer(peer)
        switch.connect(self)

    @classmethod
    def listen(cls, switch: Switch, address: Address) -> Cable:
        """Wait for a peer at an address. Raises `UsageError` where that cannot be."""
        listener = _socket(address)
        try:
            if isinstance(address, str):
                _remove_dead(address)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
        except (OSError, ValueError) as error:
            listener.close()
            raise _refused(address, "listened at", error) from None
        return cls(switch, None, listener, address if isinstance(address, str) else "")

    @classmethod
    def connect(cls, switch: Switch, address: Address) -> Cable:
        """Connect to who listens there. Raises `UsageError` where nobody does."""
        peer = _socket(address)
        try:
            peer.settimeout(10)
            peer.connect(address)
        except (OSError, ValueError) as error:
            peer.close()
            raise _refused(address, "connected to", error) from None
        return cls(switch, peer, None)

    @classmethod
    def join(cls, switch: Switch, address: Address) -> Cable:
        """Connect where somebody listens, else be the one who does. Raises `UsageError`."""
        try:
            return cls.connect(switch, address)
        except UsageError:
            return cls.listen(switch, address)

    # -- `Outside` ------------------------------------------------------------------------------

    @property
    def descriptor(self) -> int:
        """As `Outside.descriptor`."""
        return self._selector.fileno() if isinstance(self._selector, selectors.EpollSelector) else -1

    @property
    def busy(self) -> bool:
        """As `Outside.busy`."""
        return self._peer is not None or self._listener is not None

    def poll(self) -> None:
        """As `Outside.poll`."""
        for found, events in self._selector.select(0):
            if found.fileobj is self._listener:
                self._accept()
            elif found.fileobj is self._peer:
                self._move(bool(events & selectors.EVENT_READ))

    def close(self) -> None:
        """As `Outside.close`."""
        self._lose_peer()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._selector.close()
        self._switch.disconnect(self)

    # -- the peer -------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        if self._peer is not None:
            peer.close()  # a cable has two ends
            return
        self._take_peer(peer)

    def _take_peer(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        self._peer = peer
        self._in.clear()
        self._out.clear()
        self._writes = False
        self._selector.register(peer, selectors.EVENT_READ)

    def _lose_peer(self) -> None:
        if self._peer is not None:
            self._selector.unregister(self._peer)
            self._peer.close()
            self._peer = None

    def _move(self, readable: bool) -> None:
        peer = self._peer
        assert peer is not None
        try:
            self._flush()
            if readable:
                data = peer.recv(_PIECE)
                if not data:
                    self._lose_peer()
                    return
                self._in += data
        except BlockingIOError:
            return
        except OSError:
            self._lose_peer()
            return
        self._take_frames()

    def _take_frames(self) -> None:
        at, data = 0, self._in
        while len(data) - at >= _LENGTH:
            size = int.from_bytes(data[at : at + _LENGTH], "big")
            if not LEAST_FRAME <= size <= MOST_FRAME:
                self._lose_peer()  # nothing behind this can be found
                return
            if len(data) - at - _LENGTH < size:
                break
            frame = bytes(data[at + _LENGTH : at + _LENGTH + size])
            at += _LENGTH + size
            self.received += 1
            self._switch.send(self, frame)
        del data[:at]

    def _flush(self) -> None:
        """Raises `OSError`."""
        if self._peer is None:
            return
        try:
            while self._out:
                del self._out[: self._peer.send(self._out)]
        except BlockingIOError:
            pass
        if bool(self._out) != self._writes:
            self._writes = bool(self._out)
            events = selectors.EVENT_READ | selectors.EVENT_WRITE * self._writes
            self._selector.modify(self._peer, events)

    # -- `Port` ---------------------------------------------------------------------------------

    def receive(self, frame: bytes, blank: bool, _segment: int = 0) -> None:
        """As `Port.receive`."""
        if self._peer is None or len(self._out) > _MOST_KEPT:
            self.dropped += 1
            return
        if blank:
            frame = completed(frame)
        self._out += len(frame).to_bytes(_LENGTH, "big") + frame
        self.sent += 1
        try:
            self._flush()
        except OSError:
            self._lose_peer()


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody listens at, as a process that was killed leaves it."""
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with _socket(path) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def _refused(address: Address, what: str, error: OSError | ValueError) -> UsageError:
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return UsageError(f"{_text(address)}: cannot be {what} ({reason}); give a socket that can")


__all__ = ["Address", "Cable", "address_of"]
