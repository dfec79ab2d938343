"""Cases for the extensions' rows: a processor without the extension raises #UD in both modes.

Room: `emulator/isa/x86`, data for `proof_cases`. The manual says so for each of them; the bytes
are the rows' examples.
"""

from typing import Final

from emulator.isa.x86 import registers as r
from emulator.isa.x86.proof import Case, Claim, exception

_CODES: Final = {
    "VMCALL": "0f01c1",
    "VMMCALL": "0f01d9",
    "VMFUNC": "0f01d4",
    "VMXON": "f30fc730",
    "VMXOFF": "0f01c4",
    "VMLAUNCH": "0f01c2",
    "VMRESUME": "0f01c3",
    "VMCLEAR": "660fc730",
    "VMPTRLD": "0fc730",
    "VMPTRST": "0fc738",
    "VMREAD": "0f78c8",
    "VMWRITE": "0f79c1",
    "INVEPT": "660f388008",
    "INVVPID": "660f388108",
    "VMRUN": "0f01d8",
    "VMLOAD": "0f01da",
    "VMSAVE": "0f01db",
    "STGI": "0f01dc",
    "CLGI": "0f01dd",
    "SKINIT": "0f01de",
    "INVLPGA": "0f01df",
    "SEAMCALL": "660f01cf",
    "SEAMOPS": "660f01ce",
    "SEAMRET": "660f01cd",
    "TDCALL": "660f01cc",
    "PSMASH": "f30f01ff",
    "PVALIDATE": "f20f01ff",
    "RMPADJUST": "f30f01fe",
    "RMPQUERY": "f30f01fd",
    "RMPUPDATE": "f20f01fe",
    "INVLPGB": "0f01fe",
    "TLBSYNC": "0f01ff",
    "SETSSBSY": "f30f01e8",
    "CLRSSBSY": "f30fae30",
    "WRUSS": "66480f38f508",
    "GETSEC": "0f37",
    "ENCLS": "0f01cf",
    "ENCLV": "0f01c0",
    "PCONFIG": "0f01c5",
    "PBNDKB": "0f01c7",
    "LOADIWKEY": "f30f38dcca",
    "HRESET": "f30f3af0c000",
    "ENQCMDS": "f30f38f808",
}

_INVALID: Final = Claim(exception(r.VECTOR_UD))

EXTENSION_CASES: Final[dict[str, tuple[Case, ...]]] = {
    name: (Case(bytes.fromhex(code), _INVALID, _INVALID, absent=True),) for name, code in _CODES.items()
}
"""One case a row of `rows_extensions`."""
