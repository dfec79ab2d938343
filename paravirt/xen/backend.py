"""A back end of the hypervisor's own: how it is announced in the store, and how it meets and leaves its front end.

Room: `paravirt/xen`. Both ends say their state in the store (io/xenbus.h); when the front end has put its rings and
port there, the back end takes them. A front end that breaks the protocol is disconnected, with the reason in the
store, and may connect anew. What goes over the rings is the subclass's (`block`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from paravirt.xen.announce import announce_back, announce_front, back_path, front_path
from paravirt.xen.events import EventChannels, Port
from paravirt.xen.grants import Grant, GrantError
from paravirt.xen.public import XenError
from paravirt.xen.xenstore import Node

if TYPE_CHECKING:
    from paravirt.xen.domain import Domain


class State(IntEnum):
    """xenbus_state."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6


class Broken(Exception):
    """The front end breaks the protocol; the reason is a clause for people."""


class Channel:
    """The back end's side of one port that a front end offers."""

    def __init__(self, events: EventChannels, number: int, called: Callable[[], None]) -> None:
        """Raises `Broken` where the port is none that is offered."""
        self._events, self._number = events, number
        try:
            self._port: Port = events.bind_backend(number, called)
        except XenError as error:
            raise Broken(f"event channel {number} is not one that it offers ({error})") from None

    def notify(self) -> None:
        """Tell the front end, if the port is still what it was."""
        if self._events.ports.get(self._number) is self._port:
            self._events.set_pending(self._number)

    def close(self) -> None:
        """The port is the front end's alone again."""
        if self._events.ports.get(self._number) is self._port:
            self._events.unbind_backend(self._number)


class BackEnd:
    """One device of one guest."""

    def __init__(self, domain: Domain, kind: str, number: int, front: dict[str, str], back: dict[str, str]) -> None:
        """Announce device `number` of a kind ("vbd", "vif"), with these values at each end."""
        self.domain = domain
        self.tree = tree = domain.host.store
        guest = domain.number
        self.front, self.back = front_path(kind, number, guest), back_path(kind, number, guest)
        self.state = State.INIT_WAIT
        self.connected = False
        self.broken = ""
        """Why it was disconnected, where the front end broke the protocol."""
        self._grants: list[Grant] = []
        self._channels: list[Channel] = []
        announce_back(tree, kind, number, guest, 0, back, str(int(self.state)))
        announce_front(tree, kind, number, guest, 0, front)
        tree.watchers.append(self._watch)
        domain.back_ends.append(self)

    # -- the store ------------------------------------------------------------------------------

    def _watch(self, path: str, _before: Node, _after: Node) -> None:
        own = f"{self.front}/state"
        if path == own or own.startswith(path + "/"):  # the node may have gone, with one above it
            try:
                self._front_changed(self.number("state", State.CLOSED))
            except Broken as error:
                self.fail(str(error))

    def number(self, name: str, default: int | None = None) -> int:
        """A number that the front end has put into the store. Raises `Broken`."""
        text = self.tree.value(f"{self.front}/{name}")
        if text is None and default is not None:
            return default
        if text is None or not (text.isascii() and text.isdecimal()) or len(text) > 10:
            raise Broken(f"its {name} is {text!r}, and no number")
        return int(text)

    def _front_changed(self, state: int) -> None:
        if state in (State.INITIALISED, State.CONNECTED) and not self.connected:
            try:
                self.connect()
            except (Broken, GrantError) as error:
                self.fail(str(error))
            else:
                self.connected = True
                self.set_state(State.CONNECTED)
        elif state == State.CLOSING:
            self.disconnect()
            self.set_state(State.CLOSING)
        elif state in (State.CLOSED, State.UNKNOWN):
            self.disconnect()
            self.set_state(State.CLOSED)
        elif state == State.INITIALISING and self.state in (State.CLOSED, State.CLOSING):
            self.broken = ""
            self.set_state(State.INIT_WAIT)

    def set_state(self, state: State) -> None:
        """Say in the store where this end is."""
        if state != self.state:
            self.state = state
            self.tree.put(f"{self.back}/state", str(int(state)))

    def say(self, name: str, value: str) -> None:
        """Put a value beside this end's state."""
        self.tree.put(f"{self.back}/{name}", value)

    def fail(self, why: str) -> None:
        """Disconnect a front end that breaks the protocol."""
        self.broken = why
        self.disconnect()
        self.say("error", f"the front end is not listened to: {why}")
        self.set_state(State.CLOSED)

    def distrust(self) -> None:
        """Have the front end share copies only, and never a page that it has from elsewhere."""
        self.tree.put(f"{self.front}/trusted", "0")

    def counters(self) -> list[tuple[str, str]]:
        """Name and value of what is counted."""
        return []

    def close(self) -> None:
        """The device, or its guest, is gone for good."""
        if self._watch in self.tree.watchers:
            self.tree.watchers.remove(self._watch)
        self.disconnect()
        self.set_state(State.CLOSED)
        if self in self.domain.back_ends:
            self.domain.back_ends.remove(self)
        self.tree.remove(self.front)
        self.tree.remove(self.back)

    # -- what is shared -------------------------------------------------------------------------

    def connect(self) -> None:
        """Take what the front end shares. Raises `Broken`."""
        raise NotImplementedError

    def disconnect(self) -> None:
        """Give back everything that is shared."""
        for channel in self._channels:
            channel.close()
        for grant in self._grants:
            self.domain.grants.release(grant)
        self._channels, self._grants = [], []
        self.connected = False

    def share(self, reference: int) -> memoryview:
        """A page that the front end grants for as long as it is connected. Raises `GrantError`."""
        grant = self.domain.grants.acquire(reference, 0, True)
        self._grants.append(grant)
        return self.domain.grants.memory(grant)

    def channel(self, number: int, called: Callable[[], None]) -> Channel:
        """A port that the front end offers. Raises `Broken`."""
        channel = Channel(self.domain.events, number, called)
        self._channels.append(channel)
        return channel


__all__ = ["BackEnd", "Broken", "Channel", "State"]
