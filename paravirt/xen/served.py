"""Devices of a guest whose back end is a driver of another guest: a driver domain, and what the toolstack tells it.

Room: `paravirt/xen`. The hypervisor only puts names into the store, and is no party to what goes over the rings. A
driver domain that ends is succeeded by one of the same number: what guests granted and offered it is its successor's,
and the shared rings say which requests are not answered yet, so that front ends see nothing but a delay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from paravirt.xen.announce import FIRST_DISK, announce_back, announce_front, back_path, disk_name
from paravirt.xen.backend import State
from paravirt.xen.xenstore import Permissions, Tree


class Served(Protocol):
    """A device of one guest whose back end is in another domain."""

    def tell_server(self, tree: Tree) -> None:
        """Put the back end's node into the store: of a domain that is there, or is about to be."""
        ...

    def tell_guest(self, tree: Tree) -> None:
        """Put the front end's node there."""
        ...

    def state(self, tree: Tree) -> State:
        """What the back end says of itself; UNKNOWN where nobody is there to say it."""
        ...


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """A disk."""

    guest: int
    server: int
    device: tuple[int, int]
    """Major and minor number, in the driver domain, of the block device that it serves."""
    index: int = 0
    """0 for xvda, 1 for xvdb: as the guest has it."""
    writable: bool = True

    def tell_server(self, tree: Tree) -> None:
        """As `Served.tell_server`."""
        major, minor = self.device
        values = {
            "mode": "w" if self.writable else "r",
            "dev": disk_name(self.index),
            "removable": "0",
            "type": "phy",
            "physical-device": f"{major:x}:{minor:x}",
        }
        announce_back(tree, "vbd", self._number, self.guest, self.server, values)

    def tell_guest(self, tree: Tree) -> None:
        """As `Served.tell_guest`."""
        values = {"virtual-device": str(self._number), "device-type": "disk"}
        announce_front(tree, "vbd", self._number, self.guest, self.server, values)

    def state(self, tree: Tree) -> State:
        """As `Served.state`."""
        return _state(tree, back_path("vbd", self._number, self.guest, self.server))

    @property
    def _number(self) -> int:
        return FIRST_DISK + self.index * 16


@dataclass(frozen=True, slots=True)
class ServedNetwork:
    """A network interface."""

    guest: int
    server: int
    station: bytes
    """Six bytes of Ethernet address."""
    index: int = 0

    def tell_server(self, tree: Tree) -> None:
        """As `Served.tell_server`."""
        # Drivers want the name of a script that would give the interface its place, and would say so by this status.
        values = {"handle": str(self.index), "mac": self.station.hex(":"), "script": "none"}
        values["hotplug-status"] = "connected"
        announce_back(tree, "vif", self.index, self.guest, self.server, values)

    def tell_guest(self, tree: Tree) -> None:
        """As `Served.tell_guest`."""
        values = {"handle": str(self.index), "mac": self.station.hex(":")}
        announce_front(tree, "vif", self.index, self.guest, self.server, values)

    def state(self, tree: Tree) -> State:
        """As `Served.state`."""
        return _state(tree, back_path("vif", self.index, self.guest, self.server))


def _state(tree: Tree, path: str) -> State:
    text = tree.value(f"{path}/state") or ""
    try:
        return State(int(text)) if text.isascii() and text.isdecimal() else State.UNKNOWN
    except ValueError:
        return State.UNKNOWN


def make_server(tree: Tree, number: int) -> None:
    """Domain `number` may have back ends: its drivers look below this name."""
    tree.put(f"/local/domain/{number}/backend", "", Permissions((("n", number),)))


__all__ = ["Served", "ServedDisk", "ServedNetwork", "make_server"]
