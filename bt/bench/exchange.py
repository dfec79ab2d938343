"""Two of Debian's kernels exchange a file over our network: both as Xen guests on one host, in one process.

Room: `bt/bench`. One sends copies of its busybox by TCP through its stock xen-netfront, the other prints the checksum
of what came. `python -m bt.bench.exchange COPIES` says whether it is right, and what it took.
"""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass

from bt import guest_modules, guests, xen
from bt.image import load
from bt.initramfs import initramfs_of, read_member
from emulator.machine import Limits, Machine, Outcome
from paravirt.io.switch import Switch
from paravirt.xen.audit import violations
from paravirt.xen.board import XEN_PV
from paravirt.xen.host import Host
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.network import NetworkBackEnd
from paravirt.xen.together import Together

MEMORY = 160 << 20
_SPARE = 1 << 20


@dataclass(frozen=True, slots=True)
class Exchange:
    """What came of it."""

    size: int
    """Bytes of the file."""
    right: bool
    """The receiver's checksum is the file's."""
    frames: tuple[int, int]
    """Frames that each guest sent."""
    outcomes: dict[int, Outcome]
    violations: int
    seconds: float
    """Of this process."""


def exchange(copies: int, host_seconds: float = 600) -> Exchange:
    """Have guest 1 send so many copies of its busybox to guest 2. Raises `Unavailable` without guest or module."""
    guest = guests.find("debian-amd64")
    modules = guest_modules.find(guest, guest_modules.NETWORK)
    busybox = read_member(guest.initrd.read_bytes(), "bin/busybox")
    loaded = guest_modules.lines(guest_modules.NETWORK)
    sending = f"(for i in $(busybox seq {copies}); do busybox cat /bin/busybox; done) | busybox nc -l -p 80"
    receiving = "busybox sleep 30 | busybox nc 10.0.0.1 80 | busybox sha256sum"
    scripts = (
        [*loaded, "busybox ifconfig eth0 10.0.0.1 up", sending],
        [*loaded, "busybox ifconfig eth0 10.0.0.2 up", "busybox sleep 1", receiving],
    )
    image, switch = load(guest.kernel), Switch()
    size = Host.machine_size(2 * MEMORY) + _SPARE
    limits = Limits(host_seconds=host_seconds)
    consoles = (bytearray(), bytearray())
    first = Machine(size, consoles[0].extend, platform=XEN_PV, limits=limits)
    second = Machine(size, consoles[1].extend, platform=XEN_PV, limits=limits, memory=first.memory)
    host = Host(first.memory)
    drivers, networks = [], []
    for number, (machine, script) in enumerate(zip((first, second), scripts, strict=True), start=1):
        driver = XenHypervisor(machine, MEMORY >> 12, number=number, host=host)
        archive = initramfs_of(busybox, script, guest_modules.entries(modules))
        driver.load(xen.kernel_of(image, archive, xen.COMMAND_LINE))
        networks.append(NetworkBackEnd(driver.domain, switch, bytes((0, 0x16, 0x3E, 0, 0, number))))
        drivers.append(driver)
    before = time.process_time()
    try:
        together = Together(drivers)
        wrong: list[str] = []
        together.before_end = lambda guest, _outcome: wrong.extend(violations(guest.domain))
        outcomes = together.run()
        seconds = time.process_time() - before
    finally:
        first.close()
        second.close()
    right = hashlib.sha256(busybox * copies).hexdigest().encode() in consoles[1]
    frames = (networks[0].sent, networks[1].sent)
    return Exchange(len(busybox) * copies, right, frames, outcomes, len(wrong), seconds)


def main() -> None:
    """Print what came of it."""
    done = exchange(int(sys.argv[1]) if len(sys.argv) > 1 else 34)
    ends = ", ".join(f"guest {number}: {outcome.kind.value}" for number, outcome in sorted(done.outcomes.items()))
    print(f"{done.size} bytes, checksum {'right' if done.right else 'WRONG'}; {ends}")
    print(f"frames {done.frames[0]} and {done.frames[1]}; {done.violations} wrong counts; {done.seconds:.1f} s CPU")


if __name__ == "__main__":
    main()
