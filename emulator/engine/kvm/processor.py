"""The processor of the KVM engine: what it is made of, and its registers between KVM's page and the caller's view.

Room: `emulator/engine/kvm`. Who runs it (`engine`), what exits besides traps (`accesses`), and how its translations are
kept right (`translations`) are built on this. It runs nothing.
"""

import fcntl
import struct
from collections.abc import Callable, Sequence
from typing import Final

from emulator.engine.crossing import NOWHERE, Crossing
from emulator.engine.kvm import api, counter, floating, room
from emulator.engine.kvm.alarm import Alarm
from emulator.engine.kvm.device import Read, Vm, Write
from emulator.engine.kvm.findings import Findings
from emulator.engine.kvm.gates import Gates
from emulator.engine.kvm.registers import KvmRegisters, segment_words
from emulator.engine.kvm.returning import MOST_TABLES
from emulator.engine.kvm.room import Room
from emulator.engine.kvm.stub import Stub
from emulator.engine.kvm.traps import Traps
from emulator.engine.kvm.vectors import ExtendedState
from emulator.engine.protocol import Capabilities
from emulator.engine.x86 import Burst
from emulator.errors import EngineMissing
from emulator.isa.x86 import registers as r

QUANTUM: Final = 100_000
"""Nanoseconds that a guest gets at least between two BUDGET exits: entering it takes a good part of that."""
_RATHER_LATE: Final = 10 * QUANTUM
"""Nanoseconds until one looks again whether a guest stands that is likely to exit before."""
FOREVER: Final = 1 << 62
_ALL: Final = api.SYNC_REGISTERS | api.SYNC_SPECIAL | api.SYNC_EVENTS
_DIRTY: Final = api.SYNC_REGISTERS | api.SYNC_SPECIAL
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_NOT_RF_IOPL: Final = _MASK ^ r.FLAG_RF ^ r.FLAG_IOPL
HANDLERS, HANDLERS_END = room.HANDLERS, room.HANDLERS_END
_CS, _SS = api.SEGMENT_WORDS[r.CS], api.SEGMENT_WORDS[r.SS]
_MOST_PASSED: Final = 3
_FRAME_MASK: Final = 0x000F_FFFF_FFFF_F000

_unpack, _pack = struct.Struct("<18Q").unpack_from, struct.Struct("<18Q").pack_into
_pack_general = struct.Struct("<16Q").pack_into


