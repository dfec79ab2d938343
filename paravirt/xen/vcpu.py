"""The virtual CPU of a Xen guest: two modes of one real level, where its kernel is entered, and how it returns.

Room: `paravirt/xen`. Kernel and user code both run at level 3; what differs is the root of the page tables and the
base of GS. The kernel is entered by a frame on its stack, as Xen's interface has it (arch-x86/xen-x86_64.h): RCX, R11,
an error code where there is one, RIP, CS with the event mask in bits 32 to 39, RFLAGS, RSP, SS.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from emulator.engine.x86 import X86Engine
from paravirt.mmu.frame_types import FrameTable
from paravirt.xen.access import GuestAccess, NotMapped
from paravirt.xen.breakpoints import Breakpoints
from paravirt.xen.public import FLAT_CODE32, FLAT_CODE64, FLAT_DATA, IN_SYSCALL, RETURN_FRAME, VcpuInfo
from paravirt.xen.space import CODE32, CODE64, DATA, DESCRIPTOR_LIMIT

CS, SS, FS, GS = 1, 2, 4, 5
_MASK: Final = (1 << 64) - 1
_IF, _TF, _NT, _RF, _VM, _AC, _IOPL = 0x200, 0x100, 0x4000, 0x1_0000, 0x2_0000, 0x4_0000, 0x3000
_CLEARED: Final = ~(_TF | _NT | _RF | _VM | _AC)
_UD, _GP = 6, 13


class Crash(Exception):
    """The guest cannot go on; the reason is a clause for people."""


class Gate(NamedTuple):
    """Where the guest's kernel takes an exception."""

    address: int
    level: int
    """The least privileged level that may come here by INT."""
    masks: bool
    """Events are masked on entry."""


class Entry(NamedTuple):
    """Where the guest's kernel takes an event or a system call."""

    address: int
    masks: bool


class Segment(NamedTuple):
    """A descriptor, as the processor loads it."""

    base: int
    limit: int
    attributes: int


def unpack_descriptor(word: int) -> Segment:
    """What an 8-byte descriptor says."""
    attributes = word >> 32 & 0xF0_FF00
    limit = word & 0xFFFF | word >> 32 & 0xF_0000
    if attributes & 1 << 23:
        limit = limit << 12 | 0xFFF
    return Segment(word >> 16 & 0xFF_FFFF | word >> 32 & 0xFF00_0000, limit, attributes)


FLAT: Final = {
    FLAT_CODE64: unpack_descriptor(CODE64),
    FLAT_CODE32: unpack_descriptor(CODE32),
    FLAT_DATA: unpack_descriptor(DATA),
}


