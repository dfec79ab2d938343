"""What the processor shown to AArch64 guests is: a Cortex-A53 without what a deprivileged guest is not given.

Room: `emulator/isa/aarch64`. Identification registers that are shown otherwise than the engine's processor has them,
at full privilege and under the hypervisor alike: a kernel chooses code by them, and patches itself.
"""

from typing import Final

from emulator.isa.aarch64.registers import BY_NAME

_SHOWN: Final = {
    "ID_AA64PFR0_EL1": 0x11,  # EL0 and EL1 in AArch64 only; floating point and SIMD; GICv2
    "ID_AA64MMFR0_EL1": 0x0F00_0021,  # 36-bit physical addresses, 16-bit ASIDs, 4 KiB pages only, little-endian only
    "ID_AA64DFR0_EL1": 0x1030_5006,  # Armv8 debug with 6 breakpoints and 4 watchpoints, no performance monitors
    "MPIDR_EL1": 0x8000_0000,
    "MIDR_EL1": 0x410F_D034,
}

IDENTITY: Final[dict[int, int]] = {BY_NAME[name].encoding: value for name, value in _SHOWN.items()}
"""By 16-bit name."""
