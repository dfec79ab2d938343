"""Debian's stock front ends: ext4 is written, remounted and compared, here and there; a file comes from the host."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bt import guest_modules, guests, xen
from bt.devices import Devices, DiskFile
from bt.guest_files import with_devices
from bt.guest_modules import BLOCK, NETWORK
from bt.image import load
from bt.initramfs import read_member
from bt.session import Options, Session
from emulator.errors import Unavailable
from emulator.machine import EndKind, Limits
from paravirt.xen.audit import violations
from paravirt.xen.balloon import set_target
from paravirt.xen.block import BlockBackEnd
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.network import NetworkBackEnd

SIZE = 16 << 20
TARGET = 192 << 8
"""Pages of a guest that was built with 256 MiB."""
SCRIPT = (
    "busybox mkdir /mnt",
    "busybox mount -t ext4 /dev/xvda /mnt && echo mounted",
    "busybox cat /bin/busybox /bin/busybox > /mnt/copy",
    "busybox sha256sum < /mnt/copy",
    "busybox sync",
    "busybox umount /mnt && echo 3 > /proc/sys/vm/drop_caches",
    "busybox mount -t ext4 /dev/xvda /mnt && busybox sha256sum < /mnt/copy",
    "busybox umount /mnt && echo unmounted",
    "busybox ping -c 3 -s 1400 10.0.2.2",
)
FETCH = "busybox wget -q -O - http://10.0.2.2:{}/ | busybox sha256sum"


@pytest.mark.kernel
def test_ext4_written_by_the_stock_driver_is_the_same_after_a_remount_and_on_the_host(
    tmp_path: Path, serve: Callable[[bytes], int]
) -> None:
    tools = [shutil.which(name) or f"/sbin/{name}" for name in ("mke2fs", "e2fsck", "debugfs")]
    if not all(Path(tool).exists() for tool in tools):
        pytest.skip("no e2fsprogs on this host (scripts/system-packages)")
    make, check, debug = tools
    try:
        guest = guests.find("debian-amd64")
        guest_modules.find(guest, (*BLOCK, *NETWORK))
    except Unavailable as error:
        pytest.skip(str(error))
    archive = guest.initrd.read_bytes()
    busybox = read_member(archive, "bin/busybox")
    file = tmp_path / "disk"
    file.write_bytes(bytes(SIZE))
    subprocess.run([make, "-q", "-t", "ext4", str(file)], check=True, timeout=30)
    printed = bytearray()
    devices = Devices((DiskFile(file),), ("user",))
    fetched = busybox * 3
    options = Options(
        mode="xen",
        initrd=with_devices(guest.name, archive, devices, [*SCRIPT, FETCH.format(serve(fetched))]),
        command_line=xen.COMMAND_LINE,
        limits=Limits(guest_seconds=60, host_seconds=600),
        devices=devices,
    )
    session = Session(load(guest.kernel), options, printed.extend)
    try:
        assert isinstance(session.driver, XenHypervisor)
        assert session.attached is not None
        domain = session.driver.domain
        disk = session.attached.disks[0]
        block, network = domain.back_ends
        assert isinstance(block, BlockBackEnd)
        assert isinstance(network, NetworkBackEnd)
        set_target(domain, TARGET)
        assert session.run().kind is EndKind.POWER_OFF
        assert domain.pages == TARGET  # the guest's balloon has given back the rest
        assert violations(domain) == []
    finally:
        session.close()
    text = printed.decode(errors="replace")
    wanted = hashlib.sha256(busybox * 2).hexdigest()
    assert text.count(wanted) == 2, text[-2000:]
    assert "unmounted" in text
    assert disk.flushes >= 2
    assert block.requests[6]  # lists of segments in pages of their own
    assert not block.refused
    assert "3 packets transmitted, 3 packets received" in text, text[-2000:]
    assert hashlib.sha256(fetched).hexdigest() in text
    assert network.long > 20  # sent whole, and cut by nobody
    assert network.received < len(fetched) // 1460 // 4
    assert not network.refused
    assert subprocess.run([check, "-f", "-n", str(file)], capture_output=True, timeout=30).returncode == 0
    copy = tmp_path / "copy"
    subprocess.run([debug, "-R", f"dump /copy {copy}", str(file)], check=True, capture_output=True, timeout=30)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == wanted
