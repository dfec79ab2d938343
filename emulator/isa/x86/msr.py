"""The model-specific registers of x86-64 that a kernel meets, by the manual's names.

Room: `emulator/isa/x86`, data. Names and numbers are those of Intel SDM volume 4 (section 2.1,
architectural registers) and AMD APM volume 2 (appendix A) for the C000_xxxx range. Which of them a virtual
processor has is the hypervisor's policy.
"""

from typing import Final

IA32_TIME_STAMP_COUNTER: Final = 0x10
IA32_PLATFORM_ID: Final = 0x17
IA32_APIC_BASE: Final = 0x1B
IA32_FEATURE_CONTROL: Final = 0x3A
IA32_TSC_ADJUST: Final = 0x3B
IA32_SPEC_CTRL: Final = 0x48
IA32_PRED_CMD: Final = 0x49
IA32_BIOS_UPDT_TRIG: Final = 0x79
IA32_BIOS_SIGN_ID: Final = 0x8B
MSR_PLATFORM_INFO: Final = 0xCE
IA32_UMWAIT_CONTROL: Final = 0xE1
IA32_MPERF: Final = 0xE7
IA32_APERF: Final = 0xE8
IA32_MTRRCAP: Final = 0xFE
IA32_ARCH_CAPABILITIES: Final = 0x10A
IA32_FLUSH_CMD: Final = 0x10B
IA32_TSX_CTRL: Final = 0x122
MSR_MISC_FEATURES_ENABLES: Final = 0x140
IA32_SYSENTER_CS: Final = 0x174
IA32_SYSENTER_ESP: Final = 0x175
IA32_SYSENTER_EIP: Final = 0x176
IA32_MCG_CAP: Final = 0x179
IA32_MCG_STATUS: Final = 0x17A
IA32_MCG_CTL: Final = 0x17B
IA32_PERFEVTSEL0: Final = 0x186
IA32_PERF_STATUS: Final = 0x198
IA32_PERF_CTL: Final = 0x199
IA32_THERM_INTERRUPT: Final = 0x19B
IA32_THERM_STATUS: Final = 0x19C
IA32_MISC_ENABLE: Final = 0x1A0
IA32_ENERGY_PERF_BIAS: Final = 0x1B0
IA32_DEBUGCTL: Final = 0x1D9
IA32_MTRR_PHYSBASE0: Final = 0x200
IA32_MTRR_PHYSMASK0: Final = 0x201
IA32_MTRR_FIX64K_00000: Final = 0x250
IA32_MTRR_FIX16K_80000: Final = 0x258
IA32_MTRR_FIX16K_A0000: Final = 0x259
IA32_MTRR_FIX4K_C0000: Final = 0x268
IA32_MTRR_FIX4K_F8000: Final = 0x26F
IA32_PAT: Final = 0x277
IA32_MTRR_DEF_TYPE: Final = 0x2FF
IA32_FIXED_CTR0: Final = 0x309
IA32_PERF_CAPABILITIES: Final = 0x345
IA32_FIXED_CTR_CTRL: Final = 0x38D
IA32_PERF_GLOBAL_STATUS: Final = 0x38E
IA32_PERF_GLOBAL_CTRL: Final = 0x38F
IA32_MC0_CTL: Final = 0x400
IA32_MC0_STATUS: Final = 0x401
IA32_VMX_BASIC: Final = 0x480
IA32_DS_AREA: Final = 0x600
MSR_RAPL_POWER_UNIT: Final = 0x606
IA32_U_CET: Final = 0x6A0
IA32_S_CET: Final = 0x6A2
IA32_TSC_DEADLINE: Final = 0x6E0
IA32_X2APIC_APICID: Final = 0x802
IA32_XSS: Final = 0xDA0
IA32_EFER: Final = 0xC000_0080
IA32_STAR: Final = 0xC000_0081
IA32_LSTAR: Final = 0xC000_0082
IA32_CSTAR: Final = 0xC000_0083
IA32_FMASK: Final = 0xC000_0084
IA32_FS_BASE: Final = 0xC000_0100
IA32_GS_BASE: Final = 0xC000_0101
IA32_KERNEL_GS_BASE: Final = 0xC000_0102
IA32_TSC_AUX: Final = 0xC000_0103

# AMD's (APM volume 2, appendix A).
AMD_TSC_RATIO: Final = 0xC000_0104
AMD_SYSCFG: Final = 0xC001_0010
AMD_HWCR: Final = 0xC001_0015
AMD_TOP_MEM: Final = 0xC001_001A
AMD_TOP_MEM2: Final = 0xC001_001D
AMD_PATCH_LOADER: Final = 0xC001_0020
AMD_VM_CR: Final = 0xC001_0114
AMD_VM_HSAVE_PA: Final = 0xC001_0117
AMD_OSVW_ID_LENGTH: Final = 0xC001_0140
AMD_OSVW_STATUS: Final = 0xC001_0141
AMD_DE_CFG: Final = 0xC001_1029

NAMES: Final[dict[int, str]] = {
    number: name for name, number in sorted(globals().items()) if name.isupper() and isinstance(number, int)
}
"""The name of every register above by its number, for reports."""

PAT_RESET: Final = 0x0007_0406_0007_0406
"""IA32_PAT after a reset (SDM volume 3A, section 11.12.4)."""
