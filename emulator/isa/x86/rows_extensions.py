"""Rows of x86 for virtualisation, shadow stacks, enclaves and other platform extensions.

Room: `emulator/isa/x86`, data. All of them are privileged or end in the hypervisor; a virtual
processor that does not offer the extension answers #UD, as a real one without it does. "SDM" is
Intel's manual, volume 2 unless it says 3; "APM" is AMD's, volume 3.
"""

from typing import Final

from iced_x86 import Code

from emulator.isa.operation import Operation
from emulator.isa.x86.row import BEHAVIOUR, CONTROL, TRAP, TRAPS, Family, row

_OUTSIDE_VMX: Final = "Outside VMX operation it raises #UD at every level."
_OUTSIDE_SVM: Final = "With EFER.SVME = 0 it raises #UD at every level."


def _privileged(
    name: str,
    codes: tuple[int, ...],
    operation: Operation,
    example: str,
    manual: str,
    condition: str = "",
    note: str = "",
    example32: str = "",
) -> Family:
    """A row of a privileged, control-sensitive instruction that only traps."""
    return row(name, codes, TRAPS, CONTROL, operation, TRAP, example, manual, condition, note, example32)


_VIRTUALISATION: Final = (
    _privileged(
        "VMCALL",
        (Code.VMCALL,),
        Operation.ENTER_HYPERVISOR,
        "vmcall",
        "SDM 3C VMCALL",
        "outside VMX operation, where it raises #UD at every level",
        "Under a hypervisor it leaves to that hypervisor from any level, and not to ours: hence planted.",
    ),
    _privileged(
        "VMMCALL",
        (Code.VMMCALL, Code.VMGEXIT, Code.VMGEXIT_F2),
        Operation.ENTER_HYPERVISOR,
        "vmmcall",
        "APM VMMCALL",
        "where no hypervisor intercepts it: #UD at every level",
        "As VMCALL. VMGEXIT is its prefixed form.",
    ),
    _privileged(
        "VMFUNC",
        (Code.VMFUNC,),
        Operation.ENTER_HYPERVISOR,
        "vmfunc",
        "SDM 3C VMFUNC",
        "outside VMX non-root operation, where it raises #UD at every level",
        "In VMX non-root operation it needs no privilege: hence planted.",
    ),
    _privileged(
        "VMXON",
        (Code.VMXON_M64,),
        Operation.ENTER_HYPERVISOR,
        "vmxon [rax]",
        "SDM 3C VMXON",
        note="With CR4.VMXE = 0 it raises #UD at every level.",
    ),
    _privileged("VMXOFF", (Code.VMXOFF,), Operation.ENTER_HYPERVISOR, "vmxoff", "SDM 3C VMXOFF", note=_OUTSIDE_VMX),
    _privileged(
        "VMLAUNCH",
        (Code.VMLAUNCH,),
        Operation.ENTER_HYPERVISOR,
        "vmlaunch",
        "SDM 3C VMLAUNCH/VMRESUME",
        note=_OUTSIDE_VMX,
    ),
    _privileged(
        "VMRESUME",
        (Code.VMRESUME,),
        Operation.ENTER_HYPERVISOR,
        "vmresume",
        "SDM 3C VMLAUNCH/VMRESUME",
        note=_OUTSIDE_VMX,
    ),
    _privileged(
        "VMCLEAR", (Code.VMCLEAR_M64,), Operation.ENTER_HYPERVISOR, "vmclear [rax]", "SDM 3C VMCLEAR", note=_OUTSIDE_VMX
    ),
    _privileged(
        "VMPTRLD", (Code.VMPTRLD_M64,), Operation.ENTER_HYPERVISOR, "vmptrld [rax]", "SDM 3C VMPTRLD", note=_OUTSIDE_VMX
    ),
    _privileged(
        "VMPTRST", (Code.VMPTRST_M64,), Operation.ENTER_HYPERVISOR, "vmptrst [rax]", "SDM 3C VMPTRST", note=_OUTSIDE_VMX
    ),
    _privileged(
        "VMREAD",
        (
            Code.VMREAD_RM32_R32,
            Code.VMREAD_RM64_R64,
        ),
        Operation.ENTER_HYPERVISOR,
        "vmread rax, rcx",
        "SDM 3C VMREAD",
        note=_OUTSIDE_VMX,
    ),
    _privileged(
        "VMWRITE",
        (
            Code.VMWRITE_R32_RM32,
            Code.VMWRITE_R64_RM64,
        ),
        Operation.ENTER_HYPERVISOR,
        "vmwrite rax, rcx",
        "SDM 3C VMWRITE",
        note=_OUTSIDE_VMX,
    ),
    _privileged(
        "INVEPT",
        (
            Code.INVEPT_R32_M128,
            Code.INVEPT_R64_M128,
        ),
        Operation.ENTER_HYPERVISOR,
        "invept rcx, [rax]",
        "SDM 3C INVEPT",
        note=_OUTSIDE_VMX,
    ),
    _privileged(
        "INVVPID",
        (
            Code.INVVPID_R32_M128,
            Code.INVVPID_R64_M128,
        ),
        Operation.ENTER_HYPERVISOR,
        "invvpid rcx, [rax]",
        "SDM 3C INVVPID",
        note=_OUTSIDE_VMX,
    ),
    _privileged(
        "VMRUN",
        (Code.VMRUNW, Code.VMRUND, Code.VMRUNQ),
        Operation.ENTER_HYPERVISOR,
        "vmrun",
        "APM VMRUN",
        note=_OUTSIDE_SVM,
    ),
    _privileged(
        "VMLOAD",
        (Code.VMLOADW, Code.VMLOADD, Code.VMLOADQ),
        Operation.ENTER_HYPERVISOR,
        "vmload",
        "APM VMLOAD",
        note=_OUTSIDE_SVM,
    ),
    _privileged(
        "VMSAVE",
        (Code.VMSAVEW, Code.VMSAVED, Code.VMSAVEQ),
        Operation.ENTER_HYPERVISOR,
        "vmsave",
        "APM VMSAVE",
        note=_OUTSIDE_SVM,
    ),
    _privileged("STGI", (Code.STGI,), Operation.ENTER_HYPERVISOR, "stgi", "APM STGI", note=_OUTSIDE_SVM),
    _privileged("CLGI", (Code.CLGI,), Operation.ENTER_HYPERVISOR, "clgi", "APM CLGI", note=_OUTSIDE_SVM),
    _privileged("SKINIT", (Code.SKINIT,), Operation.ENTER_HYPERVISOR, "skinit", "APM SKINIT", note=_OUTSIDE_SVM),
    _privileged(
        "INVLPGA",
        (Code.INVLPGAW, Code.INVLPGAD, Code.INVLPGAQ),
        Operation.ENTER_HYPERVISOR,
        "invlpga",
        "APM INVLPGA",
        note=_OUTSIDE_SVM,
    ),
    _privileged("SEAMCALL", (Code.SEAMCALL,), Operation.ENTER_HYPERVISOR, "seamcall", "Intel TDX ABI SEAMCALL"),
    _privileged("SEAMOPS", (Code.SEAMOPS,), Operation.ENTER_HYPERVISOR, "seamops", "Intel TDX ABI SEAMOPS"),
    _privileged("SEAMRET", (Code.SEAMRET,), Operation.ENTER_HYPERVISOR, "seamret", "Intel TDX ABI SEAMRET"),
    _privileged("TDCALL", (Code.TDCALL,), Operation.ENTER_HYPERVISOR, "tdcall", "Intel TDX ABI TDCALL"),
    _privileged("PSMASH", (Code.PSMASH,), Operation.ENTER_HYPERVISOR, "psmash", "APM PSMASH"),
    _privileged(
        "PVALIDATE",
        (Code.PVALIDATEW, Code.PVALIDATED, Code.PVALIDATEQ),
        Operation.ENTER_HYPERVISOR,
        "pvalidate",
        "APM PVALIDATE",
    ),
    _privileged("RMPADJUST", (Code.RMPADJUST,), Operation.ENTER_HYPERVISOR, "rmpadjust", "APM RMPADJUST"),
    row(
        "RMPQUERY",
        (Code.RMPQUERY,),
        TRAPS,
        BEHAVIOUR,
        Operation.ENTER_HYPERVISOR,
        TRAP,
        "rmpquery",
        "APM RMPQUERY",
    ),
    _privileged("RMPUPDATE", (Code.RMPUPDATE,), Operation.ENTER_HYPERVISOR, "rmpupdate", "APM RMPUPDATE"),
)

