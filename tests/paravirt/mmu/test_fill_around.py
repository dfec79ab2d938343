"""User code's pages around one that was just mapped, and the two roots between which an engine may change by itself."""

from __future__ import annotations

import pytest

from emulator.isa.x86 import walk as w
from emulator.isa.x86.walk import GuestContext
from emulator.memory import GuestMemory
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes.x86.shadow import X86Shadow
from tests.paravirt.mmu.test_shadow_reuse import ADDRESS, LEVEL1, LEVEL2, LEVEL3, ROOT_A, NoCode, QuietEngine

FIRST, OTHER = 0x2_0000, 0x6_0000
USED = w.PRESENT | w.USER | w.ACCESSED
PAGES = {
    0: USED,
    1: USED | w.WRITABLE | w.DIRTY,
    2: USED | w.WRITABLE,
    3: USED & ~w.ACCESSED,
    4: USED & ~w.USER,
    5: USED | w.NO_EXECUTE,
    15: USED,
    16: USED,
}
"""Bits of each page's entry, by its number from ADDRESS on."""


@pytest.fixture
def shadow() -> X86Shadow:
    memory, context = GuestMemory(1 << 20), GuestContext()
    context.root, context.no_execute = ROOT_A, True
    shadow = X86Shadow(QuietEngine(), memory, context)
    shadow.attach(NoCode())
    shadow.frames.coherent = True
    for table, index, below in ((ROOT_A, 0, LEVEL3), (LEVEL3, 0, LEVEL2), (LEVEL2, 2, LEVEL1)):
        memory.write(table + 8 * index, 8, below | USED | w.WRITABLE)
    for page, bits in PAGES.items():
        memory.write(LEVEL1 + 8 * page, 8, FIRST + page * 4096 | bits)
    shadow.use(USER_VIEW)
    shadow.fill(ADDRESS, False, False)
    shadow.fill_around(ADDRESS)
    return shadow


def entry(shadow: X86Shadow, page: int) -> int:
    return int(shadow._words[shadow._leaf_of(ADDRESS + page * 4096)])


@pytest.mark.parametrize("page", [0, 1, 2, 5, 15])
def test_what_the_guest_has_accessed_is_mapped_with_it(shadow: X86Shadow, page: int) -> None:
    assert entry(shadow, page) & (w.FRAME_MASK | w.PRESENT) == FIRST + page * 4096 | w.PRESENT


@pytest.mark.parametrize("page", [3, 4, 16])
def test_what_it_has_not_what_is_the_kernels_and_what_is_further_away_is_not(shadow: X86Shadow, page: int) -> None:
    assert entry(shadow, page) == 0


def test_only_what_was_written_may_be_written_and_only_code_executed(shadow: X86Shadow) -> None:
    assert [page for page in PAGES if entry(shadow, page) & w.WRITABLE] == [1]
    assert [page for page in (1, 2, 5, 15) if entry(shadow, page) & w.NO_EXECUTE] == [5]


def test_a_page_that_the_guest_takes_away_is_gone_at_the_next_load_of_a_root(shadow: X86Shadow) -> None:
    shadow.pool.guest_words[(LEVEL1 >> 3) + 15] = 0
    shadow.load_root()
    assert entry(shadow, 15) == 0
    assert entry(shadow, 1) != 0


def test_both_roots_are_told_once_both_are_there_and_the_kernels_has_the_window(shadow: X86Shadow) -> None:
    assert shadow.both_roots() is None
    shadow.use(KERNEL_VIEW)
    assert shadow.both_roots() is None
    shadow.install_window()
    roots = shadow.both_roots()
    assert roots is not None
    assert roots[0] == shadow.pool.address_of(shadow._current[0])
    shadow.use(USER_VIEW)
    assert roots[1] == shadow.pool.address_of(shadow._current[0])
    assert shadow.both_roots() == roots


def test_whether_the_page_itself_is_mapped_now_is_said_for_the_access(shadow: X86Shadow) -> None:
    for page, write, fetch, expected in (
        (1, True, False, True),
        (2, True, False, False),
        (5, False, False, True),
        (5, False, True, False),
        (4, False, False, False),
        (40, False, False, False),
    ):
        shadow._words[shadow._leaf_of(ADDRESS + page * 4096)] = 0
        assert shadow.fill_around(ADDRESS + page * 4096, write, fetch) is expected
    assert not shadow.fill_around(ADDRESS + 4096, False, False), "it was mapped before"


def test_what_it_has_not_accessed_yet_may_be_mapped_as_accessed(shadow: X86Shadow) -> None:
    assert shadow.fill_around(ADDRESS + 3 * 4096, old=True)
    assert entry(shadow, 16) & w.FRAME_MASK == FIRST + 16 * 4096
    assert not entry(shadow, 3) & w.WRITABLE
    assert shadow.pool.guest_entry(shadow._leaf_of(ADDRESS) >> 9, 3) & w.ACCESSED
    assert entry(shadow, 4) == 0
    shadow.load_root()
    assert entry(shadow, 3) != 0


