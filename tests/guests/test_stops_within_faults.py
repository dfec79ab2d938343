"""A guest is stopped while user code's page fault or system call goes to its kernel without an exit: at every
instruction of the code that leads there, by a signal and by a fault of that code's own. What is shown is the guest's,
and it goes on as if nothing had been.

Skipped, with the reason that the engine gives, where KVM cannot be had.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.kvm import api
from emulator.engine.kvm.engine import KvmEngine
from emulator.errors import EngineMissing
from emulator.isa.x86 import registers as r
from emulator.isa.x86.decode import instruction_at
from emulator.isa.x86.walk import FRAME_MASK
from emulator.machine import EndKind, Limits, Machine
from paravirt import abi, layout
from paravirt.modes import must_trap, without_exit
from paravirt.modes.x86 import user_returns
from paravirt.modes.x86.hypervisor import X86Hypervisor
from tests.emulator.guest_image import (
    DATA,
    ENTRY,
    GDT,
    IDT,
    KERNEL,
    KERNEL_CODE,
    KERNEL_STACK,
    MEMORY,
    PROGRAM,
    TASK,
    TSS,
    USER_CODE,
    USER_DATA,
    USER_STACK,
    GuestImage,
)

pytestmark = pytest.mark.kvm
FRESH, FRAMES = 0x60_0000, 0x40_0000
"""Where user code stores to pages that its kernel maps at their first use, and the memory there."""
FAR, STRIDE = 0x80_0000, 0x20_0000
"""Pages that the kernel has mapped already, in tables of their own, so that none is filled with another."""
PAGES = 510
LAST = 0x7FFF
"""The system call that ends the run."""
NOPS = "90" * 5
ENTERED, FAULTED = KERNEL + 0x400, KERNEL + 0x600
PATTERN = {
    number: 0x0101_0101_0101_0101 * (number + 1) for number in range(16) if number not in (r.RSP, r.RAX, r.RDI, r.RSI)
}
"""What user code has in its registers: addresses are in RDI and RSI, RAX counts."""
_CODE = range(abi.CROSSING_CODE, abi.CROSSING_CODE + 4096)


def _b(value: int, size: int = 4) -> str:
    return value.to_bytes(size, "little").hex()


def _write_msr(number: int, value: int) -> str:
    return f"b9{_b(number)} b8{_b(value & 0xFFFF_FFFF)} ba{_b(value >> 32)} 0f30 {NOPS}"


BEGIN = (
    f"31c0 8ed8 {NOPS} 8ec0 {NOPS} 8ee0 {NOPS} 8ee8 {NOPS}"  # no data segments, as Linux has it
    + _write_msr(0xC000_0081, KERNEL_CODE << 32 | (USER_CODE - 16) << 48)
    + _write_msr(0xC000_0082, ENTERED)
    + _write_msr(0xC000_0084, 0x25_7FD5)
    + f"b9{_b(PROGRAM)} 41bb02020000 480f07"  # mov ecx, PROGRAM; mov r11d, IF; sysretq
)
SAVED = DATA + 0x800
BACK = f"488b2425{_b(SAVED)} 488b0c25{_b(SAVED + 8)} 4c8b1c25{_b(SAVED + 16)} 0f01f8 480f07"
"""mov rsp, ..; mov rcx, ..; mov r11, ..; swapgs; sysretq"""
CALLED = (
    # swapgs; mov [..], rsp; mov rsp, ..; mov [..], rcx; mov [..], r11; cmp eax, LAST; je end
    f"0f01f8 48892425{_b(SAVED)} 48c7c4{_b(KERNEL_STACK - 0x200)} 48890c25{_b(SAVED + 8)} 4c891c25{_b(SAVED + 16)}"
    f"3d{_b(LAST)} 74{len(bytes.fromhex(BACK)):02x} {BACK} 31c0 e7f4 f4"  # end: xor eax, eax; out f4, eax; hlt
)
STORE, LOAD = "488907", "3806"


def _load(number: int) -> str:
    """The pattern in a register."""
    return f"{'49' if number & 8 else '48'}{0xB8 | number & 7:02x}{_b(PATTERN[number], 8)}"


def program(pages: int) -> str:
    """System calls until they make no exit, then a store to each page, with the pattern in all registers."""
    # mov rsp, ..; mov ebx, 40; again: xor eax, eax; syscall; dec ebx; jnz again
    calls = f"48c7c4{_b(USER_STACK)} bb28000000 31c0 0f05 ffcb 75f8"
    # mov edi, FRESH; mov esi, FAR; mov eax, pages; again: what SYSCALL changes; mov [rdi], rax; cmp [rsi], al
    # add rdi, 4096; add rsi, STRIDE; syscall; dec eax; jnz again
    loads = "".join(map(_load, PATTERN)) + f"bf{_b(FRESH)} be{_b(FAR)} b8{_b(pages)}"
    rounds = f"{_load(r.RCX)} {_load(r.R11)} {STORE} {LOAD} 4881c700100000 4881c6{_b(STRIDE)} 0f05 ffc8"
    stores = f"{rounds} 75{256 - 2 - len(bytes.fromhex(rounds)):02x}"
    kept = "".join(
        f"{'4c' if number & 8 else '48'}89{(number & 7) << 3 | 4:02x}25{_b(DATA + 8 * number)}" for number in range(16)
    )
    return calls + loads + stores + kept + f"b8{_b(LAST)} 0f05 0f0b"


def handler(table: int) -> str:
    """Map the page at CR2."""
    return (
        # swapgs; push; mov rax, cr2; invlpg [rax]; shr eax, 12; and eax, 511
        f"0f01f8 {NOPS} 50 51 52 53 0f20d0 {NOPS} {NOPS} 0f0138 {NOPS} c1e80c 25ff010000"
        f"89c1 c1e00c 0d{_b(FRAMES | 0x67)} ba{_b(table)} 488904ca"  # mov ecx, eax; shl eax, 12; or eax, ..; mov
        "5b 5a 59 58 4883c408 0f01f8 eb07 90909090909090 48cf"  # pop; add rsp, 8; swapgs; jmp; iretq
    )


class Guest(GuestImage):
    """A kernel that maps pages as user code misses them."""

    def __init__(self, pages: int = PAGES, called: str = CALLED) -> None:
        try:
            self.machine = Machine(32 * MEMORY, lambda _: None, engine=KvmEngine, limits=Limits(None, 60.0))
        except EngineMissing as error:
            pytest.skip(str(error))
        engine = self.machine.engine
        assert isinstance(engine, KvmEngine)
        self.engine = engine
        able = engine.capabilities
        if not able.crosses:
            self.machine.close()
            pytest.skip("this host's KVM has no way to a kernel without an exit")
        text = program(pages)
        self.loop = PROGRAM + len(bytes.fromhex(text[: text.index(STORE)]))
        """Where user code begins to store."""
        super().__init__(self.machine.memory.view, BEGIN, text)
        self.put(KERNEL, BEGIN.replace(" ", "") + "cc" * (4096 - len(bytes.fromhex(BEGIN))))
        self.put(ENTERED, called)
        table = self.tables.place(FRESH) * 8 & ~0xFFF
        self.tables.map(table, table | 3)
        self.put(FAULTED, handler(table))
        self.gate(14, FAULTED)
        for page in range(pages):
            self.tables.map(FAR + STRIDE * page, DATA | 0x27)
        self.tables.map(GDT, GDT | 3)
        translator = LoadTimeTranslator("inline", trapped=must_trap(able), inlined=without_exit(able))
        ladder: Any = translator._ladder
        ground = ladder.ground
        # As if an image had told where instructions begin: what IRETQ's fixup is made by.
        ladder.ground = lambda page: replace(ground(page), known=True)
        self.hypervisor = X86Hypervisor(self.machine, translator)
        self.hypervisor.enter(ENTRY)
        vcpu = self.hypervisor.vcpu
        vcpu.efer |= 0x801
        vcpu.idt_base, vcpu.idt_limit = IDT, 0xFFF
        vcpu.set_segment(r.TR, TASK, TSS, 0x167, 0x8B00)
        self.hypervisor.translations_changed()
        self.hypervisor.descriptors_changed()

    def run(self, pages: int = PAGES) -> None:
        """To the end: every page has what user code stored, and its registers are as they were."""
        assert self.hypervisor.run().kind is EndKind.DEBUG_EXIT
        assert [self.words[FRAMES + 4096 * page >> 3] for page in range(pages)] == list(range(pages, 0, -1))
        kept = struct.unpack_from("<16Q", self.memory, DATA)
        called = r.RCX, r.R11
        assert {number: kept[number] for number in PATTERN if number not in called} == {
            number: value for number, value in PATTERN.items() if number not in called
        }


class Stopped(Guest):
    """The same, and at each instruction of the code between user code and its kernel, once, the alarm goes off."""

    def __init__(self, lose: Callable[[Stopped], None], back: bool) -> None:
        """`lose` is called there as well; `back` is the way of IRETQ and INVLPG, not that of calls and faults."""
        super().__init__()
        self._lose, self._back = lose, back
        self._window = self.hypervisor.code.window_bytes()
        self.places: list[int] = []
        self._waiting: list[int] = []
        self._byte = 0
        self._place, self._faults = 0, 0
        self.stopped: list[int] = []
        """Where."""
        self.seen = 0
        """Ticks that found the guest as it should be."""
        run = self.engine.run
        self.engine.run = lambda handler: run(self._around(handler))  # type: ignore[method-assign]
        self.hypervisor.on_tick = self._look

    def _around(self, handle: Callable[[Exit], None]) -> Callable[[Exit], None]:
        def handler(exit_: Exit) -> None:
            at = self.engine.registers.rip
            if at == self._place and exit_.kind is ExitKind.FAULT and exit_.vector == 13:
                self._plant(0)
                self.stopped.append(at)
                self._raise_again(at)
                self._lose(self)
                self.engine._midway = True  # there would have been no exit
                self.engine._deadline = self.engine.progress
                self.engine._alarm.set(1)
                return
            handle(exit_)
            crossings = self.hypervisor._crossings
            if crossings is not None and at == crossings.slow > 0:
                self._next()

        return handler

    def _raise_again(self, at: int) -> None:
        """The planted trap has pushed its frame where user code's had: push that again."""
        engine = self.engine
        words, behind = engine._room.words, engine._room.frame
        frame = [engine.call_frame[1], USER_CODE, 0x202, USER_STACK, USER_DATA]
        if at >= engine._crossing.fault:
            load = engine._words[api.W_CR2] >= FAR
            frame = [4 if load else 6, self.loop + (len(STORE) >> 1 if load else 0), *frame[1:]]
        for number, word in enumerate(reversed(frame), 1):
            words[behind - number] = word

    def _next(self) -> None:
        """User code has missed a page: plant a trap at the next place, if the last was reached or has waited long."""
        self._faults += 1
        if self._place and self._faults < 2:
            return
        if not self.places:
            self.places = self._places()
            self._waiting = list(self.places)
        self._plant(self._waiting.pop() if self._waiting else 0)
        self._faults = 0

    def _places(self) -> list[int]:
        """Every instruction there, the last first."""
        crossing, crossings, places = self.engine._crossing, self.hypervisor._crossings, []
        assert crossings is not None
        back, invalidation = (self.hypervisor.shared[word >> 3] for word in (abi.RETURN_CODE, user_returns.INVALIDATE))
        there = (crossing.enter, crossing.fault), (crossing.fault, crossings.slow + 1)
        back_again = (back, invalidation), (invalidation, abi.CROSSING_CODE + 4096)
        for at, end in back_again if self._back else there:
            while at < end and any((code := bytes(self._window[at - abi.FIXUP_BASE : at - abi.FIXUP_BASE + 15]))[:2]):
                instruction = instruction_at(code, at)
                assert instruction is not None
                places.append(at)
                at += len(instruction)
        return places[::-1]

    def _plant(self, place: int) -> None:
        if self._place:
            self._window[self._place - abi.FIXUP_BASE] = self._byte
        self._place = place
        if place:
            self._byte = self._window[place - abi.FIXUP_BASE]
            self._window[place - abi.FIXUP_BASE] = 0xF4

    def forget(self, address: int) -> None:
        """Empty the shadow's entry of a page of the kernel's."""
        shadow = self.hypervisor.shadow
        words = memoryview(shadow.pool.memory).cast("Q")
        roots = shadow.both_roots()
        assert roots is not None
        table, at = roots[0], 0
        for shift in (39, 30, 21, 12):
            at = table + 8 * (address >> shift & 511)
            table = words[at - layout.TABLES_BASE >> 3] & FRAME_MASK
            if not table:
                return
        words[at - layout.TABLES_BASE >> 3] = 0
        self.engine.flush_tlb([(at, table)])

    def _look(self) -> None:
        """A tick: the guest is at an instruction of its own, with registers of its own."""
        vcpu = self.hypervisor.vcpu
        assert vcpu.rip not in _CODE
        if vcpu.level == 3 and 0 <= vcpu.rip - self.loop <= len(bytes.fromhex(STORE + LOAD)):
            assert {number: vcpu.gpr[number] for number in PATTERN} == PATTERN
        self.seen += 1


