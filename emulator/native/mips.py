"""The MIPS32 reference: the guest at full privilege on the same machine, unmodified.

Room: `emulator/native`. Privileged instructions, segments and the TLB are the engine's own; exceptions are entered here
on the real coprocessor 0. Count, Compare and Random are withheld by the engine: the timer is the board's, which counts
guest progress.
"""

from __future__ import annotations

from typing import Final

from emulator.board.malta import LINE_TIMER, Malta
from emulator.board.malta_boot import EntryState
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.mips import DEBUG_BREAKPOINT, MipsEngine, MipsRegisters
from emulator.errors import UsageError
from emulator.isa.exceptions import ProcessorShutdown
from emulator.isa.mips import identity as i
from emulator.isa.mips import registers as r
from emulator.isa.mips.exceptions import deliver, interrupts_enabled, is_kernel
from emulator.isa.mips.place import Place
from emulator.machine import EndKind, Machine, Outcome
from emulator.native.cpu import Handlers, NativeCpu

_LINES: Final = 0xFC00
_STATE: Final = (
    *("EntryLo0", "EntryLo1", "Context", "PageMask", "Wired", "HWREna", "BadVAddr", "EntryHi", "Status"),
    *("IntCtl", "Cause", "EPC", "EBase", "ErrorEPC", "Index"),
)


def _register(name: str) -> property:
    """A register of coprocessor 0 as an attribute."""

    def read(cpu: MipsNativeCpu) -> int:
        return cpu.registers.cp0(name)

    def write(cpu: MipsNativeCpu, value: int) -> None:
        cpu.registers.set_cp0(name, value)

    return property(read, write)


class MipsNativeCpu(Place, NativeCpu):
    """The real processor of a reference run and its driver; a `Processor` of `emulator.isa.mips.exceptions`."""

    engine: MipsEngine
    board: Malta
    registers: MipsRegisters

    status = _register("Status")
    cause = _register("Cause")
    epc = _register("EPC")
    error_epc = _register("ErrorEPC")
    bad_v_addr = _register("BadVAddr")
    context = _register("Context")
    entry_hi = _register("EntryHi")
    int_ctl = _register("IntCtl")

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.registers = self.engine.registers
        self.gpr = self.registers.gpr
        self._replaced = self._wired = 0
        timer = self.board.timer

        def write_count(value: int) -> None:
            timer.count = value
            self._device_written()

        def write_compare(value: int) -> None:
            timer.compare = value
            self.registers.set_cp0("Compare", value)
            self._device_written()

        self.engine.withhold_counters(lambda: timer.count, write_count, write_compare, self._random, i.TLB_SIZE)
        self.board.on_interrupt = self._lines_changed

    def _handlers(self) -> Handlers:
        return {ExitKind.FAULT: self._fault, ExitKind.HALT: self._halt, ExitKind.UNBACKED: self._unbacked}

    # -- the processor --------------------------------------------------------------------------

    @property
    def pc(self) -> int:
        """Address of the next instruction."""
        return self.registers.pc

    @property
    def exception_base(self) -> int:
        """EBase without the CPU's number."""
        return self.registers.cp0("EBase") & ~0xFFF

    @property
    def level(self) -> int:
        """0 in kernel mode, 2 in user mode."""
        return 0 if is_kernel(self.status) else 2

    @property
    def state(self) -> tuple[object, ...]:
        """Everything that the guest can see of its processor, but for the TLB."""
        registers = self.registers
        return (
            tuple(self.gpr),
            (registers.restart_address, registers.hi, registers.lo, registers.user_local),
            tuple(registers.fpr),
            registers.fcsr,
            tuple(registers.cp0(name) for name in _STATE),
            (),
        )

    def enter(self, state: EntryState) -> None:
        """Set the processor up as YAMON leaves it."""
        if state.mapped:
            raise UsageError("a kernel in mapped space needs a hypervisor that fills it; leave --kaslr out")
        registers = self.registers
        self.engine.use_views(False)
        for number in range(32):
            registers.gpr[number] = 0
        for number, value in state.gpr:
            registers.gpr[number] = value
        order = i.BIG_ENDIAN if self.engine.byte_order == "big" else 0
        identity = {"PRId": i.PRID, "Config": i.CONFIG | order, "Config1": i.CONFIG1, "Config2": i.CONFIG2}
        first = {"Config3": i.CONFIG3, "IntCtl": i.INT_CTL, "EBase": i.EBASE, "HWREna": 0, "Cause": 0, "Status": 0}
        first |= dict.fromkeys(("BadVAddr", "Context", "EntryHi"), 0)  # an engine tries itself when it opens
        for name, value in (identity | first).items():
            registers.set_cp0(name, value)
        registers.jump(state.pc)

    def _random(self, replaces: bool) -> int:
        """The entry that TLBWR replaces: from the last one down to Wired."""
        wired = self.registers.cp0("Wired") % i.TLB_SIZE
        if wired != self._wired:
            self._wired, self._replaced = wired, 0
        entry = i.TLB_SIZE - 1 - self._replaced % (i.TLB_SIZE - wired)
        self._replaced += replaces
        return entry

    # -- exceptions -----------------------------------------------------------------------------

    def _lines_changed(self, _level: bool) -> None:
        lines = self.board.lines
        kept = self.cause & ~(_LINES | r.CAUSE_TI)
        self.cause = kept | lines << 8 | (r.CAUSE_TI if lines & LINE_TIMER else 0)

    def _budget(self, exit_: Exit) -> None:
        super()._budget(exit_)
        if not self.board.intr:  # an interrupt that software requested
            self._offer_interrupt()

    def _offer_interrupt(self) -> None:
        if not interrupts_enabled(self.status, self.cause):
            return  # the engine comes back when they are
        self._event("interrupt", self.cause >> 8 & 0xFF, 0, self.restart_address)
        deliver(self, r.INT)

    def _fault(self, exit_: Exit) -> None:
        code = exit_.vector
        if code == DEBUG_BREAKPOINT:
            raise ProcessorShutdown(f"SDBBP at {self.pc:#x} enters Debug Mode, and no debugger is there")
        self._event("exception", code, exit_.error, self.pc, exit_.address)
        deliver(self, code, exit_.error, exit_.address)

    def _halt(self, _exit: Exit) -> None:
        if not self.status & r.STATUS_IE:
            self.end(Outcome(EndKind.HALTED, detail="halted with interrupts disabled"))
            return
        self._wait_for_interrupt()

    def _unbacked(self, exit_: Exit) -> None:
        self._event("exception", r.DBE, 0, self.pc)
        deliver(self, r.DBE)
