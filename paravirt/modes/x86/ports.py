"""Ports, time and identity of an x86 guest: what needs an exit, what is kept for later, and what fixups read instead.

Room: `paravirt/modes/x86`, a part of the hypervisor. Whether an access is the guest's to make is looked at here, and
what the device does is the board's.
"""

from typing import cast

from emulator.board.pc import COM1, POST
from emulator.devices.ns16550 import LSR
from emulator.engine.exit import Exit
from emulator.engine.protocol import Capabilities
from emulator.engine.x86 import AnsweringEngine
from emulator.isa.operation import Operation
from emulator.isa.x86.segments import port_permitted
from paravirt.modes import DEAR, without_exit
from paravirt.modes.x86.copies import QuietPort, ShownTime
from paravirt.modes.x86.requests import X86Requests
from paravirt.operations.x86 import perform_identify


class X86Ports(X86Requests):
    """Of the hypervisor of an x86 guest, what answers IN, OUT, CPUID and RDTSC."""

    def _make_ports(self, able: Capabilities) -> None:
        self._port_reads = self.exits.cell("READ_PORT", "exit")
        self._port_writes = self.exits.cell("WRITE_PORT", "exit")
        self._late_writes = self.exits.cell("WRITE_PORT", "late")
        self._show_copies(able)

    def _show_copies(self, able: Capabilities) -> None:
        """What fixups read, of operations that they do without an exit."""
        operations = without_exit(able)
        self.vcpu.copies_selectors = Operation.READ_SEGMENT_SELECTOR in operations
        self._shown_time = None
        if Operation.READ_TIME_STAMP in operations:
            self._shown_time = ShownTime(self.engine, self.machine.clock, self.shared)
            self._shown_time.look()
        if Operation.READ_PORT in operations:
            QuietPort(self.board, self.shared, self._within_fixup)

    def _within_fixup(self) -> bool:
        """Whether the guest stands in a fixup: one that reads several words of the shared page must find them as they
        were when it read the first."""
        return self._in_fixup(self.vcpu.rip)

    def _open_ports(self) -> None:
        """Have the engine know which accesses to ports need no exit of their own."""
        self.engine.open_ports()
        more = self.board.posted_if_dear if self.engine.capabilities.exit_cost >= DEAR else ()
        self.engine.post_ports((*self.board.posted, *more), self._late_bytes)
        if self.engine.capabilities.answers_ports:
            self._watch_serial(cast(AnsweringEngine, self.engine))

    def _watch_serial(self, engine: AnsweringEngine) -> None:
        """Have the accesses to the serial port of which nothing else comes than the output done without an exit."""

        def quiet(status: int, posts: bool) -> None:
            engine.answer_port(COM1 + LSR, status, COM1)
            engine.post_port(COM1, posts)

        engine.post_port(POST, True)
        self.board.com1.watch_quiet(quiet)

    def _port_read(self, exit_: Exit) -> None:
        if self.vcpu.level > self.vcpu.iopl and not port_permitted(self.vcpu, exit_.port, exit_.size):
            exit_.refused = True
            return
        self._count(self._port_reads)
        exit_.value = self.board.ports.read(exit_.port, exit_.size)

    def _port_write(self, exit_: Exit) -> None:
        # What comes late was permitted: to the kernel, which may have been entered without an exit.
        asked = self.vcpu.level > self.vcpu.iopl and not exit_.late
        if asked and not port_permitted(self.vcpu, exit_.port, exit_.size):
            exit_.refused = True
            return
        self._count(self._late_writes if exit_.late else self._port_writes)
        self.write_port(exit_.port, exit_.size, exit_.value)

    def _late_bytes(self, port: int, data: bytes) -> bool:
        """Bytes that came late and in a row, as a console's do: all at once, if nobody looks at each."""
        watched = self.observe is not None or self.trace is not None or self.around is not None
        if watched or not self.board.ports.write_all(port, data):
            return False
        self._count(self._late_writes)
        self._late_writes[0] += len(data) - 1
        self._device_written()
        return True

    def _identify(self, _exit: Exit) -> None:
        self.exits.count("IDENTIFY_PROCESSOR", "exit")
        perform_identify(self.vcpu)

    def _time_stamp(self, _exit: Exit) -> None:
        self.exits.count("READ_TIME_STAMP", "exit")
        value, gpr = self.time_stamp(), self.vcpu.gpr
        gpr[0], gpr[2] = value & 0xFFFF_FFFF, value >> 32

    def _budget(self, exit_: Exit) -> None:
        super()._budget(exit_)
        if self._shown_time is not None and not self._within_fixup():
            self._shown_time.look()
