"""Event channels: what becomes pending, what is told, and what a port may be."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest

from paravirt.xen.events import EventChannels, PortKind
from paravirt.xen.public import PORTS, Errno, Shared, VcpuInfo, XenError


def channels(view: memoryview | None = None, at: int = 0, domain: int = 1) -> EventChannels:
    return EventChannels(view if view is not None else memoryview(bytearray(8192)), at, domain)


def refused(errno: Errno) -> AbstractContextManager[Any]:
    return pytest.raises(XenError, match=errno.name)


def test_an_event_sets_pending_selector_and_upcall() -> None:
    one = channels()
    port = one.bind_ipi(0)
    told: list[int] = []
    one.on_event = lambda: told.append(1)
    one.send(port)
    assert one.is_pending(port)
    assert one.view[VcpuInfo.UPCALL_PENDING] == 1
    assert one.words[VcpuInfo.SELECTOR >> 3] == 1
    assert told == [1]


def test_a_masked_event_is_pending_and_told_when_it_is_unmasked() -> None:
    one = channels()
    port = one.bind_ipi(0)
    one.words[Shared.MASK >> 3] = 1 << port
    one.send(port)
    assert one.is_pending(port)
    assert one.view[VcpuInfo.UPCALL_PENDING] == 0
    one.unmask(port)
    assert one.view[VcpuInfo.UPCALL_PENDING] == 1


def test_an_event_that_is_pending_already_is_not_told_again() -> None:
    one = channels()
    port = one.bind_ipi(0)
    one.send(port)
    one.view[VcpuInfo.UPCALL_PENDING] = 0
    one.send(port)
    assert one.view[VcpuInfo.UPCALL_PENDING] == 0
    assert one.delivered == 1


def test_two_domains_tell_each_other() -> None:
    memory = memoryview(bytearray(8192))
    one, two = channels(memory, 0, 1), channels(memory, 4096, 2)
    offered = two.allocate_unbound(1)
    bound = one.bind_interdomain(two, offered)
    assert two.ports[offered].kind is PortKind.INTERDOMAIN
    one.send(bound)
    assert two.is_pending(offered)
    two.send(offered)
    assert one.is_pending(bound)
    one.close(bound)
    assert two.ports[offered].kind is PortKind.UNBOUND
    assert not one.is_pending(bound)
    two.send(offered)  # nobody is told


def test_a_port_is_only_for_the_domain_that_it_is_offered_to() -> None:
    memory = memoryview(bytearray(8192))
    one, two = channels(memory, 0, 1), channels(memory, 4096, 2)
    with refused(Errno.EINVAL):
        one.bind_interdomain(two, two.allocate_unbound(7))
    with refused(Errno.EINVAL):
        one.bind_interdomain(two, 99)
    with refused(Errno.EINVAL):
        one.bind_interdomain(two, two.bind_ipi(0))


def test_ports_run_out() -> None:
    one = channels()
    for _ in range(PORTS - 1):
        one.allocate_unbound(2)
    with refused(Errno.ENOSPC):
        one.allocate_unbound(2)
    one.reset()
    assert one.allocate_unbound(2) == 1


def test_a_virtual_interrupt_has_one_port() -> None:
    one = channels()
    port = one.bind_virq(0, 0)
    with refused(Errno.EEXIST):
        one.bind_virq(0, 0)
    with refused(Errno.EINVAL):
        one.bind_virq(24, 0)
    with refused(Errno.ENOENT):
        one.bind_virq(1, 3)
    one.raise_virq(0)
    assert one.is_pending(port)
    one.raise_virq(1)  # nobody has bound it


@pytest.mark.parametrize("call", ["send", "close", "unmask"])
@pytest.mark.parametrize("port", [0, 5, PORTS, 1 << 31])
def test_a_port_that_is_not_in_use_is_refused(call: str, port: int) -> None:
    with refused(Errno.EINVAL):
        getattr(channels(), call)(port)
