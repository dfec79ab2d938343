"""ARMv7 deprivileged, MMU on: domains, PXN, access as user code, large pages, two roots, and code that stores into
itself, each under every technique that may see it otherwise."""

from __future__ import annotations

import pytest

from paravirt.mmu.techniques import TECHNIQUES
from tests.paravirt.modes.arm_guest import (
    BASE,
    CODE,
    FREE,
    KERNEL_PAGE,
    KERNEL_SECTION,
    NEVER,
    PAGES,
    READ_PAGE,
    ROOT,
    SECOND,
    USER_PAGE,
    USER_SECTION,
    MappedGuest,
    assemble,
    constant,
    page,
    to_user,
)

WAYS = pytest.mark.parametrize("mode", ["trap", "inline"])
EVERY = pytest.mark.parametrize("technique", list(TECHNIQUES))
FLUSH_ALL = "mov r8, #0; mcr p15, 0, r8, c8, c7, 0; "
PERMISSION_PAGE, PERMISSION_SECTION, DOMAIN_PAGE = 0xF, 0xD, 0xB
SITE = assemble("mrs r6, cpsr; nop; nop; bx lr", 0)
"""Code that is rewritten, and so executes from the TLB alone."""


def flush(address: int) -> str:
    return constant(8, address) + "mcr p15, 0, r8, c8, c7, 1; "


def descriptor(number: int, frame: int, bits: int) -> str:
    """Store a second-level descriptor of `PAGES`."""
    return constant(8, SECOND + 4 * number) + constant(9, FREE + (frame << 12) | bits) + "str r9, [r8]; "


def load(register: int, address: int) -> str:
    return constant(8, address) + f"ldr r{register}, [r8]; "


SKIP = {"data": "add r11, r11, #1; subs pc, lr, #4", "fetch": "add r11, r11, #1; mov pc, r4"}
"""Handlers that count, and go on behind a load, or where R4 says."""


def frame(word: int) -> bytes:
    return word.to_bytes(4, "little") * 1024


# -- domains -------------------------------------------------------------------------------------


@EVERY
def test_a_domain_gives_and_takes_access_with_no_invalidation(technique: str) -> None:
    """Client, none, client; R11 counts aborts."""
    dacr = "mov r8, #{}; mcr p15, 0, r8, c3, c0, 0; "
    code = "mov r11, #0; " + load(1, page(1)) + dacr.format(1) + load(2, page(1)) + dacr.format(5) + load(3, page(1))
    guest = MappedGuest(code, pages={1: (0, USER_PAGE)}, frames={0: frame(7)}, link=1 | 1 << 5, dacr=5,
                        handlers=SKIP, technique=technique)  # fmt: skip
    gpr = guest.run()
    assert (gpr[1], gpr[3], gpr[11]) == (7, 7, 1)
    assert guest.system["DFSR"] & 0xFF == DOMAIN_PAGE | 1 << 4


def test_a_manager_may_do_what_its_page_forbids_and_a_client_then_may_not() -> None:
    """A store to a page that can be read only: as a manager, then as a client, which aborts."""
    store = constant(8, page(1)) + "str r7, [r8]; "
    code = "mov r7, #9; mov r11, #0; " + store + "mov r8, #1; mcr p15, 0, r8, c3, c0, 0; mov r7, #8; " + store
    guest = MappedGuest(code, pages={1: (0, READ_PAGE | 0x200)}, dacr=3, handlers=SKIP)
    assert guest.run()[11] == 1
    assert guest.word(FREE) == 9
    assert guest.system["DFSR"] & 0xF == PERMISSION_PAGE


def test_the_last_two_domains_are_two() -> None:
    """Pages of domain 15 with and without access, while domain 14 has it the other way round."""
    dacr = "{}mcr p15, 0, r8, c3, c0, 0; "
    only_14, only_15 = constant(8, 1 | 1 << 28), constant(8, 1 | 1 << 30)
    code = "mov r11, #0; " + dacr.format(only_15) + load(1, page(1)) + dacr.format(only_14) + load(2, page(1))
    guest = MappedGuest(code, pages={1: (0, USER_PAGE)}, frames={0: frame(7)}, link=1 | 15 << 5, handlers=SKIP)
    gpr = guest.run()
    assert (gpr[1], gpr[11]) == (7, 1)
    assert guest.system["DFSR"] & 0xFF == DOMAIN_PAGE | 15 << 4


