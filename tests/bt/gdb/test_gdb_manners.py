"""What gdb is told of a guest: its registers by name, nothing that a kernel has not, and every word of `monitor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from elftools.elf.elffile import ELFFile

from bt import guests
from bt.gdb.symbol_file import write_symbol_file
from bt.image import load
from emulator.errors import RetrapError, Unavailable
from tests.bt.gdb.debugged import FOLDERS, SAMPLE, Opened, opened

SYSTEM = {
    "x86_64": {"cr0", "cr2", "cr3", "cr4", "efer", "idt_base", "gdt_base", "kernel_gs_base"},
    "i386": {"cr0", "cr2", "cr3", "cr4", "idt_base", "gdt_base"},
    "aarch64": {"ttbr0_el1", "ttbr1_el1", "sctlr_el1", "vbar_el1", "esr_el1", "far_el1", "elr_el1", "mair_el1"},
    "armv7": {"ttbr0", "ttbr1", "sctlr", "dacr", "vbar", "dfsr", "dfar"},
    "mips32": {"cp0_entry_hi", "cp0_index", "cp0_epc", "cp0_ebase"},
}
"""Some of what a kernel's author looks for, of each instruction set."""


@pytest.fixture(scope="module", params=FOLDERS)
def one(request: pytest.FixtureRequest) -> Iterator[Opened]:
    made = Opened(image=SAMPLE.parents[1] / request.param / "portable.elf")
    yield made
    made.close()


def folder(one: Opened) -> str:
    return Path(one.session.image.path).parent.name


def test_the_description_names_system_registers_and_each_can_be_asked_for(one: Opened) -> None:
    answer = one.server.answer(b"qXfer:features:read:target.xml:0,ffff")
    assert answer is not None
    features = {feature.attrib["name"]: list(feature.iter("reg")) for feature in ElementTree.fromstring(answer[1:])[1:]}
    registers = [register for some in features.values() for register in some]
    names = [register.attrib["name"] for register in registers]
    assert len(names) == len(set(names))
    assert {register.attrib["name"] for register in features["retrap.system"]} >= SYSTEM[folder(one)]
    for register in registers:
        number = int(register.get("regnum", "-1"))
        value = one.server.answer(b"p%x" % number)
        assert value is not None
        assert len(value) == int(register.attrib["bitsize"]) // 4, register.attrib


@pytest.mark.parametrize("name", FOLDERS)
def test_registers_are_those_that_the_guest_has_at_full_privilege(name: str) -> None:
    seen = []
    for mode in ("inline", "native"):
        with opened(mode, image=SAMPLE.parents[1] / name / "portable.elf") as guest:
            guest.debugger.stops.set_breakpoint(guest.symbol("catch_fault"))
            for _ in range(6):
                guest.debugger.go()
            processor = guest.target.processor(guest.session.driver)
            seen.append({row.name: row.read(processor) & (1 << row.bits) - 1 for row in guest.target.registers})
    if name == "mips32":
        del seen[0]["cp0_index"], seen[1]["cp0_index"]  # which the engine does not show
    assert seen[0] == seen[1]
    assert any(seen[0][register] for register in SYSTEM[name] & set(seen[0]))


def test_what_a_kernel_has_not_is_not_pretended(one: Opened) -> None:
    supported = one.server.answer(b"qSupported:multiprocess+;swbreak+")
    assert supported is not None
    for word in (b"auxv", b"vFile", b"libraries", b"memory-map", b"siginfo", b"multiprocess", b"QNonStop"):
        assert word not in supported
    for packet in (
        b"vFile:open:2f,0,0",
        b"vFile:setfs:0",
        b"qXfer:auxv:read::0,1000",
        b"qXfer:libraries:read::0,1000",
        b"qXfer:siginfo:read::0,1000",
        b"QNonStop:1",
        b"vRun;61",
        b"vAttach;1",
        b"!",
    ):
        assert one.server.answer(packet) == b"", packet


def test_the_one_thread_is_the_virtual_cpu(one: Opened) -> None:
    assert one.server.answer(b"qfThreadInfo") == b"m1"
    assert one.server.answer(b"qsThreadInfo") == b"l"
    extra = one.server.answer(b"qThreadExtraInfo,1")
    assert extra is not None
    assert bytes.fromhex(extra.decode()).startswith(b"virtual CPU 0, level ")


def test_every_word_of_monitor_does_what_the_documentation_says(one: Opened, tmp_path: Path) -> None:
    address = one.symbol("catch_fault")
    one.debugger.stops.set_breakpoint(address)
    one.debugger.go()
    monitor, state = one.monitor, one.session.driver.state
    assert "in all" in monitor("exits")
    assert "is guest-physical" in monitor("walk catch_fault")
    assert monitor("tables").count("\n") > 0
    assert f"{address:x}" in monitor("cpu")
    assert monitor("sites catch_fault")
    assert "as it executes" in monitor("text rewritten")
    assert "as it was" in monitor("text original")
    monitor("physical on")
    assert one.debugger.read(one.session.physical(address), 4) == one.session.image.view(address, 4)
    monitor("physical off")
    assert int(monitor("position")) == one.session.machine.engine.progress
    assert monitor("symbols") == "no symbol file was written\n"
    assert str(tmp_path / "exits") in monitor(f"trace on {tmp_path / 'exits'}")
    total = one.session.driver.exits.total  # type: ignore[union-attr]
    while one.session.driver.exits.total == total:  # type: ignore[union-attr]
        one.debugger.go()
    monitor("trace off")
    assert (tmp_path / "exits").read_text()
    for wrong in (
        "walk",
        "walk nowhere",
        "trace on",
        "trace on /no/such/place",
        "physical maybe",
        "text",
        "tables x y",
    ):
        with pytest.raises(RetrapError):
            monitor(wrong)
    assert one.session.driver.state != state, "it has gone on"


@pytest.mark.kernel
def test_a_stock_kernels_own_symbols_become_a_file_for_gdb(tmp_path: Path) -> None:
    try:
        kernel = guests.find("debian-amd64").kernel
    except Unavailable as error:
        pytest.skip(str(error))
    image = load(kernel)
    assert image.section(".symtab") is None, "there are none but in kallsyms"
    write_symbol_file(image, tmp_path / "kernel.sym", 0x100_0000)
    with (tmp_path / "kernel.sym").open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".symtab")
        written = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}
    for name in ("do_timer", "kmem_cache_alloc", "start_kernel"):
        own = image.symbols.address_of(name)
        assert own is not None
        assert written[name] == own + 0x100_0000
