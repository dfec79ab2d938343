"""The KVM engine: guests at level 3 on the host's own processor, behind the `Engine` protocol.

Room: `emulator/engine/kvm`. The processor traps into 256 handlers of one HLT each, which end KVM_RUN: the vector is
where it halted, the rest is in the frame that it pushed. It knows nothing of a hypervisor. What a host's KVM does
otherwise than a processor is found by `probe.py` and mended here, by what was found and never by a name.
"""

import fcntl
import struct
from collections.abc import Sequence
from typing import Final

from emulator.engine.exit import ExitKind
from emulator.engine.kvm import api, counter, floating, room, vectors
from emulator.engine.kvm.alarm import Alarm
from emulator.engine.kvm.device import Read, Vm, Write
from emulator.engine.kvm.findings import Findings
from emulator.engine.kvm.registers import KvmRegisters, segment_words
from emulator.engine.kvm.room import Room
from emulator.engine.kvm.stub import Stub
from emulator.engine.kvm.traps import Traps
from emulator.engine.protocol import Capabilities, Handler
from emulator.errors import EngineMissing, GuestFault
from emulator.isa.x86 import registers as r

QUANTUM: Final = 100_000
"""Nanoseconds that a guest gets at least between two BUDGET exits: entering it takes a good part of that."""
_FOREVER: Final = 1 << 62
_ALL: Final = api.SYNC_REGISTERS | api.SYNC_SPECIAL | api.SYNC_EVENTS
_DIRTY: Final = api.SYNC_REGISTERS | api.SYNC_SPECIAL
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_NOT_RF_IOPL: Final = _MASK ^ r.FLAG_RF ^ r.FLAG_IOPL
_HANDLERS, _HANDLERS_END = room.HANDLERS, room.HANDLERS_END
_CS, _SS = api.SEGMENT_WORDS[r.CS], api.SEGMENT_WORDS[r.SS]
_BY_PAGE: Final = 2
"""Up to so many changed entries it is cheaper to take their pages away than to have them stored again."""
_MOST_PASSED: Final = 3
_FRAME_MASK: Final = 0x000F_FFFF_FFFF_F000
_HALTED: Final = api.EXIT_HLT

_unpack8, _pack8 = struct.Struct("<8Q").unpack_from, struct.Struct("<8Q").pack_into
_unpack_io = struct.Struct("<BBHIQ").unpack_from
_unpack_mmio = struct.Struct("<Q8sIB").unpack_from