# -- the right to execute ------------------------------------------------------------------------


@WAYS
@EVERY
def test_pxn_keeps_the_kernel_from_executing_and_not_user_code(mode: str, technique: str) -> None:
    """PXN is a bit of the whole second-level table. The kernel's jump there aborts; user code's call comes."""
    code = "mov r11, #0; adr r4, back; " + constant(3, page(1)) + "blx r3; back: " + to_user(page(1))
    user = assemble("mov r6, #5; svc #0", 0)
    guest = MappedGuest(code, mode, pages={1: (0, USER_PAGE)}, frames={0: user}, link=1 | 1 << 2,
                        handlers={"fetch": SKIP["fetch"]}, technique=technique)  # fmt: skip
    gpr = guest.run()
    assert guest.ended_by == "call"
    assert (gpr[6], gpr[11]) == (5, 1)
    assert guest.system["IFSR"] & 0xF == PERMISSION_PAGE


def test_pxn_of_one_of_two_tables_that_lead_to_the_same_pages() -> None:
    """The same second-level table, at the same place in two address spaces, first without PXN and then with it."""
    other = BASE + 0xC000
    code = "mov r11, #0; adr r4, back; " + constant(3, page(1)) + "blx r3; "
    for address, value in ((BASE, BASE | KERNEL_SECTION), (PAGES, SECOND | 1 | 1 << 2)):
        code += constant(8, other + (address >> 18)) + constant(9, value) + "str r9, [r8]; "
    code += constant(8, other) + "mcr p15, 0, r8, c2, c0, 0; .word 0xf57ff06f; "
    code += load(5, page(2)) + "blx r3; mov r11, #77; back:"
    guest = MappedGuest(code, pages={1: (0, KERNEL_PAGE), 2: (1, KERNEL_PAGE)}, frames={0: SITE}, handlers=SKIP)
    assert guest.run()[11] == 1


@EVERY
def test_code_that_may_not_execute_any_more_is_not_executed_after_it_was_read(technique: str) -> None:
    """A page of kernel code with a site in it executes, gets XN, is read, and is jumped to."""
    code = "mov r11, #0; adr r4, back; " + constant(3, page(1)) + "blx r3; " + descriptor(1, 0, KERNEL_PAGE | NEVER)
    code += flush(page(1)) + load(5, page(1)) + "blx r3; mov r11, #77; back:"
    guest = MappedGuest(code, pages={1: (0, KERNEL_PAGE)}, frames={0: SITE}, handlers=SKIP, technique=technique)
    gpr = guest.run()
    assert gpr[11] == 1
    assert gpr[5] == int.from_bytes(SITE[:4], "little")


# -- as user code --------------------------------------------------------------------------------

PRIVILEGE = [
    ("ldrt r7, [r8]", KERNEL_PAGE, "data"),
    ("ldrt r7, [r8]", USER_PAGE, ""),
    ("ldrt r7, [r8]", READ_PAGE, ""),
    ("strt r7, [r8]", READ_PAGE, "data"),
    ("strbt r7, [r8]", KERNEL_PAGE, "data"),
    ("strht r7, [r8], #0", USER_PAGE, ""),
    ("ldrht r7, [r8], #2", KERNEL_PAGE, "data"),
    ("ldrsbt r7, [r8], #0", USER_PAGE, ""),
    ("str r7, [r8]", KERNEL_PAGE, ""),
]


@WAYS
@pytest.mark.parametrize(("access", "bits", "ended"), PRIVILEGE)
def test_unprivileged_accesses_have_the_rights_of_user_code(mode: str, access: str, bits: int, ended: str) -> None:
    """Once before the kernel itself has touched the page, and once after."""
    touch = f"mov r7, #0; {constant(8, page(1))}{access}; "
    for before in ("", load(5, page(1))):
        guest = MappedGuest(before + touch, mode, pages={1: (0, bits)})
        guest.run()
        assert guest.ended_by == ended


NEAR = 0xBF00_0000
"""So near to the fixups that a branch reaches them."""
ACCESSES = assemble("ldrt r7, [r8]; strt r8, [r8]; ldrbt r6, [r8]; bx lr", 0)


