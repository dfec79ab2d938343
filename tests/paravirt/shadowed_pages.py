"""Pages that are shadowed: the addresses, rights and flushes that tests of shadow paging share.

Room: tests. Nothing here claims anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault
from paravirt import layout
from tests.paravirt.model_mmu import ModelMmu

A, D, P, W, U, G, PS = w.ACCESSED, w.DIRTY, w.PRESENT, w.WRITABLE, w.USER, w.GLOBAL, w.LARGE
PAGE = 0x4000_0000
HIGH = 0xFFFF_8000_0000_0000
FRAME, OTHER = 0x30_0000, 0x31_0000


def mapped(entry: int, level: int = 1, **options: Any) -> ModelMmu:
    mmu = ModelMmu(**options)
    mmu.tables.map(PAGE, entry, level)
    return mmu


def tables(count: int) -> layout.Layout:
    """A hypervisor that has room for so many shadow tables."""
    return replace(layout.X86_64, tables_size=count << 12)


def faults(mmu: ModelMmu, address: int, **access: bool) -> int:
    """Error code of the guest's page fault."""
    with pytest.raises(Fault) as caught:
        mmu.access(address, **access)
    assert caught.value.vector == 14
    assert caught.value.address == address
    assert caught.value.error is not None
    return caught.value.error


# -- staleness ----------------------------------------------------------------------------------------


def reload(mmu: ModelMmu) -> None:
    mmu.shadow.load_root()


def everything(mmu: ModelMmu) -> None:
    mmu.shadow.flush_all()


def one_page(mmu: ModelMmu) -> None:
    mmu.shadow.invalidate(PAGE)
