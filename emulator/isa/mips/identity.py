"""The MIPS32 processor that guests are shown: a 24Kf with a larger TLB and a thread pointer that user code may read.

Room: `emulator/isa/mips`, data. The reference and the virtual CPU show the same. What is not offered (DSP, MIPS16,
watchpoints, performance counters, shadow registers) is left out of the Config registers.
"""

from typing import Final

PRID: Final = 0x0001_9300
TLB_SIZE: Final = 64

CONFIG: Final = 0x8000_0482
"""MIPS32 Release 2, TLB, KSEG0 cached; bit 15 says big-endian."""
BIG_ENDIAN: Final = 1 << 15
CONFIG_WRITABLE: Final = 7
CONFIG1: Final = 1 << 31 | TLB_SIZE - 1 << 25 | 0x0019_0C80 | 0x01
"""Two caches of 16 KiB, 4 ways, 32 bytes a line, as on a 24K; floating point."""
CONFIG2: Final = 1 << 31
CONFIG3: Final = 1 << 13 | 1 << 5
"""UserLocal; vectored interrupts."""

STATUS_WRITABLE: Final = 0x3440_FF17
"""CU1, CU0, FR, BEV, IM, UM, ERL, EXL, IE: no supervisor mode."""
CAUSE_WRITABLE: Final = 0x08C0_0300
"""DC, IV, WP, IP1 and IP0."""
INT_CTL: Final = 7 << 29
"""The timer is line 7."""
INT_CTL_WRITABLE: Final = 0x3E0
EBASE: Final = 0x8000_0000
EBASE_WRITABLE: Final = 0x3FFF_F000
HWRENA_WRITABLE: Final = 0x2000_000F
USER_LOCAL_READABLE: Final = 1 << 29
PAGE_MASK_WRITABLE: Final = 0x1FFF_E000
ENTRY_HI_WRITABLE: Final = 0xFFFF_E0FF
ENTRY_LO_WRITABLE: Final = 0x03FF_FFFF
CONTEXT_WRITABLE: Final = 0xFF80_0000
SYNCI_STEP: Final = 32
COUNT_RESOLUTION: Final = 2
"""CCRes: processor cycles in a unit of Count."""