@pytest.mark.parametrize("view", [USER_VIEW, KERNEL_VIEW])
@pytest.mark.parametrize("coherent", [False, True])
@pytest.mark.parametrize("protects", [False, True])
def test_pages_filled_ahead_one_by_one_are_those_that_are_filled_at_once(
    shadow: X86Shadow, view: int, coherent: bool, protects: bool
) -> None:
    shadow.guest._context.write_protect = protects  # type: ignore[attr-defined]
    shadow.frames.coherent = coherent
    shadow.frames.kind[FIRST + 4096 >> 12] = 1
    shadow.use(view)
    shadow.fill(ADDRESS, False, False)
    table = shadow._leaf_of(ADDRESS) >> 9
    entries, seen = (slice(table << 9, table + 1 << 9) for _ in range(2))
    found = []
    for fill in (X86Shadow.fill_ahead, ShadowPaging.fill_ahead):
        shadow._words[entries] = shadow.pool.seen[seen] = memoryview(bytearray(4096)).cast("Q")
        before = shadow.prefilled
        fill(shadow, table)
        found.append((shadow._words[entries].tolist(), shadow.pool.seen[seen].tolist(), shadow.prefilled - before))
    assert found[0] == found[1]
    assert found[0][2] >= 5


def test_a_table_is_known_by_its_key_as_soon_as_it_is_made(shadow: X86Shadow) -> None:
    pool = shadow.pool
    assert pool.key_of(shadow._current[0]) == (ROOT_A, 4, USER_VIEW, 0)
    table = pool.mirror((LEVEL1, 1, KERNEL_VIEW, 7))
    assert pool.key_of(table) == (LEVEL1, 1, KERNEL_VIEW, 7)
    pool.clear()
    assert pool.key_of(table) is None


def test_pages_that_were_missed_lately_are_filled_with_the_first_behind_a_load_of_the_root(shadow: X86Shadow) -> None:
    words, other = shadow.pool.guest_words, ADDRESS + (4 << 21)
    words[(LEVEL2 >> 3) + (other >> 21 & 511)] = OTHER | USED | w.WRITABLE
    words[OTHER >> 3] = FIRST + 0x2_0000 | USED
    shadow.fill(other, False, False)
    shadow.fill_elsewhere(other)
    shadow.fill_elsewhere(ADDRESS)
    words[OTHER >> 3] ^= 0x1_0000
    shadow.load_root()
    assert shadow._leaf_of(other) < 0 or not entry(shadow, 4 << 9)
    shadow.fill_elsewhere(ADDRESS)
    assert entry(shadow, 4 << 9) & w.FRAME_MASK == FIRST + 0x2_0000 ^ 0x1_0000
    words[OTHER >> 3] = 0
    shadow.load_root()
    shadow.fill_elsewhere(ADDRESS)
    assert not entry(shadow, 4 << 9), "what the guest does not map is none of these"


def test_nor_does_the_kernel_miss_one_by_one_what_it_missed_of_user_codes_pages(shadow: X86Shadow) -> None:
    words, other = shadow.pool.guest_words, ADDRESS + (4 << 21)
    words[(LEVEL2 >> 3) + (other >> 21 & 511)] = OTHER | USED | w.WRITABLE
    words[OTHER >> 3] = FIRST + 0x2_0000 | USED
    for view in (USER_VIEW, KERNEL_VIEW):
        shadow.use(view)
        for missed in (other, ADDRESS):
            shadow.fill(missed, False, False)
            shadow.fill_elsewhere(missed)
    words[OTHER >> 3] ^= 0x1_0000
    shadow.load_root()
    at = shadow._leaf_of(other)
    assert at < 0 or not shadow._words[at]
    fills = shadow.fills
    shadow.fill_elsewhere(ADDRESS)
    assert shadow._words[shadow._leaf_of(other)] & w.FRAME_MASK == FIRST + 0x2_0000 ^ 0x1_0000
    assert shadow.fills == fills + 1, "what is there is not filled"
    shadow.fill_elsewhere(ADDRESS)
    assert shadow.fills == fills + 1, "once behind a load of the root"
    shadow.use(USER_VIEW)
    assert not entry(shadow, 4 << 9), "user code's own are another's to fill"
    words[OTHER >> 3] = 0
    shadow.load_root()
    shadow.use(KERNEL_VIEW)
    shadow.fill_elsewhere(ADDRESS)
    assert not shadow._words[shadow._leaf_of(other)]


