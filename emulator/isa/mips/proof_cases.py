"""What running each row of the MIPS32 table must show, by the manual, and where the engine departs from it.

Room: `emulator/isa/mips`, data. A row without cases of its own is privileged: it completes in kernel mode and raises
CpU for coprocessor 0 elsewhere.
"""

from typing import Final

from emulator.engine.mips import DEBUG_BREAKPOINT
from emulator.isa.mips import registers as r
from emulator.isa.mips.proof import ARRIVES, COMPLETES, DATA, WAITS, Case, Claim, Departure, Mode, raises
from emulator.isa.sensitive import Patterns, SensitiveInstruction

_UNUSABLE = Claim(raises(r.CPU, 0))
_DONE = Claim(COMPLETES)
_RESERVED = Claim(raises(r.RI))
_LL, _SC, _ERET = 0xC082_0000, 0xE082_0000, 0x4200_0018
_MOVE_EPC = (
    0x3C05_8000,  # lui   a1, 0x8000
    0x24A5_1014,  # addiu a1, a1, 0x1014    behind the ERET: 6 words of prelude, EPC is the sixth
    0x4085_7000,  # mtc0  a1, EPC
)


def word_of(row: SensitiveInstruction) -> int:
    """One instance of the row: its first pattern with v0 as rt and a0 as base, where it leaves them free."""
    assert isinstance(row.match, Patterns)
    pattern = row.match.patterns[0]
    word = pattern.value | (0x0082_0000 & ~pattern.mask)
    if not pattern.matches(word):
        raise ValueError(f"row {row.name!r}: {word:08x} is one of its exceptions; give it a case of its own")
    return word


def cases_of(row: SensitiveInstruction) -> tuple[Case, ...]:
    """The cases of a row."""
    return _CASES.get(row.name) or (Case(word_of(row), _DONE, _UNUSABLE),)


_CASES: Final[dict[str, tuple[Case, ...]]] = {
    "ERET": (Case(_ERET, Claim(ARRIVES), _UNUSABLE, status=r.STATUS_CU1 | r.STATUS_EXL),),
    "DERET": (Case(0x4200_001F, _RESERVED, _UNUSABLE),),
    "WAIT": (Case(0x4200_0020, Claim(WAITS), _UNUSABLE),),
    "COP0 (other)": (Case(0x4200_0011, _RESERVED, _UNUSABLE),),
    "MFC0 Status": (Case(0x4002_6000, Claim(COMPLETES, r.STATUS_CU1), _UNUSABLE),),
    "MFC0 EPC": (Case(0x4002_7000, Claim(COMPLETES, 0x8000_2000), _UNUSABLE),),
    "MFC0 (other)": (Case(0x4002_B000, _DONE, _UNUSABLE),),
    "MTC0 (other)": (Case(0x4082_B000, _DONE, _UNUSABLE),),
    "DI": (Case(0x4162_6000, Claim(COMPLETES, r.STATUS_CU1 | 1), _UNUSABLE, status=r.STATUS_CU1 | 1),),
    "EI": (Case(0x4162_6020, Claim(COMPLETES, r.STATUS_CU1), _UNUSABLE),),
    "RDPGPR": (Case(0x4144_1000, _DONE, _UNUSABLE),),
    "RDHWR CPUNum": (Case(0x7C02_003B, Claim(COMPLETES, 0), _RESERVED),),
    "RDHWR SYNCI_Step": (Case(0x7C02_083B, _DONE, _RESERVED),),
    "RDHWR CC": (Case(0x7C02_103B, _DONE, _RESERVED),),
    "RDHWR CCRes": (Case(0x7C02_183B, _DONE, _RESERVED),),
    "RDHWR UserLocal": (
        Case(0x7C02_E83B, _DONE, _RESERVED),
        Case(0x7C02_E83B, _DONE, _DONE, user_local_readable=True),
    ),
    "RDHWR (other)": (Case(0x7C02_283B, _RESERVED, _RESERVED),),
    "SYNCI": (
        Case(0x049F_0000, _DONE, _DONE),
        Case(0x049F_0000, _DONE, Claim(raises(r.ADEL)), gpr={4: 0x8000_0000 + DATA}),
    ),
    "LL": (Case(_LL, Claim(COMPLETES, 0), Claim(COMPLETES, 0)),),
    "SC": (
        Case(_SC, Claim(COMPLETES, 0), Claim(COMPLETES, 0)),
        Case(_SC, Claim(COMPLETES, 1), Claim(COMPLETES, 1), before=(_LL,)),
        Case(
            _SC,
            Claim(COMPLETES, 0),
            Claim(COMPLETES, 1),
            before=(_LL,),
            kernel_before=(*_MOVE_EPC, _ERET),
            status=r.STATUS_CU1 | r.STATUS_EXL,
        ),
    ),
    "COP1": (
        Case(0x4402_0000, _DONE, _DONE),
        Case(0x4402_0000, Claim(raises(r.CPU, 1)), Claim(raises(r.CPU, 1)), status=0),
        Case(0x0000_0001, Claim(raises(r.CPU, 1)), Claim(raises(r.CPU, 1)), status=0),
    ),
    "COP2": (Case(0x4802_0000, Claim(raises(r.CPU, 2)), Claim(raises(r.CPU, 2))),),
    "SYSCALL": (Case(0xC, Claim(raises(r.SYS)), Claim(raises(r.SYS))),),
    "BREAK": (Case(0xD, Claim(raises(r.BP)), Claim(raises(r.BP))),),
    "SDBBP": (Case(0x7000_003F, Claim(raises(DEBUG_BREAKPOINT)), Claim(raises(DEBUG_BREAKPOINT))),),
    "Txx": (
        Case(0x0000_0034, Claim(raises(r.TR)), Claim(raises(r.TR))),
        Case(0x0085_0034, _DONE, _DONE),
        Case(0x0408_0000, Claim(raises(r.TR)), Claim(raises(r.TR))),
    ),
}

_NO_COPROCESSOR_2 = Departure(_RESERVED, "the engine's processor has no coprocessor 2: its instructions are reserved")
_SYNCI_ANYWHERE = Departure(_DONE, "the engine takes SYNCI for nothing, and does not look at its address")

DEPARTURES: Final[dict[tuple[str, Mode, int], Departure]] = {
    **{("COP2", mode, 0): _NO_COPROCESSOR_2 for mode in Mode},
    **{("SYNCI", mode, 1): _SYNCI_ANYWHERE for mode in (Mode.SUPERVISOR, Mode.USER)},
}
"""By row, mode and number of the case."""