class KvmProcessor:
    """One virtual processor. Use `registers` only while no guest code runs or inside the handler."""

    def __init__(self, findings: Findings | None = None) -> None:
        """`findings` is what is known of the host's KVM; without it the host is probed, once a process."""
        if findings is None:
            from emulator.engine.kvm.probe import findings_of_host

            findings = findings_of_host()
        self.findings = findings
        self.capabilities: Capabilities = findings.capabilities()
        self._vm = Vm()
        try:
            self._alarm = Alarm(self._vm.cpu)
            self._set_up()
        except BaseException:
            self._vm.close()
            raise

    def _set_up(self) -> None:
        vm = self._vm
        view = memoryview(vm.run).cast("B")
        self._bytes = view
        self._words = view[:4096].cast("Q")
        self._halves = view[:4096].cast("I")
        self._ring = view[vm.ring : vm.ring + 4096] if vm.ring else None
        self.registers = KvmRegisters(vm.cpu, view[:4096])
        self._gpr = self.registers.gpr
        self._room = Room()
        vm.add_memory(room.PHYSICAL, memoryview(self._room.memory))
        self._traps = Traps(vm, self._room, self.registers, self.findings)
        self._exit = self._traps.exit
        self.entered = 0
        """How often the guest was entered, which is how often it exited: what an exit table does not see included."""
        self._extended = ExtendedState(vm.cpu)
        self._stub = Stub(vm, self._room, self._signalled)
        self._gates = Gates(vm, self._room)
        self._crossing = NOWHERE
        self._on_crossed: Callable[[bool], None] = lambda _user: None
        self._umip = r.CR4_UMIP if vm.leaf(7)[2] & 4 else 0
        vm.set_msrs(
            {
                api.MSR_STAR: room.CODE_SELECTOR << 32 | (room.CODE_SELECTOR - 16) << 48,
                api.MSR_LSTAR: room.SYSTEM_CALL,
                api.MSR_CSTAR: room.SYSTEM_CALL_32,
                api.MSR_FMASK: r.FLAG_TF | r.FLAG_NT | r.FLAG_DF | r.FLAG_AC,
            }
        )
        self._deadline = FOREVER
        self._due = False
        self._moved = True
        """Whether the guest was entered since the last BUDGET exit."""
        self._midway = False
        """KVM has an exception under way: the processor's state must not be touched before it arrives."""
        self._passed = 0
        """How often in a row, without an exit between, a signal was passed over, lest a breakpoint be lost."""
        self._again = -1, -1
        """RIP and address of the page fault that was left to come again last."""
        self._incomplete = False
        """An IN or a device access waits for KVM to finish it."""
        self._stopped = False
        self._running = False
        self._dirty = False
        self._flip = 0
        self._changes: dict[int, int] = {}
        self._root_places: dict[int, tuple[memoryview, int]] = {}
        self._root_entry, self._kernel_root_entry = self._room.root_entry, self._room.kernel_root_entry
        self._kernel_roots: set[int] = set()
        """Roots of a guest's kernel, to which gates have led; forgotten when all tables are."""
        self._posted: list[tuple[int, int]] = []
        self._burst: Burst | None = None
        self._prepare()

    def _prepare(self) -> None:
        """What of the special registers never changes."""
        special = bytearray(312)
        fcntl.ioctl(self._vm.cpu, api.GET_SREGS, special)
        self._bytes[api.B_SPECIAL : api.B_SPECIAL + 312] = bytes(special)
        words = self._words
        for index, base, limit, selector, attributes in (
            (r.TR, room.TSS, room.TSS_LIMIT, room.TSS_SELECTOR, 0x8B00),
            (r.LDTR, 0, 0, room.LDT_SELECTOR, 0),
        ):
            at = api.SEGMENT_WORDS[index]
            words[at], words[at + 1], words[at + 2] = segment_words(selector, base, limit, attributes)
        words[api.W_GDT], words[api.W_GDT + 1] = room.GDT_NONE, room.GDT_LIMIT
        words[api.W_GDT + 2], words[api.W_GDT + 3] = room.IDT, 256 * 16 - 1
        words[api.W_VALID] = _ALL

    # -- memory ---------------------------------------------------------------------------------

    def map_memory(self, physical: int, memory: memoryview) -> None:
        """Back physical addresses from `physical` on by `memory` (page-aligned, writable)."""
        self._vm.add_memory(physical, memory)

    def map_mmio(self, physical: int, size: int, read: Read, write: Write) -> None:
        """Route accesses to `size` bytes at `physical` to `read(offset, size)` and `write(offset, size, value)`."""
        self._vm.add_device(physical, size, read, write)

    # -- registers ------------------------------------------------------------------------------

    def _interrupted(self) -> None:
        """A signal ended KVM_RUN: the guest is where it was, or KVM has an exception under way."""
        events, rip = self._bytes, self._words[api.W_RIP]
        self._signalled()
        events[api.IMMEDIATE_EXIT] = 0
        under_way = (
            bool(events[api.EVENT_INJECTED] or events[api.EVENT_PENDING])
            # The trap's handler is reached and its HLT not executed: let it. And so for a gate, and what is behind it.
            or HANDLERS <= rip < HANDLERS_END
            or room.SYSTEM_CALL <= rip < room.SYSTEM_CALLS_END
            or room.CALL <= rip < room.CALL_END
            or room.GATES <= rip < room.GATES_END
            or self._crossing.enter <= rip < self._crossing.enter_end
        )
        self._midway = under_way or self._may_break(rip)
        if not self._midway:
            self._incomplete = False
            self._get()
        elif under_way:
            self._passed = 0
            self._gates.pause()  # what is under way would end without an exit, and the next, too
            self._alarm.set(_RATHER_LATE)

    def _may_break(self, rip: int) -> bool:
        """Whether a #BP may be under way, of which KVM does not tell ("the API does not provide the instruction length"
        of INT3) and which it forgets when registers are set. Entered as it is, the guest then takes it at once; where
        it is none, the guest runs on for a moment, longer each time, lest a busy host's alarm come before it ran at
        all. It cannot ask for that again and again."""
        if not self.findings.breakpoint_ignores_gate:
            return False
        self.registers.rip = rip
        if self._traps.code(-1)[:1] != b"\xcc":
            self._passed = 0
            return False
        self._passed += 1
        if self._passed > _MOST_PASSED:
            return False
        self._alarm.set(QUANTUM * 10 ** (self._passed - 1))
        return True

    def _signalled(self) -> None:
        self._alarm.take()
        self._due = True

    def _put(self) -> None:
        """Give KVM the registers, for level 3."""
        words, registers = self._words, self.registers
        a, c, d, b, sp, bp, si, di, *others = self._gpr.tolist()
        rip, flags = registers.rip & _MASK, registers.rflags & r.FLAGS_VALID | r.FLAG_FIXED
        _pack(self._bytes, api.B_REGISTERS, a, b, c, d, si, di, sp, bp, *others, rip, flags)
        words[_CS], words[_CS + 1], words[_CS + 2] = registers.code
        words[_SS], words[_SS + 1], words[_SS + 2] = registers.stack
        words[api.W_DIRTY] = _DIRTY
        self._dirty = False

    def _get(self) -> None:
        """Take the registers of a guest that stands at level 3."""
        words, registers = self._words, self.registers
        a, b, c, d, si, di, sp, bp, *others, registers.rip, flags = _unpack(self._bytes, api.B_REGISTERS)
        _pack_general(self._gpr, 0, a, c, d, b, sp, bp, si, di, *others)
        registers.rflags = flags & _NOT_RF_IOPL | registers.rflags & r.FLAG_IOPL
        code, stack = words[_CS + 1] >> 32 & 0xFFFF, words[_SS + 1] >> 32 & 0xFFFF
        if code != registers.code_selector:
            registers.loaded(r.CS, code)
        if stack != registers.stack_selector:
            registers.loaded(r.SS, stack)
        self._dirty = True
        if registers.reloaded or words[api.W_CR3] != registers.root:
            self._crossed()

    def _crossed(self) -> None:
        """The guest may have gone through gates since its last exit, and stand on this side or the other: another root
        is loaded, or CS is what SYSRET loads."""
        registers, root, pair = self.registers, self._words[api.W_CR3], self._gates.pair
        registers.reloaded = False
        if root in pair:
            registers.root = root
            self._on_crossed(root == pair[1])

    @property
    def raw_vector(self) -> int:
        """Vector of the handler at which the processor halted last, or -1."""
        rip = self._words[api.W_RIP]
        return (rip - HANDLERS) >> 4 if HANDLERS <= rip < HANDLERS_END else -1

    def bare(self) -> tuple[int, memoryview]:
        """The processor's descriptor and the page shared with KVM, for who does without the engine."""
        self._bytes[api.IMMEDIATE_EXIT] = 0
        return self._vm.cpu, self._bytes

    def leaf(self, number: int) -> tuple[int, int, int, int]:
        """A CPUID leaf as it was set for the guest."""
        return self._vm.leaf(number)

    def identify_faults(self, enabled: bool) -> bool:
        """Ask for CPUID to fault in user mode; whether KVM took it."""
        try:
            self._vm.set_msrs({api.MSR_PLATFORM_INFO: api.CPUID_FAULTS})
            return self._vm.set_msrs({api.MSR_MISC_FEATURES: int(enabled)})
        except OSError:
            return False

    def set_processor_number(self, number: int) -> bool:
        """Have RDTSCP and RDPID show this; whether KVM took it."""
        return self._vm.set_msrs({api.MSR_TSC_AUX: number})

    # -- what only some engines need --------------------------------------------------------------

    def open_ports(self, enabled: bool = True) -> None:
        """From now on IN and OUT in user mode exit, or fault as they do above the I/O privilege level."""
        self._room.open_ports(enabled)

    def post_ports(self, ports: Sequence[tuple[int, int]], burst: Burst | None = None) -> None:
        """Hand up writes to these ports (first, count) late: in order, and before whatever exit comes next. Bytes in a
        row to one port are offered to `burst`."""
        self._burst = burst
        if self._ring is not None:
            self._posted = list(ports)
            self._vm.coalesce(self._posted)

    def lead_crossing(self, crossing: Crossing, crossed: Callable[[bool], None]) -> None:
        """How the guest's kernel is entered and left without an exit, once that is opened; `crossed` is called with
        whether it runs user code now, at an exit behind that, before the handler is."""
        self._crossing, self._on_crossed = crossing, crossed
        self._gates.lead(crossing)

    @property
    def call_frame(self) -> tuple[int, int]:
        """Where the code that enters a kernel reads the frame of a trap, and the RIP in that of a SYSCALL."""
        return room.FRAME, room.CALL_SITE

    def show_memory(self, size: int) -> int | None:
        """Where the code that enters a kernel reads physical memory; None for too much."""
        return self._room.show_memory(size)

    def show_tables(self, regions: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], memoryview] | None:
        """Where that code reads more regions of physical memory, each given by address and size: the page tables, and
        what the kernel's code knows of them and of memory; and bytes in which to say, by 4 KiB of the tables, which of
        them `Crossing.back` may store in, 1, and in which `Crossing.clear` may clear, 2. None where it cannot."""
        tables = regions[0][1]
        if not self.findings.host_segments_open or tables >> 12 > MOST_TABLES or tables & tables - 1:
            return None
        own = self._room
        return tuple(own.show_more(number, *region) for number, region in enumerate(regions)), own.marks()

    def lead_traps(self, places: Sequence[int]) -> None:
        """Traps at these addresses, and at others with the same last byte, arrive at `Crossing.trapped`."""
        self._gates.lead_traps(places)

    def open_crossing(self, kernel: int, user: int) -> None:
        """From now on lead from one of these page tables to the other; until another is set, or all is flushed."""
        self._kernel_roots.add(kernel)
        for root in (kernel, user):
            self._own_root(root)
        self._gates.open(kernel, user)

    def close_crossing(self) -> None:
        """All exits."""
        self._gates.close()

    def _own_root(self, physical: int) -> None:
        """Put the engine's own entry into a root."""
        place = self._root_places.get(physical) or self._place_of_root(physical)
        words, at = place
        entry = self._kernel_root_entry if physical in self._kernel_roots else self._root_entry
        if words[at] != entry:
            if words[at] and not self.findings.flush_by_control:
                self._changes[(physical & _FRAME_MASK) + 8 * room.SLOT] = -1  # it has other rights from now on
            words[at] = entry

    def _place_of_root(self, physical: int) -> tuple[memoryview, int]:
        """Where the engine's own entry of a root is: the words of its memory, and which."""
        found = self._vm.find(physical & _FRAME_MASK)
        if found is None:
            raise EngineMissing(f"no memory backs a page table at {physical:#x}; map it first")
        place = self._root_places[physical] = found[2], ((physical & _FRAME_MASK) - found[0] >> 3) + room.SLOT
        return place

    def floating(self) -> bytes:
        """x87 and SSE state, as FXSAVE stores it."""
        return floating.take(self._vm.cpu)

    def set_floating(self, image: bytes) -> None:
        """Put a state back that `floating` gave. Raises `ValueError` for another size."""
        floating.put(self._vm.cpu, image)
        self._extended.forget()

    def vectors(self) -> bytes:
        """The vector state beyond x87 and SSE; empty in its initial state."""
        return self._extended.take(self.entered)

    def set_vectors(self, state: bytes) -> None:
        """Put a state back that `vectors` gave."""
        self._extended.put(state, self.entered)

    def show_segments(self, table: bytes) -> None:
        """Let user code load the segments of this descriptor table; it finds no others. Empty: none at all."""
        if table:
            self._room.show(table)
        self._words[api.W_GDT] = room.GDT_USER if table else room.GDT_NONE
        self._dirty = True

    def counter(self) -> tuple[int, float]:
        """What RDTSC shows now, and counts in a nanosecond."""
        return counter.look()

    def write_msr(self, number: int, value: int) -> None:
        """Remember an MSR: the real ones lead to the engine."""
        self.registers.set_msr(number, value)

    def close(self) -> None:
        """Release the processor. Idempotent."""
        self._alarm.close()
        self._vm.close()
