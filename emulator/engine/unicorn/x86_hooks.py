"""What Unicorn calls an x86 engine back for: each hook becomes an `Exit`, and the handler's answer an end of the hook.

Room: `emulator/engine/unicorn`, a part of the engine. The handler runs inside Unicorn's own loop, which goes on when it
returns. No exception crosses Unicorn's frames, and an instruction that is refused is undone once Unicorn has come back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

from emulator.engine.exit import SYSCALL, SYSENTER, Exit, ExitKind
from emulator.engine.protocol import Handler
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn import state
from emulator.engine.unicorn.counter import BlockCounter
from emulator.engine.unicorn.native import Native
from emulator.engine.unicorn.observation import Observed
from emulator.engine.unicorn.ports import QuietPorts
from emulator.engine.unicorn.state import UnicornRegisters
from emulator.engine.unicorn.status import ignore
from emulator.engine.unicorn.timestamp import TimeStamp

NO_MEMORY: Final = 1 << 51
"""Physical address of a page table of the engine's own that maps nothing: no entry of a table can point to it."""
_BREAKPOINT, _OVERFLOW = 3, 4
_CS = 1
_UD, _GP = 6, 13


class X86Hooks(Observed, Native):
    """Of the engine for x86, what Unicorn calls; what it works on is made by `UnicornEngine`."""

    registers: UnicornRegisters
    _exit: Exit
    """The one exit that is handed up, whatever it is."""
    _handler: Handler
    _failure: BaseException | None
    """What the handler raised, until `run` raises it."""
    _refused: int | None
    """Vector of the exception by which the instruction under way is refused."""
    _context: ctypes.c_void_p
    """Unicorn's registers at the instruction that is refused."""
    _byte: ctypes.Array[ctypes.c_ubyte]
    _ports: QuietPorts
    _ports_enabled: bool
    _stamps: TimeStamp
    _counter: BlockCounter
    _inside: bool
    """The handler is called from within a basic block, which goes on afterwards."""

    def _install_hooks(self) -> None:
        """Register one callback for each way an event can arrive."""
        self._hook(lib.HOOK_INTR, lib.FaultCallback(self._make_fault_callback()))
        self._hook(lib.HOOK_INSN_INVALID, lib.InvalidCallback(self._on_invalid))
        ports = self._ports
        self._hook(lib.HOOK_INSN, ctypes.c_void_p(ports.on_read), lib.INS_IN, ports.argument)
        self._hook(lib.HOOK_INSN, ctypes.c_void_p(ports.on_write), lib.INS_OUT, ports.argument)
        self._hook(lib.HOOK_INSN, lib.SystemCallCallback(self._on_system_call), lib.INS_SYSCALL)
        self._hook(lib.HOOK_INSN, lib.SystemCallCallback(self._on_system_enter), lib.INS_SYSENTER)
        self._hook(lib.HOOK_INSN, lib.SkipCallback(self._on_identify), lib.INS_CPUID)
        self._hook(lib.HOOK_INSN, ctypes.c_void_p(self._stamps.callback), lib.INS_RDTSC, self._stamps.argument)
        self._hook(lib.HOOK_INSN, lib.SkipCallback(self._on_time_stamp_and_processor), lib.INS_RDTSCP)
        self._hook(lib.HOOK_BLOCK, ctypes.c_void_p(self._counter.callback), user=self._counter.argument)

    def _make_fault_callback(self) -> Callable[[int, int, int], None]:
        """The hot path: a closure over everything it touches."""
        exit_, registers = self._exit, self.registers
        words, signed = registers.words, registers.signed
        old, event, rip, behind, cr2 = state.I_OLD, state.W_EVENT, state.W_RIP, state.W_NEXT_RIP, state.W_CR2
        fault, software = ExitKind.FAULT, ExitKind.SOFTWARE_INTERRUPT

        def on_fault(_engine: int, vector: int, _user: int) -> None:
            try:
                signed[old] = -1
                error = words[event]
                if error >> 32:
                    exit_.kind = software
                    exit_.vector = vector
                    exit_.length = length = self._interrupt_length(vector)
                    words[rip] = (words[behind] - length) & 0xFFFF_FFFF_FFFF_FFFF
                else:
                    exit_.kind = fault
                    exit_.vector = vector
                    exit_.error = error
                    if vector == 14:
                        exit_.address = words[cr2]
                self._handler(exit_)
            except BaseException as failure:
                self._fail(failure)

        return on_fault

    def _interrupt_length(self, vector: int) -> int:
        """Length of the INT that was just executed: INT3 and INTO have an opcode of one byte. RIP is behind it
        already, and prefixes in front of it are not to be told from other instructions."""
        if vector not in (_BREAKPOINT, _OVERFLOW):
            return 2
        registers = self.registers
        last = (registers.segment_base(_CS) + registers.next_rip - 1) & 0xFFFF_FFFF_FFFF_FFFF
        status = self.library.uc_vmem_read(self.handle, last, lib.PROT_EXEC, self._byte, 1)
        return 2 if status == 0 and self._byte[0] == vector else 1

    def _on_invalid(self, _engine: int, _user: int) -> int:
        try:
            self.registers.forget_exception()
            exit_ = self._exit
            exit_.kind, exit_.vector, exit_.error = ExitKind.FAULT, _UD, 0
            self._handler(exit_)
        except BaseException as error:
            self._fail(error)
        return 1

    def _on_port_read(self, _engine: int, port: int, size: int, _user: int) -> int:
        exit_ = self._exit
        try:
            exit_.kind, exit_.port, exit_.size, exit_.value = ExitKind.PORT_READ, port, size, 0
            self._port(exit_)
        except BaseException as error:
            self._fail(error)
        return exit_.value & 0xFFFF_FFFF

    def _on_port_write(self, _engine: int, port: int, size: int, value: int, _user: int) -> None:
        exit_ = self._exit
        try:
            exit_.kind, exit_.port, exit_.size, exit_.value = ExitKind.PORT_WRITE, port, size, value
            self._port(exit_)
        except BaseException as error:
            self._fail(error)

    def _port(self, exit_: Exit) -> None:
        """Hand up a port access; when the handler refuses it, the instruction shall fault."""
        exit_.refused = False
        self._inside = True
        self._handler(exit_)
        self._inside = False
        if exit_.refused:
            self._refuse(_GP)

    def _refuse(self, vector: int) -> None:
        """Have the instruction under way raise an exception instead.

        Unicorn goes on to the end of the basic block, whatever a hook wants: the registers are put back afterwards,
        and until then no address is mapped, so that no store is done.
        """
        library, handle = self.library, self.handle
        self._refused, self._handler = vector, ignore
        self._ports_enabled = self._ports.enable(False)
        library.uc_context_save(handle, self._context)
        self.registers.poke_root(NO_MEMORY)
        library.uc_ctl(handle, lib.CONTROL_FLUSH_TLB)
        library.uc_emu_stop(handle)

    def _on_system_call(self, _engine: int, _user: int) -> None:
        """RIP is at SYSCALL and Unicorn adds 2 to whatever the handler leaves."""
        registers = self.registers
        try:
            exit_ = self._exit
            exit_.kind, exit_.length, exit_.vector = ExitKind.SYSTEM_CALL, 2, SYSCALL
            self._handler(exit_)
        except BaseException as error:
            self._fail(error)
        registers.rip = (registers.rip - 2) & 0xFFFF_FFFF_FFFF_FFFF

    def _on_system_enter(self, _engine: int, _user: int) -> None:
        """In 64-bit mode SYSENTER is no instruction of the processor shown to guests: #UD."""
        registers = self.registers
        try:
            exit_ = self._exit
            if registers.in_64_bit_mode:
                exit_.kind, exit_.vector, exit_.error = ExitKind.FAULT, _UD, 0
            else:
                exit_.kind, exit_.length, exit_.vector = ExitKind.SYSTEM_CALL, 2, SYSENTER
            self._handler(exit_)
        except BaseException as error:
            self._fail(error)
        registers.rip = (registers.rip - 2) & 0xFFFF_FFFF_FFFF_FFFF

    def _on_identify(self, _engine: int, _user: int) -> int:
        exit_ = self._exit
        exit_.refused = False
        skipped = self._skip(ExitKind.IDENTIFY)
        if exit_.refused:
            exit_.refused = False
            self._refuse(_GP)
        return skipped

    def _on_time_stamp(self, _engine: int, _user: int) -> int:
        return self._skip(ExitKind.TIME_STAMP)

    def _on_time_stamp_and_processor(self, _engine: int, _user: int) -> int:
        """RDTSCP is no instruction of the processor shown to guests, as CPUID says: #UD."""
        if self._handler is not ignore:
            self._refuse(_UD)
        return 1

    def _skip(self, kind: ExitKind) -> int:
        """Hand up an instruction that the engine steps over afterwards."""
        try:
            self._exit.kind, self._exit.length = kind, 2
            self._inside = True
            self._handler(self._exit)
            self._inside = False
        except BaseException as error:
            self._fail(error)
        return 1

    # -- failures -------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """An exception must not cross the C frames: keep it for `run`, and stop."""
        self._inside = False
        if self._failure is None:
            self._failure = error
        self._handler = ignore
        self.library.uc_emu_stop(self.handle)
