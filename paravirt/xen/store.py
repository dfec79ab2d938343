"""A guest's connection to xenstore: requests and replies over a ring each way in one page (io/xs_wire.h).

Room: `paravirt/xen`. What the requests do is `paravirt.xen.xenstore`. Nothing that a guest writes into the ring is
trusted: an index that claims more than the ring holds is read as full, a size that cannot be ends what was sent, and a
guest that does not read its replies is not listened to until it does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from paravirt.xen.events import EventChannels
from paravirt.xen.xenstore import (
    MOST_RELATIVE,
    MOST_TRANSACTIONS,
    Node,
    Permissions,
    StoreError,
    Tree,
    View,
    find,
    split,
)

_HEADER = struct.Struct("<IIII")
_SIZE: Final = 1024
_REQUESTS, _REPLIES = 0, 1024
_REQUESTS_CONSUMED, _REQUESTS_PRODUCED, _REPLIES_CONSUMED, _REPLIES_PRODUCED = 2048, 2052, 2056, 2060
_MOST: Final = 4096
"""Bytes of a payload."""
_MOST_WAITING: Final = 1 << 18
"""Bytes of replies that may wait for a guest; events beyond these are dropped."""
_MOST_WATCHES: Final = 128
_WATCH, _START, _END, _EVENT, _ERROR = 4, 6, 7, 15, 16
OWN: Final = ("attr", "control", "data", "device", "drivers", "error", "feature")
"""Names below a guest's home that are its own."""
_SPECIAL: Final = ("@introduceDomain", "@releaseDomain")


