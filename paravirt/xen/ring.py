"""The back end's side of a shared ring: requests are taken, responses put, and indexes not believed.

Room: `paravirt/xen`. Layout of io/ring.h: producer and event index of requests, then of responses, then entries from
byte 64 on, a power of two of them. A request is copied before it is looked at, so that it cannot change afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from paravirt.xen.backend import Broken

_REQUESTS, _REQUEST_EVENT, _RESPONSES, _RESPONSE_EVENT = range(4)
_FIRST: Final = 64
_MASK: Final = 0xFFFF_FFFF


class Ring:
    """One ring in one page."""

    def __init__(self, page: memoryview, size: int) -> None:
        """`size`: bytes of the larger of request and response."""
        self._page = page
        self._words = page[:16].cast("I")
        self._size = size
        self.count = 1 << ((len(page) - _FIRST) // size).bit_length() - 1
        """How many entries there are."""
        self._taken = self._put = self._words[_RESPONSES]
        self._told = self._put

    @property
    def waiting(self) -> int:
        """Requests that nobody has taken. Raises `Broken`."""
        produced = self._words[_REQUESTS]
        count = produced - self._taken & _MASK
        if count > self.count or produced - self._put & _MASK > self.count:
            raise Broken(f"its ring of {self.count} claims {count} requests")
        return count

    def wait(self) -> bool:
        """Have the front end tell of the next request; False, since none is there."""
        self._words[_REQUEST_EVENT] = self._words[_REQUESTS] + 1 & _MASK
        return False

    def requests(self) -> Iterator[bytes]:
        """Requests that nobody has taken, each as it was when it was taken. Raises `Broken`."""
        while self.waiting or self.wait():
            at = _FIRST + self._taken % self.count * self._size
            self._taken = self._taken + 1 & _MASK
            yield bytes(self._page[at : at + self._size])

    def respond(self, response: bytes) -> None:
        """Put a response into the place of a request that was taken."""
        at = _FIRST + self._put % self.count * self._size
        self._page[at : at + len(response)] = response
        self._put = self._put + 1 & _MASK

    def publish(self) -> bool:
        """Let the front end see all responses; whether it wants to be told."""
        words = self._words
        words[_RESPONSES] = self._put
        told, self._told = self._told, self._put
        return self._put - words[_RESPONSE_EVENT] & _MASK < self._put - told & _MASK
