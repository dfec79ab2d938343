"""Modules come with a guest or later, and an initial file system is made with those that its devices want."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bt import guest_modules, guests
from bt.debian import Package
from bt.devices import Devices, DiskFile
from bt.driver_domain import script
from bt.guest_files import device_lines, with_devices
from bt.initramfs import read_member
from emulator.errors import BadImage, Unavailable, UsageError


class FakeApt:
    """The distribution's client without a network."""

    version = "1.0"

    def __init__(self, architecture: str, scratch: Path) -> None:
        assert architecture == "amd64"
        self.scratch = scratch

    def dependency(self, package: str, pattern: str) -> str:
        return package.replace("image-", "image-6.1.0-1-")

    def download(self, package: str) -> Package:
        return Package(package, self.version, self.scratch / package)


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> guests.Guest:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in (guests, guest_modules):
        monkeypatch.setattr(module, "Apt", FakeApt)
    monkeypatch.setattr(guests, "extract", lambda package, pattern: (pattern, b"a busybox or a kernel"))
    monkeypatch.setattr(
        guest_modules, "extract_all", lambda package, patterns: [(name, name.encode()) for name in patterns]
    )
    return guests.get("debian-amd64", ["echo its own line"])


def test_modules_come_with_a_guest_and_may_be_added_to_one_without(guest: guests.Guest) -> None:
    assert set(guest_modules.find(guest, guest_modules.ALL)) == set(guest_modules.ALL)
    for name in guest_modules.ALL:
        (guest.directory / "modules" / f"{name}.ko").unlink()
    (guest.directory / "modules").rmdir()
    with pytest.raises(Unavailable, match=r"module crc16 .* `retrap guests get debian-amd64` fetches"):
        guest_modules.find(guest, guest_modules.ALL)
    guest_modules.get(guest, guest_modules.ALL)
    assert set(guest_modules.find(guest, guest_modules.ALL)) == set(guest_modules.ALL)


def test_a_guest_that_never_has_drivers_for_xen_says_which_has(guest: guests.Guest) -> None:
    with pytest.raises(Unavailable, match=r"guest debian-arm64 comes without drivers .*; use debian-amd64$"):
        guest_modules.find(replace(guest, name="debian-arm64", directory=guest.directory / "none"), ["xen-netfront"])


def test_modules_of_another_kernel_are_not_added(guest: guests.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeApt, "version", "2.0")
    with pytest.raises(Unavailable, match=r"is 2\.0 now, and the guest's is 1\.0; fetch the guest anew"):
        guest_modules.get(guest, guest_modules.NETWORK)


def test_an_initial_file_system_has_the_modules_that_devices_want_and_the_lines_in_order(guest: guests.Guest) -> None:
    archive = guest.initrd.read_bytes()
    devices = Devices((DiskFile(Path("a")), DiskFile(Path("b"))), ("user", "connect:./x"))
    made = with_devices(guest.name, archive, devices, ["echo last"])
    text = read_member(made, "init").decode()
    places = [text.index(part) for part in ("ext4.ko", "/dev/xvdb", "10.0.2.15", "ifconfig eth1 up", "its own", "last")]
    assert places == sorted(places)
    assert read_member(made, "modules/xen-netfront.ko")
    with pytest.raises(KeyError):
        read_member(with_devices(guest.name, archive, Devices((DiskFile(Path("a")),))), "modules/xen-netfront.ko")
    assert device_lines(Devices()) == []
    with pytest.raises(BadImage, match="no busybox"):
        with_devices(guest.name, b"", devices)


def test_a_driver_domain_has_its_own_devices_before_it_serves_them() -> None:
    lines = script(2, 1)
    places = [
        next(number for number, line in enumerate(lines) if part in line)
        for part in ("xen-blkfront", "/dev/xvdb", "xen-blkback", "xen-netback", "vif1.0", "addbr br0", "serves")
    ]
    assert places == sorted(places)
    assert not any("blk" in line for line in script(0, 1))


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        (Devices(networks=("usr",)), "no network called 'usr'"),
        (Devices(networks=("listen:",)), "no network called 'listen:'"),
        (Devices(networks=("connect:nowhere",)), "HOST:PORT"),
        (Devices(driver_domain="debian-amd64"), "give --disk or --net"),
        (Devices(tuple(DiskFile(Path("x")) for _ in range(17))), "at most 16"),
    ],
)
def test_devices_that_cannot_be_are_refused(devices: Devices, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        devices.check()


def test_a_disk_is_named_by_its_file_and_how_it_is_used() -> None:
    assert DiskFile.of("a,ro") == DiskFile(Path("a"), False)
    assert DiskFile.of("a,b") == DiskFile(Path("a,b"))
    assert DiskFile.of("a,rw") == DiskFile(Path("a"))
    for nothing in ("", ",ro"):
        with pytest.raises(UsageError, match="--disk needs a file"):
            DiskFile.of(nothing)
