"""Guests of every instruction set, ported ones and Xen's, at full privilege too, are debugged as x86-64's are."""

from __future__ import annotations

import pytest

from emulator.errors import UsageError
from paravirt.services.breakpoints import StopKind
from tests.bt.gdb.debugged import FOLDERS, SAMPLE, opened


@pytest.mark.parametrize("folder", ["i386", "aarch64", "armv7", "mips32"])
def test_other_instruction_sets_stop_and_step_as_well(folder: str) -> None:
    with opened(image=SAMPLE.parents[1] / folder / "portable.elf") as one:
        address = one.symbol("catch_fault")
        one.debugger.stops.set_breakpoint(address)
        stop = one.debugger.go()
        assert (stop.kind, one.session.driver.pc) == (StopKind.BREAKPOINT, address)
        assert one.debugger.read(address, 4) == one.session.image.view(address, 4)
        shown = one.server.answer(b"g")
        assert shown is not None
        assert len(shown) == sum(row.bits // 4 for row in one.target.registers)
        one.debugger.step()
        assert address < one.session.driver.pc <= address + 8
        if folder != "i386":
            number = next(n for n, row in one.target.by_number.items() if row.name == "pc")
            size = 2 * one.target.word
            assert (
                one.server.answer(b"p%x" % number) == one.session.driver.pc.to_bytes(size // 2, "little").hex().encode()
            )
        again = one.debugger.go()
        assert (again.kind, again.address) == (StopKind.BREAKPOINT, address)


@pytest.mark.parametrize("folder", FOLDERS)
def test_reads_and_accesses_are_watched_and_change_nothing(folder: str) -> None:
    ends = []
    for kinds in ((), (StopKind.READ, StopKind.ACCESS)):
        with opened(image=SAMPLE.parents[1] / folder / "portable.elf") as one:
            debugger = one.debugger
            address, until = one.symbol("checks_done"), one.symbol("catch_fault")
            debugger.stops.set_breakpoint(until)
            debugger.go()
            place = debugger.place(address)
            assert place is not None
            seen = []
            for kind in kinds:
                debugger.stops.watch(place, 4, address, kind)
                before, stop = debugger.read(address, 4), debugger.go()
                while stop.kind is StopKind.BREAKPOINT:
                    before, stop = debugger.read(address, 4), debugger.go()
                seen.append((stop.kind, stop.address))
                if kind is StopKind.READ:
                    # x86 counts up by one instruction, the others have only read so far.
                    assert (debugger.read(address, 4) != before) == (folder in {"x86_64", "i386"})
                debugger.stops.unwatch(4, address, kind)
            assert seen == [(kind, address) for kind in kinds]
            debugger.stops.clear()
            debugger.stops.set_breakpoint(one.symbol("check_paging"))
            assert debugger.go().kind is StopKind.BREAKPOINT
            ends.append((one.session.driver.state, one.session.machine.engine.progress, bytes(one.console)))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("folder", FOLDERS)
def test_at_full_privilege_guests_stop_and_what_is_not_known_is_said(folder: str) -> None:
    with opened("native", image=SAMPLE.parents[1] / folder / "portable.elf") as one:
        address = one.symbol("catch_fault")
        one.debugger.stops.set_breakpoint(address)
        assert one.debugger.go() == (StopKind.BREAKPOINT, address, None)
        assert one.debugger.read(address, 4) == one.session.image.view(address, 4)
        place = f"{address:#x} is guest-physical {one.session.physical(address):#x}"
        if folder in {"x86_64", "i386"}:
            assert place in one.monitor("walk catch_fault")
            assert " rx\n" in one.monitor("tables")
        else:
            assert f"{place} by where the image was placed" in one.monitor("walk catch_fault")
            with pytest.raises(UsageError, match="run it without --virt native"):
                one.monitor("tables")
        assert one.debugger.step().kind is StopKind.STEP


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_ported_guest_stops_steps_and_goes_back_as_others_do(folder: str) -> None:
    with opened("para", reverse=True, image=SAMPLE.parents[1] / folder / "pv.elf") as one:
        debugger, address = one.debugger, one.symbol("catch_fault")
        debugger.stops.set_breakpoint(address)
        stop = debugger.go()
        assert (stop.kind, one.session.driver.pc) == (StopKind.BREAKPOINT, address)
        assert debugger.read(address, 4) == one.session.image.view(address, 4)
        assert f"{address:#x} is guest-physical" in one.monitor("walk catch_fault")
        state = one.session.driver.state
        assert debugger.step().kind is StopKind.STEP
        assert one.session.driver.pc != address
        debugger.step_back()
        assert one.session.driver.state == state


@pytest.mark.parametrize(("folder", "technique"), [("x86_64", "batched"), ("i386", "direct"), ("aarch64", "direct")])
def test_a_guest_whose_own_tables_are_walked_shows_them_as_it_reads_them(folder: str, technique: str) -> None:
    with opened("para", reverse=True, image=SAMPLE.parents[1] / folder / "pv.elf", technique=technique) as one:
        debugger, address = one.debugger, one.symbol("catch_fault")
        debugger.stops.set_breakpoint(address)
        assert debugger.go().kind is StopKind.BREAKPOINT
        assert f"{address:#x} is guest-physical {one.session.physical(address):#x}" in one.monitor("walk catch_fault")
        assert any(line.endswith(" rx") for line in one.monitor("tables").splitlines())
        state, position = one.session.driver.state, debugger.position
        debugger.stops.remove_breakpoint(address)
        assert debugger.step().kind is StopKind.STEP
        debugger.step_back()
        assert (one.session.driver.state, debugger.position) == (state, position)


def test_a_guest_of_xen_stops_and_shows_its_own_tables_and_registers() -> None:
    ends = []
    for stops in (True, False):
        with opened("xen", image=SAMPLE.parents[1] / "xen/hostile.elf") as one:
            debugger, address = one.debugger, one.symbol("check_calls")
            if stops:
                debugger.stops.set_breakpoint(address)
                assert debugger.go() == (StopKind.BREAKPOINT, address, None)
                assert debugger.read(address, 8) == one.session.image.view(address, 8)
                assert f"{address:#x} is guest-physical" in one.monitor("walk check_calls")
                walk = one.target.walk(one.session.driver, address)
                assert len(walk.steps) == 4
                assert "(hypercall)" in one.monitor("exits")
                shown = one.server.answer(b"g")
                assert shown is not None
                assert address.to_bytes(8, "little").hex().encode() in shown
                assert one.server.answer(b"P10=%s" % address.to_bytes(8, "little").hex().encode()) == b"OK"
                before = one.session.machine.engine.registers.gpr[0]
                assert one.server.answer(b"P0=0100000000000000") == b"OK"
                assert one.session.machine.engine.registers.gpr[0] == 1
                assert one.server.answer(b"P0=%s" % before.to_bytes(8, "little").hex().encode()) == b"OK"
                assert debugger.step().kind is StopKind.STEP
                debugger.stops.clear()
            assert debugger.go().kind is StopKind.ENDED
            ends.append((bytes(one.console), one.session.machine.engine.progress))
    assert ends[0] == ends[1]


def test_what_was_read_cannot_be_gone_back_to() -> None:
    with opened(reverse=True) as one:
        debugger = one.debugger
        debugger.stops.set_breakpoint(one.symbol("check_cli_pushf"))
        debugger.go()
        assert one.server.answer(b"Z3,%x,8" % one.symbol("caught")) == b"OK"
        assert one.server.answer(b"bc") == b"E.rwatch and awatch work forwards only; delete them before you go back"
        assert one.server.answer(b"z3,%x,8" % one.symbol("caught")) == b"OK"
        assert one.server.answer(b"bs") is not None
        assert one.server.answer(b"Z3,dead0000,8") == b"E.the guest has no memory there that could be watched"


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_the_tables_map_is_what_walks_find(folder: str) -> None:
    with opened(image=SAMPLE.parents[1] / folder / "portable.elf") as one:
        assert one.monitor("tables" if folder == "mips32" else "position"), "before the guest has any tables"
        one.debugger.stops.set_breakpoint(one.symbol("catch_fault"))
        one.debugger.go()
        driver, target = one.session.driver, one.target
        before = driver.state
        assert target.mappings is not None
        listed = list(target.mappings(driver))
        assert listed == sorted(listed)
        executed = [piece for piece in listed if piece.address <= driver.pc < piece.address + piece.size]
        assert len(executed) == 1
        assert "x" in executed[0].rights
        for piece in listed[:: len(listed) // 64 + 1]:
            for at in (0, piece.size - 1):
                found = target.walk(driver, piece.address + at).physical
                # MIPS maps what is no memory as well, which has no place.
                assert found == piece.physical + at or (folder == "mips32" and found is None)
        assert driver.state == before
