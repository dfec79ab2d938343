"""The hypervisor of a para-virtual guest: calls in, frames out, whatever the instruction set.

Room: `paravirt/para`. `ParaGuest` is mixed into an instruction set's own hypervisor (`paravirt.para.modes`): views of
memory, translated code and the event loop are those; what replaces a processor's privileged half is here. Numbers and
layouts are `paravirt.abi.calls` and `paravirt.abi.guests`; nothing that a guest gives may harm anything but itself.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from emulator.isa.exceptions import ArchitecturalException, ProcessorShutdown
from emulator.machine import Machine
from paravirt.abi import calls as c
from paravirt.abi import guests as g
from paravirt.abi.calls import Call, Status
from paravirt.abi.guests import Trap
from paravirt.hypervisor import Action
from paravirt.para.calls import ParaCalls, Refused
from paravirt.para.events import Channels
from paravirt.translator import Translator


class ParaGuest(ParaCalls):
    """What a para-virtual guest's hypervisor adds. Abstract: see `paravirt.para.modes`."""

    KERNEL_LEVEL: ClassVar[int]
    """The privilege level of the guest's kernel, as the virtual CPU numbers it."""

    def __init__(self, machine: Machine, translator: Translator, *, timed: bool = False) -> None:
        self.channels = machine.board = Channels(machine.board, machine.clock)
        self.traps = [0] * len(Trap)
        """The guest's handlers."""
        self.kernel_stack = 0
        """End of the stack for entries from user code."""
        super().__init__(machine, translator, timed=timed)
        word, window = self.CONVENTION.word, self.WINDOW
        self.channels.attach(self.shared, window.pending // word, word)
        self.shared[g.VERSION_OFFSET // word] = c.PARA_VERSION
        self._fpu_word = g.FPU_OFFSET // word
        self._flag_word = window.interrupt_state // word
        self._flag = window.enabled & window.last_address, window.disabled & window.last_address
        count = len(self.CONVENTION.frame) + len(g.TAIL)
        self._frame = struct.Struct(f"{self._order}{count}{self._letter}")
        self._plant()

    # -- what an instruction set adds -----------------------------------------------------------

    def _registers_out(self) -> tuple[int, ...]:
        """The guest's registers in the order of the frame, and its arithmetic flags."""
        raise NotImplementedError

    def _registers_in(self, values: tuple[int, ...], flags: int) -> None:
        """Load registers as a frame has them. Whatever the values, the processor stays deprivileged."""
        raise NotImplementedError

    def _at_level(self, user: bool) -> None:
        """The virtual CPU is in user code from now on, or in the kernel."""
        raise NotImplementedError

    def _enter_handler(self, handler: int, frame: int) -> None:
        """In the kernel already: begin a handler as a function whose argument and stack are the frame."""
        raise NotImplementedError

    def _explain(self, fault: ArchitecturalException) -> tuple[Trap, int, int]:
        """What an exception of the processor is to the guest: trap, detail, address."""
        raise NotImplementedError

    def _begin_again(self) -> int:
        """Where the guest goes on when a trap has been dealt with."""
        return self.vcpu.pc

    def _get(self, register: str) -> int:
        """A general register by its name in the convention."""
        raise NotImplementedError

    def _set(self, register: str, value: int) -> None:
        raise NotImplementedError

    def _floating_point(self, enabled: bool) -> None:
        """Let the real processor follow the shared word; nothing to do where it does already."""
        raise NotImplementedError

    # -- entry points ---------------------------------------------------------------------------

    def _plant(self) -> None:
        """Make the entry points in the window."""
        convention = self.CONVENTION
        entries = {convention.call_entry: self._call, convention.return_entry: self._return_by_jump}
        for address, action in entries.items():
            offset = address - self.WINDOW.base
            trap = self._trap_bytes()
            self.code.window_bytes()[offset : offset + len(trap)] = trap
            self.code.fixup_sites[address] = address
            self._entries[address] = action, self._uncounted

    _entries: dict[int, tuple[Action, list[int]]]

    def _make(self) -> None:
        self._entries = {}
        self._uncounted = [0, 0]
        super()._make()

    def _trap_bytes(self) -> bytes:
        return self.CONVENTION.trap

    def _prepare(self, pc: int) -> tuple[Action, list[int]] | None:
        entry = self._entries.get(pc)
        if entry is None:
            return super()._prepare(pc)
        self._actions[pc] = entry
        return entry

    def _call(self) -> None:
        """The guest calls. Raises the guest's exception where there is no return address."""
        convention = self.CONVENTION
        get = self._get
        known = self._calls.get(get(convention.number))
        if known is None:
            self._count(self._unknown)
            resume = self._resume()
            result: int | None = -Status.UNKNOWN_CALL
        else:
            work, count, cell = known
            self._count(cell)
            resume = self._resume()
            arguments = [get(register) for register in convention.arguments[:count]]
            result = self._do(work, arguments)
        if resume >= 0 and result is not None:
            self._leave_call(resume)
            self._set(convention.result, result & self._mask_of_word)
        if self._eager is not None and self._eager.waits:
            self._eager.follow()

    def _resume(self) -> int:
        """Where the guest goes on behind the call that it is in."""
        convention = self.CONVENTION
        if convention.link:
            return self._get(convention.link)
        word = convention.word
        return int.from_bytes(self._peek(self._get(convention.stack), word), self.byte_order)

    def _leave_call(self, resume: int) -> None:
        convention = self.CONVENTION
        if not convention.link:
            self._set(convention.stack, self._get(convention.stack) + convention.word & self._mask_of_word)
        self.vcpu.pc = resume

    # -- frames ---------------------------------------------------------------------------------

    def _trap(self, trap: Trap, detail: int, address: int) -> None:
        """Enter the guest's handler; its PC is what the frame shall have."""
        handler = self.traps[trap]
        pc = self._begin_again()
        if not handler:
            raise ProcessorShutdown(f"{trap.name} at {pc:#x}, for which the guest has set no handler")
        convention, mask = self.CONVENTION, self._mask_of_word
        user = self.vcpu.level == self.USER_LEVEL
        *registers, flags = self._registers_out()
        stack = self.kernel_stack if user else self._get(convention.stack)
        frame = (stack - convention.frame_bytes) & mask & ~15
        state = (g.STATE_USER if user else 0) | (g.STATE_INTERRUPTS if self._open() else 0)
        tail = (pc, flags, state, trap, detail & mask, address & mask)
        try:
            if not convention.link:
                back = convention.return_entry.to_bytes(convention.room, "little")
                self._poke(frame - convention.room, back + self._frame.pack(*registers, *tail))
            else:
                self._poke(frame, self._frame.pack(*registers, *tail))
        except (ArchitecturalException, Refused):
            raise ProcessorShutdown(
                f"{trap.name} at {pc:#x}: the stack at {frame:#x}, where its frame belongs, is not there"
            ) from None
        if user:
            self._at_level(False)
        self._set_open(False)
        self._enter_handler(handler, frame)
        self._set(convention.handler, frame)
        self._set(convention.stack, frame - convention.room & mask)
        if convention.link:
            self._set(convention.link, convention.return_entry)

    def _open(self) -> bool:
        """Whether events may be delivered to the guest, as its virtual PSR says."""
        return bool(self.shared[self._flag_word] == self._flag[0])

    def _set_open(self, enabled: bool) -> None:
        self.shared[self._flag_word] = self._flag[0 if enabled else 1]

    def _may_deliver(self) -> bool:
        return self._stepping is None and self._open()

    def _return(self, frame: int) -> int | None:
        """RETURN. Nothing changes where the frame cannot be read."""
        words = self._frame.unpack(self._peek(frame, self._frame.size))
        count = len(self.CONVENTION.frame)
        pc, flags, state = words[count : count + 3]
        user = bool(state & g.STATE_USER)
        self._synchronise()
        if user:
            self._at_level(True)
        self._registers_in(words[:count], flags)
        self._set_open(bool(state & g.STATE_INTERRUPTS))
        self.vcpu.pc = pc
        return None

    def _return_by_jump(self) -> None:
        """A handler has returned: its frame is on top of the stack."""
        convention = self.CONVENTION
        self._count(self._calls[Call.RETURN][2])
        stack = self._get(convention.stack)
        room = convention.room if convention.link else 0  # where the return address lay there it was taken
        if self._do(self._return, [stack + room & self._mask_of_word]) is not None:
            raise ProcessorShutdown(f"a handler returned to the frame at {stack:#x}, which is not there")
        if self._eager is not None and self._eager.waits:
            self._eager.follow()

    def _synchronise(self) -> None:
        """The shared page's floating-point word becomes the processor's."""
        self._floating_point(self.shared[self._fpu_word] != 0)

    # -- events of the processor ----------------------------------------------------------------

    def _inject(self, fault: ArchitecturalException) -> None:
        trap, detail, address = self._explain(fault)
        if trap is Trap.FLOATING_POINT and self.vcpu.level != self.USER_LEVEL and self.shared[self._fpu_word]:
            self._synchronise()  # enabled since the last entry: this one makes it so, and the instruction comes again
            return
        self._trap(trap, detail, address)

    def _take_interrupt(self) -> None:
        ports = self.channels.take()
        self._event("interrupt", ports, 0, self.vcpu.pc)
        self._trap(Trap.EVENT, ports, 0)

    def _called_by_user(self, number: int) -> None:
        """User code has called; PC is behind the instruction."""
        self.exits.count("SYSTEM_CALL", "fault")
        self._event("system call", number, 0, self.vcpu.pc)
        self._trap(Trap.SYSTEM_CALL, 0, 0)

    def _line_changed(self, level: bool) -> None:
        """The board's own lines are no business of the guest's."""

    def _cannot_deliver(self) -> None:
        """The guest enables by a store and then calls."""

    def _interrupt_waits(self) -> None:
        if self._may_deliver():
            self.engine.set_deadline(self.engine.progress + 1)

    def _device_written(self) -> None:
        self.machine.arm()