_TRANSLATIONS: Final = (
    _privileged(
        "INVLPGB", (Code.INVLPGBW, Code.INVLPGBD, Code.INVLPGBQ), Operation.INVALIDATE_PAGE, "invlpgb", "APM INVLPGB"
    ),
    _privileged("TLBSYNC", (Code.TLBSYNC,), Operation.INVALIDATE_CONTEXT, "tlbsync", "APM TLBSYNC"),
)

_SHADOW_STACKS: Final = (
    _privileged(
        "SETSSBSY",
        (Code.SETSSBSY,),
        Operation.MANAGE_SHADOW_STACK,
        "setssbsy",
        "SDM SETSSBSY",
        note="With CR4.CET = 0 it raises #UD at every level.",
    ),
    _privileged(
        "CLRSSBSY",
        (Code.CLRSSBSY_M64,),
        Operation.MANAGE_SHADOW_STACK,
        "clrssbsy [rax]",
        "SDM CLRSSBSY",
        note="With CR4.CET = 0 it raises #UD at every level.",
    ),
    _privileged(
        "WRUSS",
        (Code.WRUSSD_M32_R32, Code.WRUSSQ_M64_R64),
        Operation.MANAGE_SHADOW_STACK,
        "wrussq [rax], rcx",
        "SDM WRUSSD/WRUSSQ",
        example32="wrussd [eax], ecx",
        note="With CR4.CET = 0 it raises #UD at every level.",
    ),
)

