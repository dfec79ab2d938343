"""The short-descriptor translation tables of ARMv7-A, walked in guest memory (ARM B3.5).

Room: `emulator/isa/arm`. `TranslationContext` holds the registers that the walk depends on; `walk` raises the guest's
own abort. The large physical address extension is not offered, so tables are always short.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from emulator.isa.arm import exceptions as x
from emulator.isa.arm.exceptions import ArmException

SCTLR_M, SCTLR_A, SCTLR_V, SCTLR_TE, SCTLR_AFE, SCTLR_EE = 1, 1 << 1, 1 << 13, 1 << 30, 1 << 29, 1 << 25
READ, WRITE, EXECUTE = 1, 2, 4
NO_ACCESS, CLIENT, MANAGER = 0, 1, 3

_AP: Final[tuple[tuple[int, int], ...]] = (
    # rights of the kernel and of the user for AP[2:0] (ARM table B3-8)
    (0, 0),
    (READ | WRITE, 0),
    (READ | WRITE, READ),
    (READ | WRITE, READ | WRITE),
    (0, 0),
    (READ, 0),
    (READ, READ),
    (READ, READ),
)
_AP_SIMPLE: Final[tuple[tuple[int, int], ...]] = (
    (READ | WRITE, 0),
    (READ | WRITE, READ | WRITE),
    (READ, 0),
    (READ, READ),
)
"""For AP[2:1] with SCTLR.AFE set."""


class TranslationContext:
    """The registers that translation depends on, as the guest wrote them."""

    __slots__ = ("dacr", "sctlr", "ttbcr", "ttbr0", "ttbr1")

    def __init__(self) -> None:
        self.sctlr = 0
        self.ttbr0 = self.ttbr1 = 0
        self.ttbcr = 0
        self.dacr = 0

    def first_level(self, address: int) -> int:
        """Guest-physical address of the first-level descriptor of a virtual address."""
        n = self.ttbcr & 7
        if n and address >> 32 - n:
            return (self.ttbr1 & 0xFFFF_C000) | (address >> 18 & 0x3FFC)
        return (self.ttbr0 & (0xFFFF_FFFF << 14 - n & 0xFFFF_FFFF)) | (address >> 18 & (0x3FFF >> n & ~3))


class Walk(NamedTuple):
    """The translation of one page."""

    address: int
    physical: int
    """Of the 4 KiB page, 32 bits."""
    kernel: int
    """READ, WRITE, EXECUTE: what the kernel may do."""
    user: int
    domain: int
    manager: bool
    """The domain is not checked: everything is allowed."""
    descriptor: int
    """The first-level descriptor; -1 with the MMU off."""
    second: int
    """The second-level descriptor; -1 for a section."""


def small_rights(descriptor: int, simple: bool) -> tuple[int, int]:
    """Rights of kernel and user by a second-level descriptor; both 0 where it is invalid."""
    kind = descriptor & 3
    if not kind:
        return 0, 0
    never = descriptor & 1 if kind & 2 else descriptor >> 15 & 1
    ap = (descriptor >> 4 & 3) | (descriptor >> 7 & 4)
    kernel, user = _AP_SIMPLE[ap >> 1] if simple else _AP[ap]
    if never:
        return kernel, user
    return kernel | (EXECUTE if kernel & READ else 0), user | (EXECUTE if user & READ else 0)


def section_rights(descriptor: int, simple: bool) -> tuple[int, int]:
    """The same of a section's descriptor."""
    ap = (descriptor >> 10 & 3) | (descriptor >> 13 & 4)
    kernel, user = _AP_SIMPLE[ap >> 1] if simple else _AP[ap]
    if descriptor & 1 << 4:
        return kernel, user
    if not descriptor & 1:  # PXN
        kernel |= EXECUTE if kernel & READ else 0
    return kernel, user | (EXECUTE if user & READ else 0)