class KvmEngine:
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
        self._stub = Stub(vm, self._room, self._signalled)
        self._umip = r.CR4_UMIP if vm.leaf(7)[2] & 4 else 0
        vm.set_msrs(
            {
                api.MSR_STAR: room.CODE_SELECTOR << 32 | (room.CODE_SELECTOR - 16) << 48,
                api.MSR_LSTAR: room.SYSTEM_CALL,
                api.MSR_CSTAR: room.SYSTEM_CALL_32,
                api.MSR_FMASK: r.FLAG_TF | r.FLAG_NT | r.FLAG_DF | r.FLAG_AC,
            }
        )
        self._deadline = _FOREVER
        self._due = False
        self._moved = True
        """Whether the guest was entered since the last BUDGET exit."""
        self._midway = False
        """KVM has an exception under way: the processor's state must not be touched before it arrives."""
        self._passed = 0
        """How often in a row a signal was passed over, lest a breakpoint be lost."""
        self._incomplete = False
        """An IN or a device access waits for KVM to finish it."""
        self._stopped = False
        self._running = False
        self._dirty = False
        self._flip = 0
        self._changes: dict[int, int] = {}
        self._posted: list[tuple[int, int]] = []
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

    # -- running --------------------------------------------------------------------------------

    def run(self, handler: Handler) -> None:
        """Run until the handler calls `stop`. An exception raised by the handler propagates."""
        if self.registers.privilege != 3:
            raise GuestFault(
                f"the KVM engine runs code at level 3 only, not at level {self.registers.privilege}; "
                "run an unmodified kernel with --engine unicorn"
            )
        alarm = self._alarm
        alarm.begin()
        self._running = True
        self._stopped = False
        self._bytes[api.IMMEDIATE_EXIT] = 0
        try:
            self._arm()
            self._loop(handler)
        finally:
            self._running = False
            alarm.end()

    def _loop(self, handler: Handler) -> None:
        """Enter, see why it came back, hand it up; again until stopped. The hot path."""
        enter, cpu, request = fcntl.ioctl, self._vm.cpu, api.RUN
        halves, words, alarm, exit_ = self._halves, self._words, self._alarm, self._exit
        reason, dirty, registers, read = api.H_EXIT_REASON, api.W_DIRTY, self.registers, self._traps.read
        ring = self._ring
        try:
            while True:
                if (self._due or alarm.look or self._stopped) and not self._midway and self._ends_here(handler):
                    if self._stopped:
                        return
                    self._due = self._moved = False
                    self._dirty = True
                    self._passed = 0
                    exit_.kind = ExitKind.BUDGET
                    handler(exit_)
                    continue
                if self._changes:
                    self._store_changes()
                if self._dirty:
                    self._put()
                self.entered += 1
                try:
                    enter(cpu, request, 0)
                except InterruptedError:
                    words[dirty] = 0
                    self._moved = True
                    self._interrupted()
                    if ring is not None and self._posted:
                        self._hand_up_posted(handler)
                    continue
                except OSError as error:
                    raise GuestFault(
                        f"the engine lost the guest at {registers.rip:#x}: KVM does not enter it ({error.strerror})"
                    ) from None
                words[dirty] = 0
                self._moved = True
                self._midway = self._incomplete = False
                if ring is not None and self._posted:
                    self._hand_up_posted(handler)
                if halves[reason] == _HALTED:  # a trap
                    self._dirty = True
                    read()
                    handler(exit_)
                else:
                    self._other(halves[reason], handler)
        finally:
            if self._incomplete:
                self._complete(handler)

    def _ends_here(self, handler: Handler) -> bool:
        """Whether the guest does not go on now, but stands behind an instruction for a BUDGET exit or for good."""
        if not self._stopped and not self._is_due():
            return False
        if self._incomplete:
            self._complete(handler)
        return True

    def _is_due(self) -> bool:
        """Whether the deadline is reached and a BUDGET exit may be handed up; sets the alarm again if not."""
        self._alarm.look = False
        left = self._deadline - self._alarm.now()
        if left <= 0 and self._moved:
            return True
        self._due = False
        self._alarm.set(max(left, QUANTUM if not self._moved else 1))
        return False

    def _interrupted(self) -> None:
        """A signal ended KVM_RUN: the guest is where it was, or KVM has an exception under way."""
        events, rip = self._bytes, self._words[api.W_RIP]
        self._signalled()
        events[api.IMMEDIATE_EXIT] = 0
        self._midway = (
            bool(events[api.EVENT_INJECTED] or events[api.EVENT_PENDING])
            # The trap's handler is reached and its HLT not executed: let it.
            or _HANDLERS <= rip < _HANDLERS_END
            or room.SYSTEM_CALL <= rip < room.STUB
            or self._may_break(rip)
        )
        if not self._midway:
            self._incomplete = False
            self._get()

    def _may_break(self, rip: int) -> bool:
        """Whether a #BP may be under way, of which KVM does not tell ("the API does not provide the instruction length"
        of INT3) and which it forgets when registers are set. Entered as it is, the guest then takes it at once; where
        it is none, the guest runs on for a moment. It cannot ask for that again and again."""
        self._passed += 1
        if not self.findings.breakpoint_ignores_gate or self._passed > _MOST_PASSED:
            return False
        self.registers.rip = rip
        if self._traps.code(-1)[:1] != b"\xcc":
            return False
        self._alarm.set(QUANTUM)
        return True

    def _signalled(self) -> None:
        self._alarm.take()
        self._due = True

    def _put(self) -> None:
        """Give KVM the registers, for level 3."""
        words, gpr, registers = self._words, self._gpr, self.registers
        a, c, d, b, sp, bp, si, di = gpr[:8]
        _pack8(self._bytes, api.B_REGISTERS, a, b, c, d, si, di, sp, bp)
        at = api.W_REGISTERS
        words[at + 8 : at + 16] = gpr[8:]
        words[api.W_RIP] = registers.rip & _MASK
        words[api.W_RFLAGS] = registers.rflags & r.FLAGS_VALID | r.FLAG_FIXED
        words[_CS], words[_CS + 1], words[_CS + 2] = registers.code
        words[_SS], words[_SS + 1], words[_SS + 2] = registers.stack
        words[api.W_DIRTY] = _DIRTY
        self._dirty = False

    def _get(self) -> None:
        """Take the registers of a guest that stands at level 3."""
        words, registers = self._words, self.registers
        a, b, c, d, si, di, sp, bp = _unpack8(self._bytes, api.B_REGISTERS)
        _pack8(self._gpr, 0, a, c, d, b, sp, bp, si, di)
        at = api.W_REGISTERS
        self._gpr[8:] = words[at + 8 : at + 16]
        registers.rip = words[api.W_RIP]
        registers.rflags = words[api.W_RFLAGS] & _NOT_RF_IOPL | registers.rflags & r.FLAG_IOPL
        code, stack = words[_CS + 1] >> 32 & 0xFFFF, words[_SS + 1] >> 32 & 0xFFFF
        if code != registers.code_selector:
            registers.loaded(r.CS, code)
        if stack != registers.stack_selector:
            registers.loaded(r.SS, stack)
        self._dirty = True

    # -- exits that are no traps ----------------------------------------------------------------

    def _other(self, reason: int, handler: Handler) -> None:
        if reason == api.EXIT_IO:
            self._port(handler)
        elif reason == api.EXIT_MMIO:
            self._device()
        elif reason == api.EXIT_INTR:
            self._interrupted()
        elif reason == api.EXIT_INTERNAL_ERROR:
            self._lost_fetch(handler)
        else:
            raise GuestFault(f"the engine lost the guest at {self._words[api.W_RIP]:#x}: KVM exit {reason}")

    def _port(self, handler: Handler) -> None:
        """IN, OUT, INS or OUTS, while ports are open. KVM has moved RIP over OUT already."""
        write, size, port, count, offset = _unpack_io(self._bytes, api.B_UNION)
        self._get()
        self._dirty = False
        self._incomplete = True
        exit_, data = self._exit, self._bytes
        for at in range(offset, offset + size * count, size):
            exit_.port, exit_.size, exit_.refused = port, size, False
            if write:
                exit_.kind = ExitKind.PORT_WRITE
                exit_.value = int.from_bytes(data[at : at + size], "little")
                handler(exit_)
            else:
                exit_.kind, exit_.value = ExitKind.PORT_READ, 0
                handler(exit_)
                data[at : at + size] = (exit_.value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def _device(self) -> None:
        """A load or store where no memory is. KVM goes on when it is entered again."""
        physical, data, size, write = _unpack_mmio(self._bytes, api.B_UNION)
        found = self._vm.device_at(physical)
        self._get()
        self._dirty = False
        self._incomplete = True
        if found is None:
            if not write:
                self._bytes[api.B_UNION + 8 : api.B_UNION + 8 + size] = b"\xff" * size
            return
        first, _, reads, writes = found
        if write:
            writes(physical - first, size, int.from_bytes(data[:size], "little"))
        else:
            value = reads(physical - first, size) & (1 << 8 * size) - 1
            self._bytes[api.B_UNION + 8 : api.B_UNION + 8 + size] = value.to_bytes(size, "little")

    def _complete(self, handler: Handler) -> None:
        """Have KVM finish the IN or device access under way, without running the guest."""
        self._bytes[api.IMMEDIATE_EXIT] = 1
        try:
            while self._incomplete:
                try:
                    fcntl.ioctl(self._vm.cpu, api.RUN, 0)
                except InterruptedError:
                    self._incomplete = False
                else:
                    self._other(self._halves[api.H_EXIT_REASON], handler)
                self._words[api.W_DIRTY] = 0
        finally:
            self._bytes[api.IMMEDIATE_EXIT] = 0
        self._get()

    def _lost_fetch(self, handler: Handler) -> None:
        """KVM cannot go on: code would have to come from a device or from nowhere."""
        self._get()
        code = self._traps.code()
        if code:
            suberror = self._halves[api.B_UNION // 4]
            raise GuestFault(
                f"the engine lost the guest at {self.registers.rip:#x}: KVM cannot execute {code.hex()} "
                f"(internal error {suberror})"
            )
        exit_ = self._exit
        exit_.kind, exit_.address = ExitKind.UNBACKED, self.registers.rip
        handler(exit_)

    def _hand_up_posted(self, handler: Handler) -> None:
        """Port writes that KVM collected, before what came behind them."""
        ring = self._ring
        assert ring is not None
        first, last = struct.unpack_from("<II", ring)
        if first == last:
            return
        count = (len(ring) - 8) // api.COALESCED_RING_BYTES
        exit_ = self._exit
        while first != last:
            port, size, _, value = struct.unpack_from("<QIIQ", ring, 8 + first * api.COALESCED_RING_BYTES)
            exit_.kind, exit_.port, exit_.size, exit_.refused = ExitKind.PORT_WRITE, port, size, False
            exit_.late = True
            exit_.value = value & (1 << 8 * size) - 1
            first = (first + 1) % count
            struct.pack_into("<I", ring, 0, first)
            handler(exit_)
        exit_.late = False

    # -- stopping and time ----------------------------------------------------------------------

    def stop(self) -> None:
        """End `run` after the handler returns. May also be called by a signal's handler."""
        self._stopped = True
        self._bytes[api.IMMEDIATE_EXIT] = 1

    @property
    def progress(self) -> int:
        """Nanoseconds of processor time that runs have taken."""
        return self._alarm.now()

    def set_deadline(self, progress: int) -> None:
        """Ask for a BUDGET exit at `progress`; the past means: at once, or after the guest ran a little."""
        self._deadline = progress
        if self._running:
            self._arm()

    def _arm(self) -> None:
        left = self._deadline - self._alarm.now()
        if left <= 0 and self._moved:
            self._due = True
            return
        self._due = False
        self._alarm.set(None if self._deadline >= _FOREVER else max(left, 1 if self._moved else QUANTUM))

    # -- translation state ----------------------------------------------------------------------

    def set_root(self, physical: int) -> None:
        """Switch to the page table at `physical`, and put the engine's own entry into it."""
        self.registers.set_control(3, physical)
        found = self._vm.find(physical & _FRAME_MASK)
        if found is None:
            raise EngineMissing(f"no memory backs a page table at {physical:#x}; map it first")
        found[2][((physical & _FRAME_MASK) - found[0] >> 3) + room.SLOT] = self._room.root_entry
        self._words[api.W_CR3] = physical
        self._dirty = True

    def set_control(self, cr0: int, cr4: int, efer: int) -> None:
        """Load the real control registers. What user mode needs to be contained is added."""
        registers, words = self.registers, self._words
        registers.set_control(0, cr0)
        registers.set_control(4, cr4)
        registers.set_msr(api.MSR_EFER, efer)
        words[api.W_CR0] = cr0 | r.CR0_NE | r.CR0_ET
        words[api.W_CR4] = cr4 & ~r.CR4_PGE | self._umip | self._flip
        words[api.W_EFER] = efer | r.EFER_SCE | r.EFER_NXE
        self._dirty = True

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None:
        """Entries of page tables in use were changed: these, by physical address, with the page that each mapped."""
        if self.findings.flush_by_control:
            self.flip_control()
        elif changes is None:
            self._changes.clear()
            self.forget_translations()
        elif not (
            len(changes) <= _BY_PAGE
            and self.findings.flush_by_page
            and all(self.take_page(page) for _, page in changes)
        ):
            self._changes.update(changes)

    # -- what the experiments ask for ---------------------------------------------------------------

    @property
    def raw_vector(self) -> int:
        """Vector of the handler at which the processor halted last, or -1."""
        rip = self._words[api.W_RIP]
        return (rip - _HANDLERS) >> 4 if _HANDLERS <= rip < _HANDLERS_END else -1

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

    def forget_translations(self) -> None:
        """Forget all that is cached of page tables, whatever it costs."""
        self._vm.forget_translations(room.PHYSICAL + room.SIZE)

    def flip_control(self) -> None:
        """Change CR4.PGE."""
        self._flip ^= r.CR4_PGE
        self._words[api.W_CR4] ^= r.CR4_PGE
        self._dirty = True

    def take_page(self, page: int) -> bool:
        """Take a page from KVM, contents kept, and with it every translation that leads there."""
        found = self._vm.find(page) if page >= 0 else None
        return found is not None and found[3] and self._vm.take_page(page)

    def store_entry(self, at: int) -> None:
        """Have the processor store an entry again."""
        self._changes[at] = -1

    def _store_changes(self) -> None:
        """Make the changes that wait known to KVM, before the guest goes on. Its registers are in `registers` and go
        into KVM's page afterwards, but for an exception or an access under way, which only KVM knows."""
        changes = list(self._changes)
        self._changes.clear()
        if self._incomplete or self._midway:
            self.forget_translations()
            return
        if not self._dirty:
            self._get()
        self._dirty = True
        if not self._stub.store(changes):
            self.forget_translations()

    def code_changed(self, address: int, size: int) -> None:
        """Nothing: an x86 processor sees stores to code."""

    def flush_code(self) -> None:
        """Nothing: an x86 processor sees stores to code."""

    def guard_code(self, enabled: bool = True) -> None:
        """Not to be had: the engine has no execute-only pages."""

    # -- what only some engines need --------------------------------------------------------------

    def open_ports(self, enabled: bool = True) -> None:
        """From now on IN and OUT in user mode exit, or fault as they do above the I/O privilege level."""
        self._room.open_ports(enabled)

    def post_ports(self, ports: Sequence[tuple[int, int]]) -> None:
        """Hand up writes to these ports (first, count) late: in order, and before whatever exit comes next."""
        if self._ring is not None:
            self._posted = list(ports)
            self._vm.coalesce(self._posted)

    def floating(self) -> bytes:
        """x87 and SSE state, as FXSAVE stores it."""
        return floating.take(self._vm.cpu)

    def set_floating(self, image: bytes) -> None:
        """Put a state back that `floating` gave. Raises `ValueError` for another size."""
        floating.put(self._vm.cpu, image)

    def vectors(self) -> bytes:
        """The vector state beyond x87 and SSE; empty in its initial state."""
        return vectors.take(self._vm.cpu)

    def set_vectors(self, state: bytes) -> None:
        """Put a state back that `vectors` gave."""
        vectors.put(self._vm.cpu, state)

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
