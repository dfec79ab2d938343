"""The descriptors of ARMv7's short format, where the processor walks the guest's own tables.

Room: `emulator/isa/arm` (ARM B3.5.1). A second-level table has 256 entries and a frame holds four of them, which are
validated together; a first-level table fills four frames. Supersections and 64 KiB pages are not offered: each stands
in sixteen entries that must agree. What AP says is what the kernel may do; user code never may more.
"""

from __future__ import annotations

from typing import Final

from emulator.isa.entries import EntryFormat, EntryLevel

_AP2_PAGE, _AP2_SECTION, _SUPERSECTION = 1 << 9, 1 << 15, 1 << 18

_PAGES: Final = EntryLevel(
    shift=12,
    entries=1024,
    present=3,
    kind_mask=2,
    table=-1,
    memory=2,
    forbidden=0,
    memory_address=0xFFFF_F000,
    write=(_AP2_PAGE, 0),
    execute=(1, 0),
)
_FIRST: Final = EntryLevel(
    shift=20,
    entries=1024,
    present=3,
    kind_mask=3,
    table=1,
    memory=2,
    forbidden=0,
    memory_forbidden=_SUPERSECTION,
    table_address=0xFFFF_FC00,
    memory_address=0xFFF0_0000,
    write=(_AP2_SECTION, 0),
    execute=(1 << 4, 0),
)
SHORT_DESCRIPTORS: Final = EntryFormat("armv7", 4, (_PAGES, _FIRST), root_frames=4)
"""Two levels. Nothing above a page takes its right to write away, so there are no linear mappings."""