class Walker:
    """Walks the guest's tables. `words` is guest memory, which begins at guest-physical `base`."""

    def __init__(self, words: memoryview, base: int, context: TranslationContext) -> None:
        self.words = words
        self.base = base
        self.context = context

    def word(self, physical: int) -> int:
        """A word of guest memory; -1 where there is none."""
        index = physical - self.base >> 2
        return int(self.words[index]) if 0 <= index < len(self.words) else -1

    def translate(self, address: int, far: int = 0) -> Walk:
        """The translation of a page, whatever its rights. Raises a translation or access-flag fault with status bits
        only: whoever asked adds the direction of the access."""
        context = self.context
        page = address & 0xFFFF_F000
        if not context.sctlr & SCTLR_M:
            every = READ | WRITE | EXECUTE
            return Walk(address, page, every, every, 0, True, -1, -1)
        simple = context.sctlr & SCTLR_AFE != 0
        first = self.word(context.first_level(address))
        if first < 0:
            raise ArmException(x.DATA_ABORT, 0xC, far)  # external abort on the walk, first level
        kind = first & 3
        if not kind:
            raise ArmException(x.DATA_ABORT, x.TRANSLATION_SECTION, far)
        if kind == 1:
            return self._second(address, first, simple, far)
        if first & 1 << 18:  # a supersection of 16 MiB is always of domain 0; bits 39:32 reach nothing here
            domain, physical = 0, (first & 0xFF00_0000) | (page & 0x00FF_F000)
            if first & 0x00F0_01E0:
                physical = 0xFFFF_F000
        else:
            domain, physical = first >> 5 & 15, (first & 0xFFF0_0000) | (page & 0x000F_F000)
        if simple and not first & 1 << 10 and not self._is_managed(domain):
            raise ArmException(x.DATA_ABORT, x.ACCESS_FLAG_SECTION | domain << 4, far)
        manager = self._check_domain(domain, x.DOMAIN_SECTION, far)
        kernel, user = section_rights(first, simple)
        return Walk(address, physical, kernel, user, domain, manager, first, -1)

    def _second(self, address: int, first: int, simple: bool, far: int) -> Walk:
        domain = first >> 5 & 15
        second = self.word((first & 0xFFFF_FC00) | (address >> 10 & 0x3FC))
        if second < 0:
            raise ArmException(x.DATA_ABORT, 0xE | domain << 4, far)
        if not second & 3:
            raise ArmException(x.DATA_ABORT, x.TRANSLATION_PAGE | domain << 4, far)
        if simple and not second & 1 << 4 and not self._is_managed(domain):
            raise ArmException(x.DATA_ABORT, x.ACCESS_FLAG_PAGE | domain << 4, far)
        manager = self._check_domain(domain, x.DOMAIN_PAGE, far)
        physical = second & 0xFFFF_F000
        if not second & 2:  # a large page
            physical = (second & 0xFFFF_0000) | (address & 0xF000)
        kernel, user = small_rights(second, simple)
        if first & 1 << 2:  # PXN
            kernel &= ~EXECUTE
        return Walk(address, physical, kernel, user, domain, manager, first, second)

    def _is_managed(self, domain: int) -> bool:
        """Whether nothing but the translation itself is looked at."""
        return self.context.dacr >> 2 * domain & 3 == MANAGER

    def _check_domain(self, domain: int, status: int, far: int) -> bool:
        rights = self.context.dacr >> 2 * domain & 3
        if rights in (NO_ACCESS, 2):
            raise ArmException(x.DATA_ABORT, status | domain << 4, far)
        return rights == MANAGER

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> Walk:
        """The translation for an access. Raises the guest's abort."""
        try:
            found = self.translate(address, address)
        except ArmException as fault:
            raise self._aborted(fault.error or 0, address, write, fetch) from None
        if found.manager:
            return found
        wanted = EXECUTE if fetch else WRITE if write else READ
        if not (found.user if user else found.kernel) & wanted:
            status = x.PERMISSION_SECTION if found.second < 0 else x.PERMISSION_PAGE
            raise self._aborted(status | found.domain << 4, address, write, fetch)
        return found

    @staticmethod
    def _aborted(status: int, address: int, write: bool, fetch: bool) -> ArmException:
        if fetch:
            return ArmException(x.PREFETCH_ABORT, status, address)
        return ArmException(x.DATA_ABORT, status | (x.WRITE if write else 0), address)
