"""What comes behind an instruction that traps is done with it, where it is sensitive and executed as it stands."""

from collections.abc import Callable

from emulator.isa.operation import Operation
from emulator.isa.x86.decode import instruction_at, row_of
from paravirt.accounting import ExitTable
from paravirt.hypervisor import Prepared
from paravirt.modes.x86.chain import LEADING, Chain

AT = 0x1000


def nothing() -> None:
    """An action."""


def chain_of(text: str, executed: Callable[[int], int] | None = None) -> Chain:
    """Of the code at AT; `executed` gives the bytes that are in its place."""
    code = bytes.fromhex(text)

    def fetch(pc: int) -> bytes:
        return code[pc - AT :][:15]

    def prepare(pc: int, found: bytes) -> Prepared | None:
        instruction = instruction_at(found, pc)
        row = row_of(instruction) if instruction is not None else None
        return None if instruction is None or row is None else Prepared(row.operation, len(instruction), nothing)

    return Chain(ExitTable(), fetch, prepare, executed or (lambda pc: code[pc - AT]))


def test_a_write_of_cr3_is_done_with_the_read_before_it() -> None:
    chain = chain_of("0f20d8 0f22d8 90")  # mov rax, cr3; mov cr3, rax
    assert Operation.READ_CONTROL_REGISTER in LEADING
    step = chain.after(AT + 3)
    assert step is not None
    assert step[0] == AT + 3
    assert chain._exits.cell("WRITE_CONTROL_REGISTER", "chained") is step[2]


def test_loads_of_segments_that_follow_one_another_are_done_together() -> None:
    chain = chain_of("8ed8 8ec0 6690 8ee0 31c0")  # mov ds, eax; mov es, eax; nop; mov fs, eax; xor eax, eax
    assert Operation.WRITE_SEGMENT_SELECTOR in LEADING
    steps = [chain.after(AT + offset) for offset in (2, 4, 8)]
    assert [step and step[0] for step in steps] == [AT + 2, AT + 6, None]


def test_what_leads_to_a_fixup_is_not_done_here() -> None:
    assert chain_of("0f22d8", executed=lambda _pc: 0xF4).after(AT) is not None
    assert chain_of("0f22d8", executed=lambda _pc: 0xE9).after(AT) is None
    assert chain_of("0f20d8", executed=lambda _pc: 0xF4).after(AT) is None, "reads have no part of it"
