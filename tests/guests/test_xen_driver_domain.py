"""A download to a disk, both served by another guest's stock drivers, survives the end of that guest in its midst."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bt import guest_modules, guests, xen
from bt.devices import Devices, DiskFile
from bt.driver_domain import NUMBER, SERVES
from bt.guest_files import with_devices
from bt.image import load
from bt.initramfs import read_member
from bt.session import Options, Session
from emulator.errors import Unavailable
from emulator.machine import EndKind, Limits, Outcome
from paravirt.xen.audit import violations
from paravirt.xen.hypervisor import XenHypervisor

SIZE = 16 << 20
FETCHED = 2 << 20
WRITTEN = 768 << 10
"""After so many bytes written to the disk's file the driver domain is killed."""


@pytest.mark.kernel
@pytest.mark.timeout(600)
def test_a_download_to_a_disk_survives_the_end_of_the_domain_that_serves_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[bytes], int]
) -> None:
    tools = [shutil.which(name) or f"/sbin/{name}" for name in ("mke2fs", "e2fsck", "debugfs")]
    if not all(Path(tool).exists() for tool in tools):
        pytest.skip("no e2fsprogs on this host (scripts/system-packages)")
    make, check, debug = tools
    try:
        guest = guests.find("debian-amd64")
        guest_modules.find(guest, guest_modules.ALL)
    except Unavailable as error:
        pytest.skip(str(error))
    archive = guest.initrd.read_bytes()
    data = (read_member(archive, "bin/busybox") * 2)[:FETCHED]
    wanted = hashlib.sha256(data).hexdigest()
    file = tmp_path / "disk"
    file.write_bytes(bytes(SIZE))
    subprocess.run([make, "-q", "-t", "ext4", str(file)], check=True, timeout=30)
    devices = Devices((DiskFile(file),), ("user",), guest.name)
    printed = bytearray()
    written = 0
    wrong: list[str] = []
    ended: list[tuple[int, EndKind]] = []
    script = [
        "busybox mkdir /mnt && busybox mount /dev/xvda /mnt",
        f"busybox wget -q -O - http://10.0.2.2:{serve(data)}/ | "
        "busybox dd of=/mnt/copy bs=128k iflag=fullblock oflag=direct",
        "busybox umount /mnt && echo unmounted",
    ]
    options = Options(
        mode=xen.MODE,
        memory=96 << 20,
        initrd=with_devices(guest.name, archive, devices, script),
        command_line=f"{xen.COMMAND_LINE} quiet",
        limits=Limits(guest_seconds=120, host_seconds=900),
        devices=devices,
    )
    session = Session(load(guest.kernel), options, printed.extend)
    try:
        attached = session.attached
        assert attached is not None
        assert isinstance(session.driver, XenHypervisor)
        server, disk, domain = attached.server, attached.disks[0], session.driver.domain
        assert server is not None
        first, write = server.running, disk.write

        def counted(sector: int, sectors: bytes) -> None:
            nonlocal written
            write(sector, sectors)
            if written < WRITTEN <= written + len(sectors):
                server.kill("killed in its work")
            written += len(sectors)

        def before_end(which: XenHypervisor, outcome: Outcome) -> None:
            ended.append((which.domain.number, outcome.kind))
            wrong.extend(violations(which.domain))

        monkeypatch.setattr(disk, "write", counted)
        server.together.before_end = before_end
        after_end = server.together.after_end

        def after(which: XenHypervisor, outcome: Outcome) -> None:
            if which is first:  # nothing of it is left in the guest
                wrong.extend(violations(domain))
            after_end(which, outcome)

        server.together.after_end = after
        assert session.run().kind is EndKind.POWER_OFF
    finally:
        session.close()
    text = printed.decode(errors="replace")
    assert ended == [(NUMBER, EndKind.CRASHED), (1, EndKind.POWER_OFF), (NUMBER, EndKind.STOPPED)], text[-2000:]
    assert wrong == []
    assert SERVES in server.printed.decode(errors="replace")
    assert server.starts == 2
    assert written >= FETCHED
    assert "unmounted" in text
    assert subprocess.run([check, "-f", "-n", str(file)], capture_output=True, timeout=30).returncode == 0
    copy = tmp_path / "copy"
    subprocess.run([debug, "-R", f"dump /copy {copy}", str(file)], check=True, capture_output=True, timeout=30)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == wanted
