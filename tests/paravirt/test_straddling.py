"""An instruction that reaches into the next page and reads or writes that page needs it executable and accessible."""

from __future__ import annotations

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.board.linux_boot import EntryState
from emulator.machine import EndKind, Limits, Machine
from paravirt.modes.x86.hypervisor import X86Hypervisor

TABLES, NEXT = 0x10000, 0x41000
START = NEXT - 3
DATA = NEXT + 0x10


@pytest.mark.parametrize("opcode", [b"\x8a\x05", b"\x88\x05"], ids=["read", "write"])
@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_an_instruction_across_a_page_border_reaches_the_page_it_ends_in(mode: str, opcode: bytes) -> None:
    machine = Machine(4 << 20, lambda _data: None, limits=Limits(host_seconds=20))
    memory, words = machine.memory.view, machine.memory.words
    words[TABLES >> 3] = TABLES + 0x1000 | 7
    words[TABLES + 0x1000 >> 3] = TABLES + 0x2000 | 7
    words[TABLES + 0x2000 >> 3] = 0xE7  # 2 MiB, writable, accessed, dirty
    code = opcode + (DATA - START - 6).to_bytes(4, "little") + b"\xf4"
    memory[START : START + len(code)] = code
    memory[DATA] = 0x5A
    hypervisor = X86Hypervisor(machine, LoadTimeTranslator(mode))
    try:
        hypervisor.enter(EntryState(rip=START, rsi=0, rsp=0x8000, cr3=TABLES, gdt_base=0, gdt_limit=0))
        hypervisor.vcpu.gpr[0] = 0xA5
        outcome = hypervisor.run()
        assert outcome.kind is EndKind.HALTED
        assert hypervisor.vcpu.rip == START + len(code)
        assert (hypervisor.vcpu.gpr[0] & 0xFF, memory[DATA]) == (
            (0x5A, 0x5A) if opcode == b"\x8a\x05" else (0xA5, 0xA5)
        )
    finally:
        machine.close()
