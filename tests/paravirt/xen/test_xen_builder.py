"""The domain builder: what a kernel finds, and files that cannot be built into a domain."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from iced_x86 import Code, Decoder

from emulator.errors import BadImage
from emulator.machine import Machine
from paravirt.xen.board import XEN_PV
from paravirt.xen.builder import Piece, XenKernel, hypercall_page
from paravirt.xen.host import Host, in_order, scattered
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.public import MAGIC, StartInfo

BASE = 0xFFFF_FFFF_8000_0000
CODE = bytes.fromhex("ebfe")
KERNEL = XenKernel(
    "kernel",
    (Piece(0x100000, memoryview(CODE), 0x1000, True), Piece(0x101000, memoryview(b"data"), 0x2000, False)),
    BASE + 0x100000,
    virtual_base=BASE,
)
MEMORY = 16 << 20


def built(kernel: XenKernel, memory: int = MEMORY) -> XenHypervisor:
    machine = Machine(Host.machine_size(memory), lambda _data: None, platform=XEN_PV)
    hypervisor = XenHypervisor(machine, memory >> 12)
    try:
        hypervisor.load(kernel)
    finally:
        machine.close()
    return hypervisor


def info(hypervisor: XenHypervisor, offset: int, size: int = 8) -> int:
    return hypervisor.access.read_word(hypervisor.vcpu.gpr[6] + offset, size)


@pytest.fixture(scope="module")
def small() -> XenHypervisor:
    machine = Machine(Host.machine_size(MEMORY), lambda _data: None, platform=XEN_PV)
    hypervisor = XenHypervisor(machine, MEMORY >> 12)
    hypervisor.load(replace(KERNEL, command_line=b"hello", initrd=b"files" * 1000))
    return hypervisor


def test_the_kernel_finds_its_start_information(small: XenHypervisor) -> None:
    access, at = small.access, small.vcpu.gpr[6]
    assert access.read(at, len(MAGIC)) == MAGIC
    assert info(small, StartInfo.PAGES) == MEMORY >> 12
    assert access.read(at + StartInfo.COMMAND_LINE, 6) == b"hello\0"
    module = info(small, StartInfo.MODULE)
    assert access.read(module, info(small, StartInfo.MODULE_SIZE)) == b"files" * 1000
    root = info(small, StartInfo.TABLES)
    assert access.translate(root) >> 12 == small.vcpu.kernel_root


def test_the_list_of_frames_and_the_table_back_agree(small: XenHypervisor) -> None:
    frames = info(small, StartInfo.FRAME_LIST)
    table = small.host.machine_to_physical
    for number in (0, 1, 77, (MEMORY >> 12) - 1):
        frame = small.access.read_word(frames + number * 8)
        assert table[frame] == number
        assert small.domain.owns(frame)


def test_tables_are_read_only_and_data_cannot_be_executed(small: XenHypervisor) -> None:
    access = small.access

    def entry(address: int) -> int:
        return access.words[access.entry_address(address) >> 3]

    assert entry(BASE + 0x100000) >> 63 == 0
    assert entry(BASE + 0x101000) >> 63 == 1
    first = info(small, StartInfo.TABLES)
    for number in range(info(small, StartInfo.TABLE_COUNT)):
        assert entry(first + number * 4096) & 2 == 0
    assert entry(small.vcpu.gpr[4] - 8) & 2 == 2


def test_the_mapping_ends_at_four_mebibytes_with_room_behind_the_stack(small: XenHypervisor) -> None:
    stack = small.vcpu.gpr[4]
    end = -(-(stack + (512 << 10)) // (4 << 20)) * (4 << 20)
    small.access.translate(end - 4096)
    with pytest.raises(Exception, match="EFAULT"):
        small.access.translate(end)


def test_machine_frames_do_not_lie_in_the_guests_order_by_default() -> None:
    order = scattered(1000)
    assert sorted(order) == list(in_order(1000))
    assert not any(second - first == 1 for first, second in pairwise(order))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"virtual_base": 0x1234_5678_9000}, "virtual base"),
        ({"virtual_base": 1 << 50}, "virtual base"),
        ({"physical_offset": 0x200000}, "physical offset"),
        ({"pieces": ()}, "segments"),
        ({"hypercall_page": BASE + 0x100001}, "hypercall page"),
        ({"hypercall_page": 0x1000}, "hypercall page"),
        ({"command_line": b"x" * 1024}, "command line"),
        ({"initrd": bytes(MEMORY)}, "MiB of memory"),
    ],
)
def test_a_kernel_that_cannot_be_built_is_refused_in_a_sentence(change: dict[str, object], what: str) -> None:
    with pytest.raises(BadImage, match=what):
        built(replace(KERNEL, **change))  # type: ignore[arg-type]


def test_each_entry_of_a_hypercall_page_makes_its_call() -> None:
    page = hypercall_page()
    for number in (0, 1, 22, 23, 24, 127):
        codes = list(Decoder(64, page[number * 32 : number * 32 + 32], ip=0))
        load = next(one for one in codes if one.code == Code.MOV_R32_IMM32)
        assert load.immediate32 == number
        assert any(one.code == Code.SYSCALL for one in codes)
