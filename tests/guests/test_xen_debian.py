"""Debian's stock kernel as a Xen guest: to user space and power-off, on page tables of its own, nothing rewritten."""

from __future__ import annotations

import pytest

from bt import guests, xen
from bt.image import load
from bt.initramfs import MARKER
from bt.session import Options, Session
from emulator.errors import Unavailable
from emulator.machine import EndKind, Limits
from paravirt.xen.audit import violations
from paravirt.xen.hypervisor import XenHypervisor

MOST_EXITS = 90_000


@pytest.mark.kernel
def test_debians_kernel_boots_to_its_power_off_in_few_exits_and_all_counts_hold() -> None:
    try:
        guest = guests.find("debian-amd64")
    except Unavailable as error:
        pytest.skip(str(error))
    printed = bytearray()
    options = Options(
        mode="xen",
        initrd=guest.initrd.read_bytes(),
        command_line=xen.COMMAND_LINE,
        limits=Limits(host_seconds=300),
    )
    session = Session(load(guest.kernel), options, printed.extend)
    try:
        outcome = session.run()
        driver = session.driver
        assert isinstance(driver, XenHypervisor)
        assert outcome.kind is EndKind.POWER_OFF
        text = printed.decode(errors="replace")
        assert MARKER in text
        assert "Checked W+X mappings: passed, no W+X pages found." in text
        assert driver.exits.total <= MOST_EXITS
        assert violations(driver.domain) == []
        assert not driver.domain.owned.refused
    finally:
        session.close()