@WAYS
def test_a_page_that_another_address_space_filled_is_no_users(mode: str) -> None:
    """Two roots link one second-level table; the kernel's own page there was filled by way of the other root."""
    other = BASE + 0xC000
    code = load(5, page(2))  # the table is linked, by a page that user code may touch as well
    for address, value in ((BASE, BASE | KERNEL_SECTION), (PAGES, SECOND | 1)):
        code += constant(8, other + (address >> 18)) + constant(9, value) + "str r9, [r8]; "
    switch = "mcr p15, 0, r8, c2, c0, 0; .word 0xf57ff06f; "
    code += constant(8, other) + switch + load(5, page(1)) + constant(8, ROOT) + switch
    code += f"{constant(8, page(1))}{constant(3, NEAR + 0x8000)}blx r3"
    guest = MappedGuest(code, mode, pages={1: (0, KERNEL_PAGE), 2: (1, USER_PAGE)},
                        sections={NEAR: FREE | USER_SECTION}, frames={8: ACCESSES})  # fmt: skip
    guest.run()
    assert guest.ended_by == "data"


@WAYS
def test_unprivileged_accesses_to_user_pages_need_no_exit_inline(mode: str) -> None:
    code = f"{constant(8, page(1))}{constant(3, NEAR + 0x8000)}blx r3"
    guest = MappedGuest(code, mode, pages={1: (0, USER_PAGE)}, frames={0: frame(7), 8: ACCESSES},
                        sections={NEAR: FREE | USER_SECTION})  # fmt: skip
    assert guest.run()[7] == 7
    assert guest.word(FREE) == page(1)
    exits = sum(count for (name, _), count in guest.hypervisor.exits.counts.items() if name == "ACCESS_AS_USER")
    assert exits == (3 if mode == "trap" else 0)


# -- tables --------------------------------------------------------------------------------------


@EVERY
def test_a_large_page_is_invalidated_by_any_of_its_addresses(technique: str) -> None:
    """Sixteen descriptors of 64 KiB lead elsewhere; one address is invalidated, another looked at."""
    large = 0x03E & ~3 | 1
    code = load(1, page(0x12)) + load(2, page(0x1F))
    for number in range(16):
        code += descriptor(0x10 + number, 0x10, large)
    code += flush(page(0x12)) + load(3, page(0x1F)) + load(4, page(0x12))
    frames = {number: frame(number) for number in (0x02, 0x0F, 0x12, 0x1F)}
    guest = MappedGuest(code, pages={0x10 + n: (0, large) for n in range(16)}, frames=frames, technique=technique)
    assert guest.run()[1:5] == [0x02, 0x0F, 0x1F, 0x12]


@EVERY
def test_an_address_that_is_borrowed_for_a_moment_reaches_each_page_it_is_given(technique: str) -> None:
    """Mapped, invalidated, stored through, unmapped, invalidated, for one frame after another; then it is mapped for
    reading alone, and not at all."""
    turns = [3, 5, 3, 9]
    code = "mov r11, #0; "
    for turn, number in enumerate(turns):
        code += descriptor(1, number, KERNEL_PAGE) + flush(page(1)) + constant(8, page(1))
        code += f"ldr r{turn + 1}, [r8]; str r8, [r8, #{4 + 4 * turn}]; " + constant(8, SECOND + 4)
        code += "mov r9, #0; str r9, [r8]; " + flush(page(1))
    code += descriptor(1, 3, READ_PAGE | 1 << 9) + flush(page(1)) + constant(8, page(1)) + "str r9, [r8]; "
    code += constant(8, SECOND + 4) + "mov r9, #0; str r9, [r8]; " + flush(page(1)) + load(7, page(1))
    guest = MappedGuest(code, frames={number: frame(number) for number in turns}, pages={2: (2, KERNEL_PAGE)},
                        handlers=SKIP, technique=technique)  # fmt: skip
    gpr = guest.run()
    assert gpr[1:5] == turns
    assert gpr[11] == 2
    for number in set(turns):
        own = [number] + [page(1) if turn == number else number for turn in turns]
        assert [guest.word(FREE + (number << 12) + 4 * at) for at in range(5)] == own
    if technique == "snapshot":
        assert guest.hypervisor.exits.counts["page", "fill"] <= 3  # of the table, and what the kernel itself has