_PLATFORM: Final = (
    _privileged(
        "GETSEC",
        (Code.GETSECD, Code.GETSECQ),
        Operation.CONTROL_PLATFORM,
        "getsec",
        "SDM 2D GETSEC",
        note="With CR4.SMXE = 0 it raises #UD at every level.",
    ),
    _privileged("ENCLS", (Code.ENCLS,), Operation.CONTROL_PLATFORM, "encls", "SDM 3D ENCLS"),
    _privileged("ENCLV", (Code.ENCLV,), Operation.CONTROL_PLATFORM, "enclv", "SDM 3D ENCLV"),
    _privileged("PCONFIG", (Code.PCONFIG,), Operation.CONTROL_PLATFORM, "pconfig", "SDM PCONFIG"),
    _privileged("PBNDKB", (Code.PBNDKB,), Operation.CONTROL_PLATFORM, "pbndkb", "SDM PBNDKB"),
    _privileged(
        "LOADIWKEY", (Code.LOADIWKEY_XMM_XMM,), Operation.CONTROL_PLATFORM, "loadiwkey xmm1, xmm2", "SDM LOADIWKEY"
    ),
    _privileged("HRESET", (Code.HRESET_IMM8,), Operation.CONTROL_PLATFORM, "hreset 0", "SDM HRESET"),
    _privileged(
        "ENQCMDS",
        (Code.ENQCMDS_R16_M512, Code.ENQCMDS_R32_M512, Code.ENQCMDS_R64_M512),
        Operation.CONTROL_PLATFORM,
        "enqcmds rcx, [rax]",
        "SDM ENQCMDS",
    ),
)

EXTENSIONS: Final[tuple[Family, ...]] = _VIRTUALISATION + _TRANSLATIONS + _SHADOW_STACKS + _PLATFORM
"""Every privileged instruction of an extension that iced-x86 decodes by default."""