def nothing(_guest: Stopped) -> None:
    """A signal alone."""


def pages_of_the_kernel(guest: Stopped) -> None:
    """What is looked at on the way is to be filled again: the gate, the stack of level 0, and where it is told."""
    for address in (IDT, TSS, KERNEL_STACK - 64):
        guest.forget(address)


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("lose", [nothing, pages_of_the_kernel])
def test_a_guest_stopped_anywhere_on_the_way_to_its_kernel_and_back_is_shown_as_it_is(
    lose: Callable[[Stopped], None], back: bool
) -> None:
    guest = Stopped(lose, back)
    try:
        guest.run()
        if back:
            assert guest.hypervisor.exits.counts["RETURN_FROM_EXCEPTION", "inside"] > 100
    finally:
        guest.machine.close()
    assert len(guest.places) > 160
    # Not reached are those that look at a fetch, and that make sixteen entries at once.
    assert len(guest.stopped) > len(guest.places) * 3 // 4
    assert guest.seen > 100


def test_the_way_is_not_opened_again_and_again_for_a_root_where_it_is_not_used() -> None:
    pages = 60
    plain, behind = CALLED[: CALLED.index(BACK)], CALLED[CALLED.index(BACK) + len(BACK) :]
    writes = f"0f20d9 {NOPS}" + f"0f22d9 {NOPS}" * 30  # mov rcx, cr3; mov cr3, rcx, again and again
    far = len(bytes.fromhex(writes + BACK)).to_bytes(4, "little").hex()
    plain = plain.replace(f"74{len(bytes.fromhex(BACK)):02x}", "0f84" + far)
    guest = Guest(pages, plain + writes + BACK + behind)
    opened: list[int] = []
    way = guest.engine.open_crossing

    def opening(kernel: int, user: int) -> None:
        opened.append(kernel)
        way(kernel, user)

    guest.engine.open_crossing = opening  # type: ignore[method-assign]
    try:
        guest.run(pages)
    finally:
        guest.machine.close()
    counts = guest.hypervisor.exits.counts
    calls = counts["SYSTEM_CALL", "inside"]
    assert calls > pages
    assert sum(count for (name, _), count in counts.items() if name == "WRITE_CONTROL_REGISTER") > 20 * pages
    assert calls <= len(opened) < 20 * calls
