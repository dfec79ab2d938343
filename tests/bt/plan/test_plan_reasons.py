"""What holds for every site and fixup of every plan: a tactic, why it, why no better one, and what is used up."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from iced_x86 import Decoder, InstructionInfoFactory, OpAccess, Register

from bt import guests
from bt.image import Image, load
from bt.image.elf_form import as_elf
from bt.pagecache import PageCache
from bt.plan import Plan, PlannedFixup
from bt.planner import plan
from bt.scan import scan
from bt.tactics.tactics import STRATEGIES, Placing, Tactic
from emulator.errors import Unavailable
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.isas import ISAS
from emulator.isa.operation import Operation
from emulator.isa.sensitive import Route
from paravirt import abi
from paravirt.abi import WINDOWS

SAMPLES = sorted((Path(__file__).parents[3] / "samples").glob("*/portable.elf"))
KERNELS = ("debian-amd64", "debian-i386-pae", "debian-arm64", "debian-armhf", "debian-mipsel")
BEST = {Tactic.REPLACED, Tactic.SAME}
ELSEWHERE = {Tactic.COVERED, Tactic.LEAVE}
"""Of these the reason says who decides."""
ROUTES = {
    Tactic.INLINE: Route.INLINE,
    Tactic.REPLACED: Route.INLINE,
    Tactic.HYPERCALL: Route.HYPERCALL,
}
"""What the table must allow of an instruction for a tactic; for others a trap."""
STRAIGHT = {Placing.IN_PLACE, Placing.CLUSTER}


@cache
def image(name: str) -> Image:
    return as_elf(load(name))


def planned(name: str, strategy: str) -> Plan:
    one = image(name)
    kept = PageCache(isa=one.isa.name) if name.startswith("/root") or "retrap" in name else None
    return plan(one, scan(one, kept), strategy, kept)


def check(found: Plan) -> None:
    """Every site's reasons, and that its fixup is there."""
    fixups = {fixup.address for fixup in found.fixups}
    rows = {row.name: row for row in ISAS[found.isa].rows}
    for site in found.sites:
        said = f"{site.address:#x} {site.instruction}: {site.tactic} {site.placing} {site.reason!r} {site.refused!r}"
        assert site.reason, said
        assert ROUTES.get(site.tactic, Route.TRAP) in rows[site.instruction].routes, said
        if site.tactic in (Tactic.INLINE, Tactic.HYPERCALL):
            assert site.home or site.fixup in fixups, said
            assert site.placing is not Placing.NONE, said
        if found.mode != "auto" or site.tactic in BEST | ELSEWHERE:
            continue
        assert site.refused or (site.tactic is Tactic.INLINE and site.placing in STRAIGHT), said


def _x86(bits: int, window: abi.Window) -> Callable[[PlannedFixup], set[str]]:
    """The scratch words that a fixup of x86 writes."""
    factory, mask = InstructionInfoFactory(), (1 << bits) - 1
    first = window.shared_page + window.scratch
    writes = {OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE}

    def used(fixup: PlannedFixup) -> set[str]:
        found = set()
        for instruction in Decoder(bits, fixup.code, ip=fixup.address):
            for memory in factory.info(instruction).used_memory():
                at = (memory.displacement & mask) - first
                if memory.base == Register.NONE and memory.access in writes and 0 <= at < 8 * window.word:
                    found.add(f"scratch word {at // window.word}")
        return found

    return used


def _arm(fixup: PlannedFixup) -> set[str]:
    """STR relative to PC, of scratch words."""
    code = fixup.code[-len(fixup.code) // 4 * 4 :]
    found = set()
    for number, word in enumerate(np.frombuffer(fixup.code[: len(code) & -4], "<u4").tolist()):
        if word & 0x0F7F_0000 == 0x050F_0000:
            at = fixup.address + 4 * number + 8 + (word & 0xFFF) * (1 if word & 1 << 23 else -1)
            offset = at % abi.ARM_UNIT - abi.ARM_UNIT_END - WINDOWS["armv7"].scratch
            if 0 <= offset < 4 * WINDOWS["armv7"].scratch_words:
                found.add(f"shared page, scratch word {offset // 4}")
    return found


def _mips(fixup: PlannedFixup) -> set[str]:
    """SW from $0."""
    words = np.frombuffer(fixup.code, "<u4").tolist()
    first = abi.MIPS_REGISTERS + abi.MIPS_SCRATCH & 0xFFFF
    offsets = [(word & 0xFFFF) - first for word in words if word >> 16 & 0xFFE0 == 0xAC00]
    return {f"page of registers, scratch word {offset // 4}" for offset in offsets if 0 <= offset < 32}


def _aarch64(fixup: PlannedFixup) -> set[str]:
    """MSR of the register for scratch."""
    write = 0xD500_0000 | BY_NAME[abi.AARCH64_SCRATCH].encoding << 5
    words = np.frombuffer(fixup.code, "<u4").tolist()
    return {abi.AARCH64_SCRATCH for word in words if word & ~31 == write}


USED: dict[str, Callable[[PlannedFixup], set[str]]] = {
    "x86-64": _x86(64, WINDOWS["x86-64"]),
    "i386": _x86(32, WINDOWS["i386"]),
    "armv7": _arm,
    "aarch64": _aarch64,
    "mips32": _mips,
}


def check_clobbers(found: Plan) -> None:
    """What each fixup says that it uses up is what its code does use up; calls name real operations and sites."""
    sites = {site.address for site in found.sites} | {site.home for site in found.sites}
    for fixup in found.fixups:
        assert set(fixup.clobbers) == USED[found.isa](fixup), f"{fixup.address:#x} {fixup.clobbers} {fixup.code.hex()}"
        for call in fixup.calls:
            assert call.operation in Operation.__members__
            inside = fixup.site <= call.site < fixup.site + len(fixup.window)  # a branch over one, told as the branch
            assert call.site in sites or inside or call.site == fixup.site


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.parent.name for sample in SAMPLES])
def test_every_site_of_a_sample_has_its_reasons_and_every_fixup_its_clobbers(sample: Path, strategy: str) -> None:
    found = planned(str(sample), strategy)
    assert len(found.sites) > 20
    check(found)
    check_clobbers(found)


@pytest.mark.kernel
@pytest.mark.parametrize("name", KERNELS)
def test_every_site_of_debians_kernel_has_its_reasons_and_every_fixup_its_clobbers(name: str) -> None:
    try:
        kernel = guests.find(name).kernel
    except Unavailable as error:
        pytest.skip(str(error))
    found = planned(str(kernel), "auto")
    assert len(found.sites) > 1000
    check(found)
    check_clobbers(found)


def test_reasons_are_clauses() -> None:
    """They are put into sentences by others: no capital, no full stop."""
    for sample in SAMPLES:
        for site in planned(str(sample), "auto").sites:
            for text in (site.reason, *site.refused.split("; ")):
                assert not text or re.fullmatch(r"(?:[a-z]|[A-Z][A-Z]+|Status |Rd).*[^.]", text), text
