"""Disks and networks that a guest is given on the command line: what is asked for, opened, and looked after in the run.

Room: `bt`. Back ends are `paravirt.xen`'s, disks and networks `paravirt.io`'s; who serves them, the hypervisor itself
or a second guest (`bt.driver_domain`), is decided here.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emulator.errors import UsageError

if TYPE_CHECKING:
    from bt.driver_domain import DriverDomain
    from emulator.machine import Machine, Outcome
    from paravirt.io.disk import FileDisk
    from paravirt.io.outside import Outside
    from paravirt.io.switch import Switch
    from paravirt.xen.hypervisor import XenHypervisor

MOST_DISKS: Final = 16
MOST_NETWORKS: Final = 8
USER: Final = "user"
_CABLES: Final = ("socket", "listen", "connect")
_FORMS: Final = "user, socket:ADDRESS, listen:ADDRESS or connect:ADDRESS"


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file that a guest has as a disk."""

    path: Path
    writable: bool = True

    @classmethod
    def of(cls, text: str) -> DiskFile:
        """From FILE or FILE,ro. Raises `UsageError` where there is no name."""
        name, comma, how = text.rpartition(",")
        if not (comma and how in ("ro", "rw")):
            name, how = text, "rw"
        if not name:
            raise UsageError("--disk needs a file; name one, as FILE or FILE,ro")
        return cls(Path(name), how == "rw")


@dataclass(frozen=True, slots=True)
class Devices:
    """What a guest is given."""

    disks: tuple[DiskFile, ...] = ()
    networks: tuple[str, ...] = ()
    """Each `user`, or `socket:`, `listen:` or `connect:` and an address."""
    driver_domain: str = ""
    """The fetched guest whose drivers are their back ends; the hypervisor's own without."""

    def __bool__(self) -> bool:
        return bool(self.disks or self.networks)

    def check(self) -> None:
        """Raise `UsageError` for what makes no sense."""
        from paravirt.io.stream import address_of

        if len(self.disks) > MOST_DISKS or len(self.networks) > MOST_NETWORKS:
            raise UsageError(f"a guest has at most {MOST_DISKS} disks and {MOST_NETWORKS} networks; give fewer")
        for network in self.networks:
            kind, _, address = network.partition(":")
            if kind in _CABLES and address:
                address_of(address)
            elif network != USER:
                raise UsageError(f"there is no network called {network!r}; give {_FORMS}")
        if self.driver_domain and not self:
            raise UsageError("a driver domain serves disks and networks; give --disk or --net as well")


def station_of(index: int, server: bool = False) -> bytes:
    """The Ethernet address of network `index`: a guest's, or that of the driver domain that serves it."""
    return bytes((0, 0x16, 0x3E, 0xDD if server else 0, 0, index + 1))


def _network(text: str, switch: Switch) -> Outside:
    """What a network leads to. Raises `UsageError`."""
    from paravirt.io.stream import Cable, address_of
    from paravirt.io.user import UserNetwork

    kind, _, address = text.partition(":")
    if kind == USER:
        return UserNetwork(switch)
    make = {"socket": Cable.join, "listen": Cable.listen, "connect": Cable.connect}[kind]
    return make(switch, address_of(address))


class Attached:
    """The devices of one session."""

    def __init__(self, devices: Devices, driver: XenHypervisor, machine: Machine) -> None:
        """Open all of them, and tell the guest. Raises `UsageError`, `Unavailable`."""
        from paravirt.io.disk import FileDisk
        from paravirt.io.switch import Switch

        self.driver, self.machine = driver, machine
        self.disks: list[FileDisk] = []
        self.switches: list[Switch] = []
        self.outside: list[Outside] = []
        self.server: DriverDomain | None = None
        self._asked: Callable[[float], bytes | None] | None = None
        try:
            for disk in devices.disks:
                self.disks.append(FileDisk(disk.path, disk.writable))
            for network in devices.networks:
                self.switches.append(Switch())
                self.outside.append(_network(network, self.switches[-1]))
            if devices.driver_domain:
                from bt.driver_domain import DriverDomain

                self.server = DriverDomain(devices.driver_domain, driver, self.disks, self.switches)
            else:
                self._serve()
        except BaseException:
            self.close()
            raise

    def _serve(self) -> None:
        from paravirt.xen.block import BlockBackEnd
        from paravirt.xen.network import NetworkBackEnd

        for index, disk in enumerate(self.disks):
            BlockBackEnd(self.driver.domain, disk, index)
        for index, switch in enumerate(self.switches):
            NetworkBackEnd(self.driver.domain, switch, station_of(index), index)

    def run(self) -> Outcome:
        """Run the guest, and its driver domain with it, to the guest's end."""
        if self.outside:
            self._asked, self.machine.poll_input = self.machine.poll_input, self._poll
        if self.server is not None:
            return self.server.run()
        return self.driver.run()

    def counters(self) -> list[tuple[str, str]]:
        """Name and value of what is counted."""
        lines = [line for back_end in self.driver.domain.back_ends for line in back_end.counters()]
        return lines if self.server is None else lines + self.server.counters()

    def close(self) -> None:
        """Flush and let everything go."""
        if self.server is not None:
            self.server.close()
        for outside in self.outside:
            outside.close()
        for disk in self.disks:
            disk.close()
        self.outside, self.disks = [], []

    # -- what comes from outside ----------------------------------------------------------------

    def _poll(self, seconds: float) -> bytes | None:
        """As `Machine.poll_input`: what is typed, and besides it frames from outside, for which it waits as well."""
        self._look()
        if not seconds or not self.machine.real_time:
            return self._typed(seconds)
        waited = [outside.descriptor for outside in self.outside if outside.busy and outside.descriptor >= 0]
        select.select(waited, [], [], seconds)
        self._look()
        return self._typed(0)

    def _look(self) -> None:
        for outside in self.outside:
            outside.poll()
        self.machine.real_time = any(outside.busy for outside in self.outside)

    def _typed(self, seconds: float) -> bytes | None:
        data = None if self._asked is None else self._asked(seconds)
        if data is not None:
            return data
        self._asked = None
        if self.machine.real_time or not seconds or self.machine.board.next_wake() is not None:
            return b""
        return None  # nothing can come any more


__all__ = ["Attached", "Devices", "DiskFile", "station_of"]
