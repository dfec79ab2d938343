"""A small xenstore: the tree of names and values by which a guest finds its devices, served over the guest's ring.

Room: `paravirt/xen`. Requests and replies as io/xs_wire.h has them, one ring each way in one page. Names are kept in a
dictionary; watches are told; a transaction is granted and never conflicts, since the guest alone writes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from paravirt.xen.events import EventChannels

_HEADER = struct.Struct("<IIII")
_SIZE: Final = 1024
_REQUESTS, _REPLIES = 0, 1024
_REQUESTS_CONSUMED, _REQUESTS_PRODUCED, _REPLIES_CONSUMED, _REPLIES_PRODUCED = 2048, 2052, 2056, 2060
_MOST: Final = 4096
"""Bytes of a payload."""
_EVENT, _ERROR = 15, 16


class StoreError(Exception):
    """A request is refused, by the name of the error."""


class Store:
    """The tree, and the guest's connection to it."""

    def __init__(self, events: EventChannels, home: str) -> None:
        """`home` is where the guest's relative names begin, such as "/local/domain/1"."""
        self.connect(memoryview(bytearray(4096)))
        self._events = events
        self.home = home
        self.values: dict[str, bytes] = {}
        """By absolute name."""
        self._watches: list[tuple[str, str]] = []
        self._waiting = bytearray()
        """Replies that the ring had no room for."""
        self._input = bytearray()
        self._transactions = 0
        self.port = events.allocate_backend(0, self.kicked)
        self._calls: dict[int, Callable[[list[bytes], bytes], bytes]] = {
            1: self._directory,
            2: self._read,
            3: lambda _a, _d: b"n0\0",
            4: self._watch,
            5: self._unwatch,
            6: self._begin,
            7: lambda _a, _d: b"OK\0",
            10: lambda arguments, _d: f"/local/domain/{arguments[0].decode()}\0".encode(),
            11: self._write_value,
            12: self._make,
            13: self._remove,
            14: lambda _a, _d: b"OK\0",
        }

    # -- the ring -------------------------------------------------------------------------------

    def connect(self, page: memoryview) -> None:
        """The page that is shared with the guest."""
        self._page = page
        self._words = page.cast("I")

    def kicked(self) -> None:
        """The guest has asked, or has read."""
        words = self._words
        consumed, produced = words[_REQUESTS_CONSUMED >> 2], words[_REQUESTS_PRODUCED >> 2]
        count = min(produced - consumed & 0xFFFF_FFFF, _SIZE)
        self._input += bytes(self._page[_REQUESTS + (consumed + at) % _SIZE] for at in range(count))
        words[_REQUESTS_CONSUMED >> 2] = produced
        while len(self._input) >= _HEADER.size:
            kind, number, transaction, size = _HEADER.unpack_from(self._input)
            if size > _MOST:
                self._input.clear()  # nothing behind this can be found
                break
            if len(self._input) < _HEADER.size + size:
                break
            payload = bytes(self._input[_HEADER.size : _HEADER.size + size])
            del self._input[: _HEADER.size + size]
            self._answer(kind, number, transaction, payload)
        if count or self._waiting:
            self._push()

    def _answer(self, kind: int, number: int, transaction: int, payload: bytes) -> None:
        call = self._calls.get(kind)
        earlier, self._waiting = self._waiting, bytearray()  # what is told of a change comes behind the reply
        try:
            if call is None:
                raise StoreError("ENOSYS")
            arguments = payload.split(b"\0")
            if not arguments[0] and kind not in (6, 7):
                raise StoreError("EINVAL")
            reply = call(arguments, payload)
        except StoreError as error:
            kind, reply = _ERROR, str(error).encode() + b"\0"
        self._waiting = earlier + _HEADER.pack(kind, number, transaction, len(reply)) + reply + self._waiting
        if kind == 4:
            path, token = self._watches[-1]
            self._tell(path, token)

    def _push(self) -> None:
        words = self._words
        produced = words[_REPLIES_PRODUCED >> 2]
        used = min(produced - words[_REPLIES_CONSUMED >> 2] & 0xFFFF_FFFF, _SIZE)
        piece = self._waiting[: _SIZE - used]
        del self._waiting[: len(piece)]
        for at, byte in enumerate(piece):
            self._page[_REPLIES + (produced + at) % _SIZE] = byte
        words[_REPLIES_PRODUCED >> 2] = produced + len(piece) & 0xFFFF_FFFF
        self._events.set_pending(self.port)

    # -- the tree -------------------------------------------------------------------------------

    def _name(self, argument: bytes) -> str:
        name = argument.decode("ascii", "replace")
        if name.startswith(("/", "@")):
            return name.rstrip("/") or "/"
        return f"{self.home}/{name}".rstrip("/")

    def put(self, name: str, value: bytes | str) -> None:
        """Set a value from outside, and tell who watches it."""
        self.values[name] = value.encode() if isinstance(value, str) else value
        self._changed(name)
        if self._waiting:
            self._push()

    def _changed(self, name: str) -> None:
        for path, token in self._watches:
            absolute = self._name(path.encode())
            if name == absolute or name.startswith(absolute + "/"):
                told = path + name[len(absolute) :]
                self._tell(told, token)

    def _tell(self, path: str, token: str) -> None:
        payload = f"{path}\0{token}\0".encode()
        self._waiting += _HEADER.pack(_EVENT, 0, 0, len(payload)) + payload

    def _exists(self, name: str) -> bool:
        prefix = name.rstrip("/") + "/"
        return name in self.values or any(key.startswith(prefix) for key in self.values)

    def _directory(self, arguments: list[bytes], _payload: bytes) -> bytes:
        name = self._name(arguments[0])
        if not self._exists(name):
            raise StoreError("ENOENT")
        prefix = name.rstrip("/") + "/"
        children = {key[len(prefix) :].split("/")[0] for key in self.values if key.startswith(prefix)}
        return b"".join(child.encode() + b"\0" for child in sorted(children) if child)

    def _read(self, arguments: list[bytes], _payload: bytes) -> bytes:
        name = self._name(arguments[0])
        if name in self.values:
            return self.values[name]
        if self._exists(name):
            return b""
        raise StoreError("ENOENT")

    def _watch(self, arguments: list[bytes], _payload: bytes) -> bytes:
        if len(arguments) < 2:
            raise StoreError("EINVAL")
        self._watches.append((arguments[0].decode("ascii", "replace"), arguments[1].decode("ascii", "replace")))
        return b"OK\0"

    def _unwatch(self, arguments: list[bytes], _payload: bytes) -> bytes:
        wanted = tuple(argument.decode("ascii", "replace") for argument in arguments[:2])
        if wanted not in self._watches:
            raise StoreError("ENOENT")
        self._watches.remove(wanted)
        return b"OK\0"

    def _begin(self, _arguments: list[bytes], _payload: bytes) -> bytes:
        self._transactions += 1
        return b"%d\0" % self._transactions

    def _write_value(self, arguments: list[bytes], payload: bytes) -> bytes:
        name = self._name(arguments[0])
        self.values[name] = payload[len(arguments[0]) + 1 :]
        self._changed(name)
        return b"OK\0"

    def _make(self, arguments: list[bytes], _payload: bytes) -> bytes:
        name = self._name(arguments[0])
        if not self._exists(name):
            self.values[name] = b""
            self._changed(name)
        return b"OK\0"

    def _remove(self, arguments: list[bytes], _payload: bytes) -> bytes:
        name = self._name(arguments[0])
        if not self._exists(name):
            raise StoreError("ENOENT")
        for key in [key for key in self.values if key == name or key.startswith(name + "/")]:
            del self.values[key]
        self._changed(name)
        return b"OK\0"
