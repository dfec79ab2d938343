"""A driver domain: a second guest whose stock drivers are the back ends of the first one's disks and networks.

Room: `bt`. It is a fetched guest's kernel with its own xen-blkback and xen-netback (`bt.guest_modules`). What it serves
it has itself from back ends of the hypervisor's own. One that ends before the guest is succeeded by a new one of its
number, to which the guest's drivers stay connected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from bt import guest_modules, guests, xen
from bt.devices import station_of
from bt.image import load
from bt.initramfs import initramfs_of, read_member
from emulator.machine import Machine, Outcome
from paravirt.xen.block import BlockBackEnd
from paravirt.xen.board import XEN_PV
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.network import NetworkBackEnd
from paravirt.xen.served import Served, ServedDisk, ServedNetwork, make_server
from paravirt.xen.together import Together

if TYPE_CHECKING:
    from paravirt.io.disk import Disk
    from paravirt.io.switch import Switch

NUMBER: Final = 2
MEMORY: Final = 96 << 20
MOST_STARTS: Final = 8
SERVES: Final = "retrap: the driver domain serves"
"""The line that it prints when all its devices are there."""
_COMMAND_LINE: Final = f"{xen.COMMAND_LINE} quiet"
_DISK_MAJOR: Final = 202
_KEPT: Final = 4096


def script(disks: int, networks: int) -> list[str]:
    """Shell lines of a driver domain with so many devices: its own first, then what serves them."""
    lines: list[str] = []
    if disks:
        last = f"/dev/xvd{chr(ord('a') + disks - 1)}"
        lines += [*guest_modules.lines(guest_modules.DISK), guest_modules.until(f"-b {last}")]
        lines += guest_modules.lines(guest_modules.BLOCK_SERVER)
    if networks:
        lines += guest_modules.lines((*guest_modules.NETWORK, *guest_modules.NETWORK_SERVER))
    for number in range(networks):
        ends = f"eth{number}", f"vif1.{number}"
        lines += [guest_modules.until(f"-e /sys/class/net/{name}") for name in ends]
        lines.append(f"busybox brctl addbr br{number}")
        lines += [f"busybox brctl addif br{number} {name} && busybox ifconfig {name} up" for name in ends]
        lines.append(f"busybox ifconfig br{number} up")
    return [*lines, f"echo {SERVES}", "while true; do busybox sleep 1000; done"]


def _tell(sentence: str) -> None:
    if sys.stderr is not None:
        print(f"retrap: {sentence}", file=sys.stderr, flush=True)


class DriverDomain:
    """The driver domain of one guest, and the run of both."""

    def __init__(
        self,
        name: str,
        guest: XenHypervisor,
        disks: Sequence[Disk],
        switches: Sequence[Switch],
        say: Callable[[str], None] = _tell,
    ) -> None:
        """`name`: of the fetched guest whose kernel it is. `guest` is domain 1, with room beside it on its host.

        Raises `Unavailable` where the guest or one of its modules is not in the cache.
        """
        fetched = guests.find(name)
        names = [*guest_modules.DISK, *guest_modules.BLOCK_SERVER] if disks else []
        names += [*guest_modules.NETWORK, *guest_modules.NETWORK_SERVER] if switches else []
        modules = guest_modules.find(fetched, names)
        busybox = read_member(fetched.initrd.read_bytes(), "bin/busybox")
        archive = initramfs_of(busybox, script(len(disks), len(switches)), guest_modules.entries(modules))
        self._kernel = xen.kernel_of(load(fetched.kernel), archive, _COMMAND_LINE)
        self._guest, self._disks, self._switches, self._say = guest, disks, switches, say
        self.printed = bytearray()
        """The last of what it has printed."""
        number = guest.domain.number
        self.devices: list[Served] = [
            ServedDisk(number, NUMBER, (_DISK_MAJOR, index * 16), index, disk.writable)
            for index, disk in enumerate(disks)
        ]
        self.devices += [ServedNetwork(number, NUMBER, station_of(index), index) for index in range(len(switches))]
        self._machines: list[Machine] = []
        self.starts = 0
        self.together = Together([guest])
        self.together.servants = {NUMBER}
        self.together.after_end = self._ended
        self.running = self._start()
        self.together.guests.append(self.running)
        for device in self.devices:
            device.tell_guest(guest.host.store)

    def _print(self, data: bytes) -> None:
        self.printed += data
        del self.printed[:-_KEPT]

    def _start(self) -> XenHypervisor:
        """A driver domain that is about to run: its own devices, and those that it is to serve."""
        self.starts += 1
        first, host = self._guest.machine, self._guest.host
        machine = Machine(first.memory.size, self._print, platform=XEN_PV, memory=first.memory)
        self._machines.append(machine)
        server = XenHypervisor(machine, MEMORY >> 12, number=NUMBER, host=host)
        make_server(host.store, NUMBER)
        server.load(self._kernel)
        # The guest's pages go through this domain's own front ends, which must copy them: they cannot be granted on.
        for index, disk in enumerate(self._disks):
            BlockBackEnd(server.domain, disk, index).distrust()
        for index, switch in enumerate(self._switches):
            NetworkBackEnd(server.domain, switch, station_of(index, True), index).distrust()
        for device in self.devices:
            device.tell_server(host.store)
        return server

    def _ended(self, guest: XenHypervisor, outcome: Outcome) -> None:
        if guest is not self.running or self._guest not in self.together.guests:
            return
        why = outcome.kind.value + (f": {outcome.detail}" if outcome.detail else "")
        guest.machine.close()
        self._machines.remove(guest.machine)
        if self.starts == MOST_STARTS:
            self._say(f"the driver domain has ended ({why}) for the {MOST_STARTS}th time, and is not started again")
            return
        self._say(f"the driver domain has ended ({why}); another one is started")
        self.running = self._start()
        self.together.add(self.running)

    def kill(self, why: str) -> None:
        """End the driver domain that runs now, whatever it is doing."""
        self.together.kill(self.running, why)

    def run(self) -> Outcome:
        """Run both to the guest's end, which is the outcome."""
        return self.together.run()[self._guest.domain.number]

    def counters(self) -> list[tuple[str, str]]:
        """Name and value of what is counted."""
        return [("driver domain", f"started {self.starts} times, {self.together.turns} turns of both")]

    def close(self) -> None:
        """Release its engines."""
        for machine in self._machines:
            machine.close()
        self._machines.clear()


__all__ = ["MEMORY", "SERVES", "DriverDomain", "script"]
