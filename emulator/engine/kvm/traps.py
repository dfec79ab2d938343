"""What a trap was: from the handler that the processor halted in, and the frame that it pushed, to an `Exit`.

Room: `emulator/engine/kvm`. Here the forms that an event takes on different hosts become one: INT n by its closed gate
or as an undefined instruction, SYSCALL by a HLT at level 0 or by a page fault at its target.
"""

import struct
from typing import Final

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.kvm import api, room
from emulator.engine.kvm.device import Vm
from emulator.engine.kvm.findings import Findings
from emulator.engine.kvm.registers import KvmRegisters
from emulator.engine.kvm.room import Room
from emulator.engine.kvm.tables import read_code
from emulator.errors import GuestFault
from emulator.isa.x86 import registers as r

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_IOPL: Final = r.FLAG_IOPL
_NOT_RF_IOPL: Final = _MASK ^ r.FLAG_RF ^ _IOPL
_USERS: Final = r.FLAGS_STATUS | r.FLAG_DF | r.FLAG_TF | r.FLAG_NT | r.FLAG_AC | r.FLAG_ID
"""Flags that user code can change by itself."""
_HANDLERS, _HANDLERS_END = room.HANDLERS, room.HANDLERS_END
_DE, _DB, _BP, _UD, _GP, _PF = 0, 1, 3, 6, 13, 14
_BY_TABLE: Final = 7
_FROM_IDT: Final = 2
"""Lowest bits of the error code of an INT n that its gate refuses."""
_OF_32_BITS: Final = {0xCC: _BP, 0xCE: 4}
"""INT3, and INTO, which is undefined only while the overflow flag is set: the vectors that they ask for."""
_TARGETS: Final = (room.SYSTEM_CALL, room.SYSTEM_CALL_32)
_STEPPED: Final = 1 << 14
_LONG_CODE: Final = 1 << 21
_FLAT_DATA: Final = 0x00CF_F300_0000_FFFF
_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")

_unpack, _pack = struct.Struct("<17Q").unpack_from, struct.Struct("<16Q").pack_into


