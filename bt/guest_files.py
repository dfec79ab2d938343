"""The initial file system of a fetched guest that is given devices or shell lines: its busybox, and modules for them.

Room: guests to try things on. Disks are there as /dev/xvda and so on, and networks as eth0, by the time that lines are
run; a network that leads to the host is set up as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from bt import guest_modules, guests
from bt.initramfs import initramfs_of, read_member
from emulator.errors import BadImage

if TYPE_CHECKING:
    from bt.devices import Devices

_USER: Final = (
    "busybox ifconfig eth{0} 10.0.2.15 netmask 255.255.255.0 up",
    "busybox route add default gw 10.0.2.2 dev eth{0}",
)
_NAMES: Final = "busybox mkdir -p /etc; echo nameserver 10.0.2.3 > /etc/resolv.conf"


def device_lines(devices: Devices) -> list[str]:
    """Shell lines that load the drivers of devices, wait for them, and set networks up."""
    lines: list[str] = []
    if devices.disks:
        lines += guest_modules.lines(guest_modules.BLOCK)
        lines.append(guest_modules.until(f"-b /dev/xvd{chr(ord('a') + len(devices.disks) - 1)}"))
    if devices.networks:
        lines += guest_modules.lines(guest_modules.NETWORK)
    for index, network in enumerate(devices.networks):
        lines.append(guest_modules.until(f"-e /sys/class/net/eth{index}"))
        if network == "user":
            lines += [line.format(index) for line in _USER] + [_NAMES]
        else:
            lines.append(f"busybox ifconfig eth{index} up")
    return lines


def with_devices(name: str, archive: bytes, devices: Devices, lines: Sequence[str] = ()) -> bytes:
    """A guest's initial file system, made anew with what its devices want, its own lines, and more.

    `archive` is the one that it has. Raises `Unavailable` where a module is not in the cache.
    """
    try:
        busybox = read_member(archive, "bin/busybox")
    except KeyError:
        raise BadImage(f"the initial file system of guest {name} has no busybox; fetch it anew") from None
    guest = guests.find(name)
    own = json.loads((guest.directory / "guest.json").read_text()).get("lines", [])
    names = [*(guest_modules.BLOCK if devices.disks else ()), *(guest_modules.NETWORK if devices.networks else ())]
    modules = guest_modules.find(guest, names)
    script = [*device_lines(devices), *(str(line) for line in own), *lines]
    return initramfs_of(busybox, script, guest_modules.entries(modules) if modules else ())


__all__ = ["device_lines", "with_devices"]