@EVERY
def test_a_section_becomes_a_table_and_its_other_place_follows(technique: str) -> None:
    """A MiB mapped by a section, kernel alone, becomes the pages of `PAGES`, seen when it is invalidated."""
    at = PAGES + 0x10_0000
    code = load(1, at + 0x1000) + constant(8, ROOT + (at >> 18)) + constant(9, SECOND | 1) + "str r9, [r8]; "
    code += flush(at) + load(2, at + 0x1000)
    guest = MappedGuest(code, pages={1: (2, USER_PAGE)}, frames={1: frame(11), 2: frame(22)},
                        sections={at: FREE | USER_SECTION}, technique=technique)  # fmt: skip
    gpr = guest.run()
    assert (gpr[1], gpr[2]) == (11, 22)


@EVERY
def test_the_upper_part_of_the_addresses_has_a_root_of_its_own(technique: str) -> None:
    """TTBCR.N = 2: above 40000000H by TTBR1, whose table is changed and invalidated; below by a table of 4 KiB."""
    at = 0x7000_0000
    lower = BASE + 0xC000
    code = constant(8, lower + (PAGES >> 18)) + constant(9, SECOND | 1) + "str r9, [r8]; "
    code += constant(8, ROOT) + "mcr p15, 0, r8, c2, c0, 1; mov r8, #2; mcr p15, 0, r8, c2, c0, 2; "
    code += constant(8, lower) + "mcr p15, 0, r8, c2, c0, 0; " + FLUSH_ALL + load(1, page(1)) + load(2, at)
    code += constant(8, ROOT + (at >> 18)) + constant(9, BASE + 0x20_0000 | KERNEL_SECTION) + "str r9, [r8]; "
    code += flush(at) + load(3, at)
    guest = MappedGuest(code, pages={1: (1, USER_PAGE)}, frames={0: frame(5), 1: frame(6), 0x100: frame(7)},
                        sections={at: FREE | KERNEL_SECTION}, technique=technique)  # fmt: skip
    gpr = guest.run()
    assert (gpr[1], gpr[2], gpr[3]) == (6, 5, 7)


def test_two_places_of_one_table_are_each_forgotten_in_user_mode() -> None:
    """User code reads a page at two places of one table; the kernel moves it and invalidates both, the second after the
    first was read again."""
    at = PAGES + 0x10_0000
    source = f"{load(1, page(1))}{load(2, at + 0x1000)}svc #0; {load(3, page(1))}svc #1; {load(4, at + 0x1000)}svc #2"
    user = assemble(source, page(0))
    calls = "add r11, r11, #1; cmp r11, #3; beq end; cmp r11, #1; bne second; " + descriptor(1, 3, USER_PAGE)
    calls += flush(page(1)) + "movs pc, lr; second: " + flush(at + 0x1000) + "movs pc, lr; end: "
    guest = MappedGuest(
        "mov r11, #0; " + to_user(page(0)),
        pages={0: (0, USER_PAGE), 1: (2, USER_PAGE)},
        frames={0: user, 2: frame(2), 3: frame(3)},
        sections={at: SECOND | 1},
        handlers={"call": calls + "movw r0, #8; movt r0, #0x8400; .word 0xe1400070"},
    )
    assert guest.run()[1:5] == [2, 2, 3, 3]


# -- code that stores into itself ----------------------------------------------------------------

STORES = {
    "str": "str r4, [r1]; mov r3, #0",
    "strex": "again: ldrex r2, [r1]; strex r3, r4, [r1]; cmp r3, #0; bne again",
    "strb": "strb r4, [r1]; mov r3, #0",
    "swp": "swp r3, r4, [r1]; mov r3, #0",
    "stm": "mov r5, r4; stmia r1, {r4, r5}; mov r3, #0",
}