class Traps:
    """Reads the traps of one processor into its registers and `exit`."""

    def __init__(self, vm: Vm, own: Room, registers: KvmRegisters, findings: Findings) -> None:
        self.exit = Exit()
        self._vm, self._room, self._registers, self._findings = vm, own, registers, findings
        view = memoryview(vm.run).cast("B")[:4096]
        self._bytes, self._words = view, view.cast("Q")
        self._gpr = registers.gpr
        self._frame = own.words
        self._top = own.frame
        registers.select = self._segment_for

    def read(self) -> None:
        """The processor halted: say where the guest is in the registers, and why in `exit`. The hot path."""
        registers, words, frame, exit_ = self._registers, self._words, self._frame, self.exit
        a, b, c, d, si, di, sp, bp, r8, r9, r10, r11, r12, r13, r14, r15, rip = _unpack(self._bytes, api.B_REGISTERS)
        gpr, top = self._gpr, self._top
        if not _HANDLERS <= rip < _HANDLERS_END:
            _pack(gpr, 0, a, c, d, b, sp, bp, si, di, r8, r9, r10, r11, r12, r13, r14, r15)
            self._called(rip, words[api.W_RFLAGS])
            return
        _pack(gpr, 0, a, c, d, b, frame[top - 2], bp, si, di, r8, r9, r10, r11, r12, r13, r14, r15)
        registers.rip = frame[top - 5]
        # User code cannot change its I/O privilege level, and there are hosts whose frames do not show it.
        registers.rflags = frame[top - 3] & _NOT_RF_IOPL | registers.rflags & _IOPL
        if frame[top - 4] != registers.code_selector:
            registers.loaded(r.CS, frame[top - 4])
        if frame[top - 1] != registers.stack_selector:
            registers.loaded(r.SS, frame[top - 1])
        exit_.kind = ExitKind.FAULT
        exit_.vector = vector = (rip - _HANDLERS) >> 4
        exit_.error = error = frame[top - 6]
        if vector == _PF:
            exit_.address = registers.cr2 = address = words[api.W_CR2]
            if registers.rip == address and address in _TARGETS:
                self._system_call(registers.rflags)
        elif vector == _GP:
            if error & _BY_TABLE == _FROM_IDT:
                self._software(error >> 3)
            elif registers.rip == room.CALL_RARE:
                self._system_call(registers.rflags)
        elif vector <= _UD:
            self._rare(vector)

    def _called(self, rip: int, flags: int) -> None:
        """A HLT outside the handlers: SYSCALL reached its target at level 0."""
        if rip - 1 not in _TARGETS:
            raise GuestFault(f"the engine lost the guest: the processor halted at {rip:#x}")
        self._system_call(flags)

    def _system_call(self, flags: int) -> None:
        """SYSCALL left RIP behind it in RCX and RFLAGS in R11.

        Where it does not leave level 3, a guest may as well have jumped to its target: then it has made a system call
        from where RCX says, and with no flag that it could not have set.
        """
        registers, gpr, exit_ = self._registers, self._gpr, self.exit
        registers.rip = gpr[r.RCX] - 2 & _MASK
        registers.rflags = gpr[r.R11] & _USERS | flags & (r.FLAG_IF | r.FLAG_IOPL) | r.FLAG_FIXED
        exit_.kind, exit_.length = ExitKind.SYSTEM_CALL, 2

    def _software(self, vector: int) -> None:
        """INT n, at the instruction."""
        exit_ = self.exit
        exit_.kind, exit_.vector, exit_.length = ExitKind.SOFTWARE_INTERRUPT, vector, 2
        if vector == _BP and self.code()[:1] == b"\xcc":
            exit_.length = 1

    def _rare(self, vector: int) -> None:
        """#DE, #DB, #BP and #UD, which may stand for something else."""
        registers, exit_, found = self._registers, self.exit, self._findings
        if vector == _DE and registers.rip == room.CALL_SITE:
            self._system_call(registers.rflags)
        if vector == _BP:
            length = 1 if self.code(-1)[:1] == b"\xcc" else 2
            registers.rip = registers.rip - length & _MASK
            exit_.kind, exit_.length = ExitKind.SOFTWARE_INTERRUPT, length
        elif vector == _DB and found.int1_at_instruction and self.code()[:1] == b"\xf1":
            self._behind_int1()
        elif vector == _UD:
            self._undefined()

    def _behind_int1(self) -> None:
        """#DB at an INT1: by it, or by a step that ended here."""
        registers = self._registers
        status = registers.debug(6)
        if registers.trap_flag and status & _STEPPED:
            registers.set_debug_status(status & ~(_STEPPED))
        else:
            registers.advance(1)

    def _undefined(self) -> None:
        """#UD: INT n where KVM delivers none, INT3 and INTO of 32-bit code that it interprets, or a fetch from where no
        memory is."""
        code, exit_ = self.code(), self.exit
        if not code:
            exit_.kind, exit_.address = ExitKind.UNBACKED, self._registers.rip
            return
        start = next((at for at, byte in enumerate(code) if byte not in _PREFIXES and byte & 0xF0 != 0x40), 0)
        if code[start] == 0xCD and len(code) > start + 1:
            exit_.kind, exit_.vector, exit_.length = ExitKind.SOFTWARE_INTERRUPT, code[start + 1], start + 2
        elif code[start] in _OF_32_BITS and not self._registers.segment(r.CS)[3] & _LONG_CODE:
            exit_.kind, exit_.vector, exit_.length = ExitKind.SOFTWARE_INTERRUPT, _OF_32_BITS[code[start]], start + 1

    def code(self, offset: int = 0) -> bytes:
        """The bytes at RIP, or so many behind it, as the processor fetches them."""
        rip, (_, base, _, attributes) = self._registers.rip + offset & _MASK, self._registers.segment(r.CS)
        linear = rip if attributes & _LONG_CODE else rip + base & 0xFFFF_FFFF
        return read_code(self._vm, self._words[api.W_CR3], linear)

    def _segment_for(self, index: int, selector: int) -> tuple[int, int, int, int]:
        """The segment that the guest itself loaded by a selector, from what it is shown."""
        # What is not in the table and was taken all the same is the host's own data segment, which is flat.
        descriptor = self._room.descriptor(selector) or (_FLAT_DATA if selector & 0xFFFC else 0)
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
        attributes = descriptor >> 32 & 0xF0_FF00
        if attributes & 1 << 23:
            limit = limit << 12 | 0xFFF
        base = descriptor >> 16 & 0xFF_FFFF | descriptor >> 32 & 0xFF00_0000
        return selector, base, limit, attributes
