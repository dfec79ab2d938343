"""Addresses for guests that ask: DHCP as far as a network of a few needs it (RFC 2131).

Room: `paravirt/io`. A station gets the same address as long as the network is there.
"""

from __future__ import annotations

import struct
from typing import Final

SERVER_PORT, CLIENT_PORT = 67, 68
_COOKIE: Final = b"\x63\x82\x53\x63"
_OPTIONS_AT: Final = 240
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK = 1, 2, 3, 5, 6
_LEASE: Final = 86400
_KIND, _WANTED, _SERVER = 53, 50, 54


class Leases:
    """Addresses of one network, from `first` on."""

    def __init__(self, server: bytes, names: bytes, first: bytes, count: int) -> None:
        """All addresses of four bytes: the server's, which is the gateway too, that of the names' server, and the first
        of `count` to give."""
        self._server, self._names = server, names
        self._first, self._count = int.from_bytes(first, "big"), count
        self.given: dict[bytes, bytes] = {}
        """Address by station."""

    def _address(self, station: bytes) -> bytes | None:
        if station not in self.given:
            if len(self.given) == self._count:
                return None
            self.given[station] = (self._first + len(self.given)).to_bytes(4, "big")
        return self.given[station]

    def answer(self, message: bytes) -> bytes:
        """The reply to a client's message; empty where there is none."""
        if len(message) < _OPTIONS_AT or message[:3] != b"\1\1\6" or message[236:240] != _COOKIE:
            return b""
        options = _options(message[_OPTIONS_AT:])
        kind = options.get(_KIND, b"\0")[:1]
        if kind not in (bytes([_DISCOVER]), bytes([_REQUEST])) or options.get(_SERVER, self._server) != self._server:
            return b""
        address = self._address(message[28:34])
        if address is None:
            return b""
        if kind[0] == _DISCOVER:
            return self._reply(message, _OFFER, address)
        wanted = options.get(_WANTED, message[12:16])
        return self._reply(message, _ACK, address) if wanted == address else self._reply(message, _NAK, bytes(4))

    def _reply(self, message: bytes, kind: int, address: bytes) -> bytes:
        head = struct.pack(
            ">BBBB4sHH4s4s4s4s", 2, 1, 6, 0, message[4:8], 0, 0, bytes(4), address, self._server, bytes(4)
        )
        options = bytes((_KIND, 1, kind, _SERVER, 4)) + self._server
        if kind != _NAK:
            options += bytes((51, 4)) + _LEASE.to_bytes(4, "big") + bytes((1, 4, 255, 255, 255, 0))
            options += bytes((3, 4)) + self._server + bytes((6, 4)) + self._names
        return head + message[28:44] + bytes(192) + _COOKIE + options + b"\xff"


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 1 < len(data) and data[at] != 255:
        if not data[at]:
            at += 1
            continue
        size = data[at + 1]
        found[data[at]] = data[at + 2 : at + 2 + size]
        at += 2 + size
    return found


__all__ = ["CLIENT_PORT", "SERVER_PORT", "Leases"]