class Store:
    """One domain's connection."""

    def __init__(self, events: EventChannels, number: int, tree: Tree | None = None) -> None:
        """Domain `number` and its home in the tree."""
        self.connect(memoryview(bytearray(4096)))
        self._events = events
        self.number = number
        self.tree = tree = Tree() if tree is None else tree
        self.home = f"/local/domain/{number}"
        own = Permissions((("n", number),))
        tree.put(self.home, b"", Permissions((("n", 0), ("r", number))))
        for name in OWN:
            tree.put(f"{self.home}/{name}", b"", own)
        tree.put(f"{self.home}/domid", str(number))
        tree.put(f"{self.home}/cpu/0/availability", "online")
        tree.watchers.append(self._tell)
        self._watches: list[tuple[str, str]] = []
        self._waiting = bytearray()
        """Replies that the ring had no room for."""
        self._input = bytearray()
        self._transactions: dict[int, View] = {}
        self._number = 0
        self._view = tree.view()
        self._answering = False
        self.port = events.allocate_backend(0, self.kicked)
        self._calls: dict[int, Callable[[list[bytes], bytes], bytes]] = {
            1: self._directory,
            2: self._read,
            3: lambda parts, _d: self._node(parts, "rb").permissions.encoded(),
            _WATCH: self._watch,
            5: self._unwatch,
            _START: self._begin,
            10: self._domain_path,
            11: self._write,
            12: self._make,
            13: self._remove,
            14: self._permit,
            17: lambda parts, _d: b"T\0" if tree.value(f"/local/domain/{_domain(parts)}") is not None else b"F\0",
            21: self._reset_watches,
            22: self._directory_part,
        }
        self._refused = {8: "EACCES", 9: "EACCES", 18: "EACCES", 19: "EACCES"}
        """For the domain that administers the host."""

    # -- the ring -------------------------------------------------------------------------------

    def connect(self, page: memoryview) -> None:
        """The page that is shared with the guest."""
        self._page = page
        self._words = page.cast("I")

    def kicked(self) -> None:
        """The guest has asked, or has read."""
        self._push()
        words = self._words
        consumed, produced = words[_REQUESTS_CONSUMED >> 2], words[_REQUESTS_PRODUCED >> 2]
        count = min(produced - consumed & 0xFFFF_FFFF, _SIZE)
        if len(self._waiting) > _MOST_WAITING:
            return
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
        if count:
            self._push(True)

    def _answer(self, kind: int, number: int, transaction: int, payload: bytes) -> None:
        earlier, self._waiting = self._waiting, bytearray()  # what is told of a change comes behind the reply
        self._answering = True
        before = kind
        try:
            reply = self._do(kind, transaction, payload)
        except StoreError as error:
            kind, reply = _ERROR, str(error).encode() + b"\0"
        self._answering = False
        self._waiting = earlier + _HEADER.pack(kind, number, transaction, len(reply)) + reply + self._waiting
        if before == _WATCH and kind == _WATCH:
            self._event(*self._watches[-1])

    def _do(self, kind: int, transaction: int, payload: bytes) -> bytes:
        if kind in self._refused:
            raise StoreError(self._refused[kind])
        call = self._calls.get(kind)
        if call is None and kind != _END:
            raise StoreError("ENOSYS")
        parts = payload.split(b"\0")
        if not parts[0] and kind not in (_START, 21):
            raise StoreError("EINVAL")
        if kind == _END or call is None:
            return self._end(transaction, parts[0])
        if not transaction or kind in (_WATCH, 5, _START):
            self._view = self.tree.view()
            reply = call(parts, payload)
            self.tree.settle(self._view)
            return reply
        if transaction not in self._transactions:
            raise StoreError("ENOENT")
        self._view = self._transactions[transaction]
        return call(parts, payload)

    def _push(self, always: bool = False) -> None:
        words = self._words
        produced = words[_REPLIES_PRODUCED >> 2]
        used = min(produced - words[_REPLIES_CONSUMED >> 2] & 0xFFFF_FFFF, _SIZE)
        piece = self._waiting[: _SIZE - used]
        if not piece and not always:
            return
        del self._waiting[: len(piece)]
        for at, byte in enumerate(piece):
            self._page[_REPLIES + (produced + at) % _SIZE] = byte
        words[_REPLIES_PRODUCED >> 2] = produced + len(piece) & 0xFFFF_FFFF
        self._events.set_pending(self.port)

    # -- watches --------------------------------------------------------------------------------

    def close(self) -> None:
        """The guest is gone: nobody is told any more."""
        if self._tell in self.tree.watchers:
            self.tree.watchers.remove(self._tell)

    def put(self, name: str, value: bytes | str) -> None:
        """Set a value from outside, and tell who watches it."""
        self.tree.put(name, value)

    def _tell(self, changed: str, before: Node, after: Node) -> None:
        told = False
        for path, token in self._watches:
            if changed.startswith("@"):
                if path == changed:
                    self._event(path, token)
                    told = True
                continue
            absolute = self._absolute(path)
            if absolute == changed or changed.startswith(absolute.rstrip("/") + "/"):
                shown = changed
                name = path + changed[len(absolute) :]
            elif absolute.startswith(changed + "/") and find(after, split(changed)) is None:
                shown, name = absolute, path  # it went with one above it
            else:
                continue
            if self._may_see(shown, before, after):
                self._event(name, token)
                told = True
        if told and not self._answering:
            self._push()

    def _may_see(self, path: str, before: Node, after: Node) -> bool:
        steps = split(path)
        node = find(after, steps) or find(before, steps)
        return node is not None and node.permissions.allow(self.number, "rb")

    def _event(self, path: str, token: str) -> None:
        payload = f"{path}\0{token}\0".encode("ascii", "replace")
        if len(self._waiting) <= _MOST_WAITING:
            self._waiting += _HEADER.pack(_EVENT, 0, 0, len(payload)) + payload

    def _watch(self, parts: list[bytes], _payload: bytes) -> bytes:
        if len(parts) < 2:
            raise StoreError("EINVAL")
        path, token = (part.decode("ascii", "replace") for part in parts[:2])
        if path not in _SPECIAL:
            split(self._absolute(path))
        if (path, token) in self._watches:
            raise StoreError("EEXIST")
        if len(self._watches) == _MOST_WATCHES:
            raise StoreError("E2BIG")
        self._watches.append((path, token))
        return b"OK\0"

    def _unwatch(self, parts: list[bytes], _payload: bytes) -> bytes:
        wanted = tuple(part.decode("ascii", "replace") for part in parts[:2])
        if wanted not in self._watches:
            raise StoreError("ENOENT")
        self._watches.remove(wanted)
        return b"OK\0"

    def _reset_watches(self, _parts: list[bytes], _payload: bytes) -> bytes:
        self._watches.clear()
        self._transactions.clear()
        return b"OK\0"

    # -- transactions ---------------------------------------------------------------------------

    def _begin(self, _parts: list[bytes], _payload: bytes) -> bytes:
        if len(self._transactions) == MOST_TRANSACTIONS:
            raise StoreError("ENOSPC")
        self._number = self._number % 0x7FFF_FFFF + 1
        while self._number in self._transactions:
            self._number += 1
        self._transactions[self._number] = self.tree.view()
        return b"%d\0" % self._number

    def _end(self, transaction: int, how: bytes) -> bytes:
        if how not in (b"T", b"F"):
            raise StoreError("EINVAL")
        view = self._transactions.pop(transaction, None)
        if view is None:
            raise StoreError("ENOENT")
        if how == b"T" and not self.tree.settle(view):
            raise StoreError("EAGAIN")
        return b"OK\0"

    # -- the tree -------------------------------------------------------------------------------

    def _absolute(self, name: str) -> str:
        if name.startswith(("/", "@")):
            return name
        if len(name) > MOST_RELATIVE:
            raise StoreError("EINVAL")
        return f"{self.home}/{name}"

    def _path(self, parts: list[bytes]) -> str:
        return self._absolute(parts[0].decode("ascii", "replace"))

    def _node(self, parts: list[bytes], letters: str) -> Node:
        return self._view.get(self.number, self._path(parts), letters)

    def _directory(self, parts: list[bytes], _payload: bytes) -> bytes:
        listed = b"".join(child.encode() + b"\0" for child in self._node(parts, "rb").children)
        if len(listed) > _MOST:
            raise StoreError("E2BIG")
        return listed

    def _directory_part(self, parts: list[bytes], _payload: bytes) -> bytes:
        if len(parts) < 2 or not parts[1].isdigit() or len(parts[1]) > 9:
            raise StoreError("EINVAL")
        children = self._node(parts, "rb").children
        listed = b"".join(child.encode() + b"\0" for child in children)
        start = int(parts[1])
        piece = listed[start : start + _MOST // 2]
        end = b"\0" if start + len(piece) >= len(listed) else b""
        return b"%d\0" % len(children) + piece + end

    def _read(self, parts: list[bytes], _payload: bytes) -> bytes:
        return self._node(parts, "rb").value

    def _domain_path(self, parts: list[bytes], _payload: bytes) -> bytes:
        return f"/local/domain/{_domain(parts)}\0".encode()

    def _write(self, parts: list[bytes], payload: bytes) -> bytes:
        if len(parts) < 2:
            raise StoreError("EINVAL")
        self._view.write(self.number, self._path(parts), payload[len(parts[0]) + 1 :])
        return b"OK\0"

    def _make(self, parts: list[bytes], _payload: bytes) -> bytes:
        self._view.make(self.number, self._path(parts))
        return b"OK\0"

    def _remove(self, parts: list[bytes], _payload: bytes) -> bytes:
        self._view.remove(self.number, self._path(parts))
        return b"OK\0"

    def _permit(self, parts: list[bytes], _payload: bytes) -> bytes:
        self._view.permit(self.number, self._path(parts), Permissions.decoded([part for part in parts[1:] if part]))
        return b"OK\0"


def _domain(parts: list[bytes]) -> int:
    if not parts[0].isdigit() or len(parts[0]) > 5:
        raise StoreError("EINVAL")
    return int(parts[0])


__all__ = ["OWN", "Store", "StoreError"]
