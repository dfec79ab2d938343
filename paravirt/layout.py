"""Where the hypervisor's own memory lies in the engine's physical address space.

Room: `paravirt`. Guest-physical memory is engine-physical memory at the same addresses, from 0 on;
everything of the hypervisor lies far above it, where no guest table entry can point: the walker
refuses guest entries with address bits from `walk.PHYSICAL_BITS` on.
"""

TABLES_BASE = 1 << 36
"""Shadow page tables."""
TABLE_COUNT = 8192
"""4 KiB each."""

CODE_BASE = TABLES_BASE + (1 << 32)
"""Translated copies of guest code pages."""
CODE_COUNT = 32768
"""4 KiB each."""

WINDOW_BASE = CODE_BASE + (1 << 32)
"""The hypervisor window (fixups, shared page), as `abi` lays it out: 2 MiB."""
WINDOW_SIZE = 2 << 20

DESCRIPTORS_BASE = WINDOW_BASE + (1 << 24)
"""The sanitised copy of the guest's GDT: up to 17 pages."""
DESCRIPTORS_SIZE = 17 * 4096

OPEN_BUS = DESCRIPTORS_BASE + (1 << 24)
"""A page of device memory that stands for every guest-physical address that nothing backs."""