class Vcpu:
    """One virtual CPU on one engine."""

    def __init__(self, engine: X86Engine, frames: FrameTable, access: GuestAccess, info_at: int) -> None:
        """`info_at`: machine address of its `vcpu_info`."""
        self.engine = engine
        self.breakpoints = Breakpoints(engine, access.view)
        self.frames = frames
        self.access = access
        self.registers = engine.registers
        self.gpr = engine.registers.gpr
        self.view = access.view
        self.words = access.words
        self.info_at = info_at
        self.kernel_mode = True
        self.kernel_stack = 0
        self.kernel_root = self.user_root = 0
        """Machine frames; 0 is none."""
        self.gs_kernel = self.gs_user = 0
        """The base of GS of the mode that is not active."""
        self.gates: list[Gate | None] = [None] * 256
        self.event_entry: Entry | None = None
        self.failsafe_entry: Entry | None = None
        self.nmi_entry: Entry | None = None
        self.syscall_entry: Entry | None = None
        self.syscall32_entry: Entry | None = None
        self.sysenter_entry: Entry | None = None
        self.io_level = 0
        self.io_level_in_flags = False
        """The level comes and goes in RFLAGS, and the kernel is at level 0 to it (VMASST_TYPE_architectural_iopl)."""
        self.task_switched = False
        self.cr4 = 0
        """What the guest has set of CR4, beyond what it always finds there."""
        self.identify_faults = False
        """CPUID of user code is a protection fault (MISC_FEATURES_ENABLES)."""
        self.debug = [0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400]
        self.descriptor_frames: tuple[int, ...] = ()
        """Machine frames of the guest's part of the descriptor table."""
        self.local_base = self.local_entries = 0
        self.local_frames: dict[int, int] = {}
        """Machine frames of pages of the local descriptor table that the processor has asked for."""
        self._segments: dict[int, Segment | None] = dict(FLAT)

    # -- modes ----------------------------------------------------------------------------------

    @property
    def level(self) -> int:
        """0 in the guest's kernel, 3 in its user code."""
        return 0 if self.kernel_mode else 3

    @property
    def may_use_ports(self) -> bool:
        """Whether IN, OUT, CLI and STI are allowed."""
        if self.kernel_mode:
            return self.io_level_in_flags or self.io_level >= 1
        return self.io_level >= 3

    @property
    def events_masked(self) -> bool:
        """Whether the guest wants no event now."""
        return self.view[self.info_at + VcpuInfo.UPCALL_MASK] != 0

    def load_root(self, frame: int) -> None:
        """The processor walks from another root; all translations go."""
        self.engine.set_root(frame << 12)
        self.frames.flushed()
        if self.breakpoints.armed:
            self.arm_breakpoints(frame)

    def arm_breakpoints(self, root: int | None = None) -> None:
        """Debug registers, or what their addresses lead to, were changed."""
        if root is None:
            root = self.kernel_root if self.kernel_mode else self.user_root
        self.breakpoints.arm(self.debug, root)

    def toggle(self, root: int) -> None:
        """The other mode: its base of GS, and its root."""
        registers = self.registers
        base = registers.segment_base(GS)
        if self.kernel_mode:
            self.gs_kernel, base = base, self.gs_user
        else:
            self.gs_user, base = base, self.gs_kernel
        registers.set_segment_base(GS, base)
        self.kernel_mode = not self.kernel_mode
        self.load_root(root)

    def use_kernel_root(self, frame: int) -> None:
        """The root of the kernel, which is running, is another."""
        self.kernel_root = frame
        self.access.use_root(frame << 12)
        self.load_root(frame)

    # -- segments -------------------------------------------------------------------------------

    def forget_segments(self) -> None:
        """Descriptors were changed."""
        self._segments = dict(FLAT)

    def segment(self, selector: int) -> Segment | None:
        """What the guest's tables have for a selector; None where there is nothing."""
        selector |= 3
        if selector not in self._segments:
            self._segments[selector] = self._look_up(selector)
        return self._segments[selector]

    def _look_up(self, selector: int) -> Segment | None:
        index = selector >> 3
        if selector & 4:
            frame = self.local_frames.get(index >> 9) if index < self.local_entries else None
        else:
            frame = self.descriptor_frames[index >> 9] if index >> 9 < len(self.descriptor_frames) else None
        if frame is None:
            return None
        word = self.words[frame * 512 + (index & 511)]
        return unpack_descriptor(word) if word >> 47 & 1 else None

    def _load(self, index: int, selector: int) -> bool:
        """Load CS or SS; False where the descriptor does not allow it."""
        registers = self.registers
        if registers.segment(index)[0] == selector:
            return True
        found = self.segment(selector)
        if found is None or (found.attributes >> 11 & 1) != (index == CS):
            return False
        registers.set_segment(index, selector, *found)
        return True

    # -- into the kernel ------------------------------------------------------------------------

    def bounce(
        self, address: int, masks: bool, error: int | None = None, selectors: tuple[int, int] | None = None
    ) -> None:
        """Enter the kernel at `address` with a frame that says where it came from: CS and SS are `selectors`, or the
        ones that are loaded. Raises `Crash`."""
        registers, gpr, view, info = self.registers, self.gpr, self.view, self.info_at
        if self.breakpoints.armed:
            self.breakpoints.forget()
        cs, ss = selectors or (registers.segment(CS)[0], registers.segment(SS)[0])
        flags, rip, rsp = registers.rflags, registers.rip, gpr[4]
        masked = view[info + VcpuInfo.UPCALL_MASK]
        if self.kernel_mode:
            cs &= ~3
            top = rsp
        else:
            top = self.kernel_stack
            self.toggle(self.kernel_root)
        saved = flags & ~(_IF | _IOPL) | (0 if masked else _IF)
        if self.io_level_in_flags:
            saved |= self.io_level << 12
        words = [gpr[1], gpr[11], rip, cs | masked << 32, saved, rsp, ss]
        if error is not None:
            words.insert(2, error)
        size = len(words) * 8
        top = (top & ~15) - size & _MASK
        try:
            self.access.write(top, struct.pack(f"<{len(words)}Q", *words))
        except NotMapped:
            raise Crash(
                f"its kernel stack at {top:#x} cannot be written, with an entry to {address:#x} waiting"
            ) from None
        gpr[4] = top
        self._enter(address, flags)
        if masks:
            view[info + VcpuInfo.UPCALL_MASK] = 1

    def _enter(self, address: int, flags: int) -> None:
        registers = self.registers
        if registers.segment(CS)[0] != FLAT_CODE64:
            registers.set_segment(CS, FLAT_CODE64, *FLAT[FLAT_CODE64])
        if registers.segment(SS)[0] != FLAT_DATA:
            registers.set_segment(SS, FLAT_DATA, *FLAT[FLAT_DATA])
        registers.rip = address
        if flags & ~_CLEARED:
            registers.rflags = flags & _CLEARED

    def raise_exception(
        self, vector: int, error: int | None = None, address: int = 0, selectors: tuple[int, int] | None = None
    ) -> None:
        """Enter the kernel's handler of an exception. Raises `Crash` where there is none."""
        gate = self.gates[vector]
        if gate is None or not gate.address:
            raise Crash(f"exception {vector} at {self.registers.rip:#x} has no handler")
        if vector == 14:
            self.words[self.info_at + VcpuInfo.CR2 >> 3] = address
        self.bounce(gate.address, gate.masks, error, selectors)

    def raise_event(self) -> bool:
        """Enter the kernel's handler of events; False where it has none yet."""
        entry = self.event_entry
        if entry is None:
            return False
        self.bounce(entry.address, True)
        return True

    def enter_system_call(self, entry: Entry | None, code: int, length: int) -> None:
        """User code has called the kernel: RCX and R11 are as SYSCALL leaves them."""
        registers, gpr = self.registers, self.gpr
        if entry is None:
            self.raise_exception(_UD)
            return
        registers.advance(length)
        gpr[1], gpr[11] = registers.rip, registers.rflags
        registers.set_segment(CS, code, *FLAT[code])
        registers.set_segment(SS, FLAT_DATA, *FLAT[FLAT_DATA])
        self.bounce(entry.address, entry.masks)

    # -- back -----------------------------------------------------------------------------------

    def return_from_kernel(self) -> None:
        """The iret call: go where the frame on the stack says. Raises `Crash`."""
        gpr, registers = self.gpr, self.registers
        try:
            frame = RETURN_FRAME.unpack(self.access.read(gpr[4], RETURN_FRAME.size))
        except NotMapped:
            raise Crash(f"it returns by a frame at {gpr[4]:#x} that is not mapped") from None
        rax, r11, rcx, kind, rip, cs, flags, rsp, ss = frame
        if cs & 3 == 3:
            if not self.user_root:
                raise Crash("it returns to user code and has given no root for it")
            self.toggle(self.user_root)
        if not kind & IN_SYSCALL:
            gpr[11], gpr[1] = r11, rcx
        gpr[0], gpr[4] = rax, rsp
        if self.io_level_in_flags:
            self.io_level = flags >> 12 & 3
        registers.rip = rip
        registers.rflags = flags & 0x24_4FD5 & ~_IOPL | _IF | 2
        if flags & _RF:
            self.breakpoints.let_pass(rip)
        self.view[self.info_at + VcpuInfo.UPCALL_MASK] = 0 if flags & _IF else 1
        selectors = cs & 0xFFFF | 3, ss & 0xFFFF | 3
        for index, selector in zip((CS, SS), selectors, strict=True):
            if not self._load(index, selector):  # a fault of where it goes, which is never reached
                self.raise_exception(_GP, selector & ~3, selectors=selectors)
                return

    # -- as a value -----------------------------------------------------------------------------

    @property
    def state(self) -> tuple[Any, ...]:
        """Everything the guest can see of its processor."""
        registers = self.registers
        return (
            tuple(self.gpr),
            registers.rip,
            registers.rflags,
            self.level,
            tuple(registers.segment(index) for index in range(8)),
            (self.kernel_root, self.user_root, self.kernel_stack, self.gs_kernel, self.gs_user),
            tuple(self.gates),
            (self.event_entry, self.failsafe_entry, self.syscall_entry, self.syscall32_entry, self.sysenter_entry),
            (self.io_level, self.task_switched, self.cr4, self.identify_faults, tuple(self.debug)),
            (self.descriptor_frames, self.local_base, self.local_entries, self.info_at),
            DESCRIPTOR_LIMIT,
        )