def test_user_codes_are_filled_before_it_runs_again_and_the_kernels_view_stays_in_use(shadow: X86Shadow) -> None:
    words = shadow.pool.guest_words
    others = [ADDRESS + (number << 21) for number in (3, 4, 5)]
    for number, other in enumerate(others):
        words[(LEVEL2 >> 3) + (other >> 21 & 511)] = OTHER + 4096 * number | USED | w.WRITABLE
        words[OTHER + 4096 * number >> 3] = FIRST + 0x2_0000 + 4096 * number | USED
        shadow.fill(other, False, False)
        shadow.fill_elsewhere(other)
    words[OTHER + 4096 >> 3] = 0
    words[OTHER + 8192 >> 3] ^= 0x1_0000
    shadow.use(KERNEL_VIEW)
    shadow.load_root()
    current = shadow._current
    shadow.freshen_user()
    shadow.fill_user()
    assert (shadow.view, shadow._current) == (KERNEL_VIEW, current)
    shadow.use(USER_VIEW)
    frames = [shadow._words[shadow._leaf_of(other)] & w.FRAME_MASK for other in others]
    assert frames == [FIRST + 0x2_0000, 0, FIRST + 0x2_2000 ^ 0x1_0000]
    words[OTHER + 8192 >> 3] ^= 0x1_0000
    shadow.invalidate(others[2])
    shadow.fill_user()
    assert not shadow._words[shadow._leaf_of(others[2])], "once behind a load of the root"
    shadow.load_root()
    shadow.pool.units = shadow.pool.used
    shadow.fill_user()
    assert not shadow._words[shadow._leaf_of(others[2])], "there might be no room"


def made(shadow: X86Shadow, page: int, guest: int, shadow_entry: int) -> int:
    """Have the guest note that an entry was made of one of its own; what is there then."""
    at = shadow._leaf_of(ADDRESS) + page
    shadow.pool.words[at] = shadow_entry
    shadow.made_elsewhere(at, guest)
    return int(shadow.pool.words[at])


@pytest.fixture
def marked(shadow: X86Shadow) -> X86Shadow:
    shadow.tell_marks(memoryview(bytearray(8192)))
    return shadow


def test_an_entry_that_was_made_without_an_exit_follows_the_guests_own(marked: X86Shadow) -> None:
    guest = FIRST + 7 * 4096 | USED
    marked.pool.guest_words[(LEVEL1 >> 3) + 7] = guest
    good = guest & w.FRAME_MASK | w.DIRTY | USED
    assert made(marked, 7, guest, good) == good
    marked.load_root()
    assert entry(marked, 7) == good
    marked.pool.guest_words[(LEVEL1 >> 3) + 7] = 0
    marked.load_root()
    assert entry(marked, 7) == 0


@pytest.mark.parametrize(
    ("guest", "made_of_it"),
    [
        (FIRST | USED, FIRST + 4096 | USED),
        (FIRST | USED | w.WRITABLE, FIRST | USED | w.WRITABLE),
        (FIRST | USED | w.NO_EXECUTE, FIRST | USED),
        (FIRST | w.PRESENT | w.USER, FIRST | USED),
        (1 << 40 | USED, 1 << 40 | USED),
    ],
)
def test_an_entry_that_the_guests_does_not_give_goes(marked: X86Shadow, guest: int, made_of_it: int) -> None:
    assert made(marked, 9, guest, made_of_it) == 0


def test_a_frame_that_may_be_code_is_not_left_writable(marked: X86Shadow) -> None:
    guest = FIRST | USED | w.DIRTY | w.WRITABLE
    assert made(marked, 9, guest, guest) == guest
    marked.mark_code(FIRST >> 12, FIRST >> 12)
    assert made(marked, 9, guest, guest) == 0


def test_what_is_noted_of_other_tables_is_not_looked_at(marked: X86Shadow) -> None:
    for place in (0, marked._leaf_of(ADDRESS) - 512 & ~511, marked.pool.used << 9, 1 << 60):
        before = bytes(marked.pool.entries)
        marked.made_elsewhere(place, FIRST | USED)
        marked.made_together(place, 0)
        assert bytes(marked.pool.entries) == before


def test_blocks_are_learnt_of_pages_that_may_not_be_written_alone(marked: X86Shadow) -> None:
    at, words = marked._leaf_of(ADDRESS), marked.pool.guest_words
    marked.learn_block(ADDRESS)
    block = (ADDRESS >> 16 & 255) * 128
    assert list(marked._blocks[block >> 3 : (block >> 3) + 2]) != [FIRST | PAGES[0], FIRST + 4096 | PAGES[1]]
    for number in range(16):
        words[(LEVEL1 >> 3) + number] = FIRST + number * 4096 | USED if number != 3 else 0
        marked.pool.words[at + number] = 0
    marked.learn_block(ADDRESS)
    made_of_it = marked._blocks[4096 + (block >> 3) : 4096 + (block >> 3) + 16]
    marked.pool.words[at : at + 16] = made_of_it
    marked.made_together(at + 5, block)
    marked.load_root()
    for number in range(16):
        expected = 0 if number == 3 else FIRST + number * 4096 | USED | w.DIRTY
        assert entry(marked, number) == expected
    words[(LEVEL1 >> 3) + 8] = 0
    marked.load_root()
    assert (entry(marked, 8), entry(marked, 9) != 0) == (0, True)