@WAYS
@pytest.mark.parametrize("privileged", [True, False])
@pytest.mark.parametrize("store", [*STORES])
def test_a_store_into_the_page_it_executes_from_is_done_once(store: str, privileged: bool, mode: str) -> None:
    at = page(1) + 0x800
    source = f"{constant(1, at)}movw r4, #0x1234; {STORES[store]}; ldr r6, [r1]; "
    source += "bx lr" if privileged else "svc #0"
    code = constant(7, page(1)) + "blx r7" if privileged else to_user(page(1))
    guest = MappedGuest(code, mode, pages={1: (0, USER_PAGE)}, frames={0: assemble(source, page(1))})
    gpr = guest.run()
    assert (gpr[3], gpr[6] & 0xFF) == (0, 0x34)
    assert guest.word(FREE + 0x800) & 0xFF == 0x34
    assert guest.ended_by == ("" if privileged else "call")


@WAYS
@pytest.mark.parametrize("privileged", [True, False])
def test_an_exclusive_store_to_the_very_next_instruction_succeeds(privileged: bool, mode: str) -> None:
    """What the processor compares and stores is the guest's memory, not the trap that stands there meanwhile."""
    source = f"{constant(1, page(1) + 0x28)}ldr r4, new; ldrex r2, [r1]; "
    source = source.ljust(1) + "b store; new: mov r6, #2; nop; nop; nop; store: strex r3, r4, [r1]; mov r6, #1; "
    source += "bx lr" if privileged else "svc #0"
    encoded = assemble(source, page(1))
    at = encoded.index(assemble("mov r6, #1", 0))
    encoded = assemble(source.replace(f"#{0x28:#x}", f"#{at:#x}"), page(1)) if at != 0x28 else encoded
    code = constant(7, page(1)) + "blx r7" if privileged else to_user(page(1))
    guest = MappedGuest(code, mode, pages={1: (0, USER_PAGE)}, frames={0: encoded})
    gpr = guest.run()
    assert (gpr[3], gpr[6]) == (0, 2)


@pytest.mark.parametrize("privileged", [True, False])
def test_a_store_by_the_last_instruction_of_a_page(privileged: bool) -> None:
    """What comes behind it is in the next page."""
    begin = page(2) - 4 * 4
    source = f"{constant(1, page(1))}str r1, [r1]; "[:-2]
    first = assemble(f"nop; {source}", begin)
    last = assemble("ldr r6, [r1]; " + ("bx lr" if privileged else "svc #0"), page(2))
    code = constant(7, begin) + "blx r7" if privileged else to_user(begin)
    guest = MappedGuest(code, pages={1: (0, USER_PAGE), 2: (1, USER_PAGE)}, frames={0: bytes(0xFF0) + first, 1: last})
    assert guest.run()[6] == page(1)


@pytest.mark.parametrize("flag", [0, 1])
def test_a_thumb_store_into_its_page_within_an_it_block(flag: int) -> None:
    """The instruction behind it is of the other condition, and the trap that stands there stops it all the same."""
    source = (
        f"movw r1, #{page(1) + 0x800 & 0xFFFF:#x}; movt r1, #{page(1) >> 16:#x}; movs r4, #7; cmp r4, #{7 * flag}; "
    )
    source += "ite eq; streq r4, [r1]; strne r4, [r1, #4]; ldr r5, [r1]; ldr r6, [r1, #4]; svc #0"
    guest = MappedGuest(
        to_user(page(1), thumb=True), pages={1: (0, USER_PAGE)}, frames={0: assemble(source, page(1), thumb=True)}
    )
    gpr = guest.run()
    assert (gpr[5], gpr[6]) == ((7, 0) if flag else (0, 7))


def test_a_thumb_instruction_of_two_pages_waits_for_the_second() -> None:
    """The second page is mapped by the abort's handler; IFAR names it."""
    first = assemble("movs r6, #3", 0, thumb=True).rjust(0xFFE, b"\0") + b"\x4f\xf0"  # mov.w r7, #9
    second = b"\x09\x07" + assemble("svc #0", 0, thumb=True)
    entry = page(2) - 4
    handler = f"{descriptor(2, 1, USER_PAGE)}{flush(page(2))}mrc p15, 0, r11, c6, c0, 2; subs pc, lr, #4"
    guest = MappedGuest(
        to_user(entry, thumb=True),
        pages={1: (0, USER_PAGE)},
        frames={0: first, 1: second},
        handlers={"fetch": handler},
    )
    gpr = guest.run()
    assert (gpr[6], gpr[7], gpr[11]) == (3, 9, page(2))
    assert CODE
