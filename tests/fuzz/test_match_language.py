"""Any text as an expression of the match language: a test of sites, or a refusal that shows the place."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from bt import match
from bt.scan import Site, scan
from emulator.errors import UsageError
from tests.bt.rewrite import small_kernel
from tests.fuzz.test_parsers import bounded

WORDS = (
    *match.FIELDS,
    *("and", "or", "not", "(", ")", "=", "!=", '"', "'", "*", "?", "[", "]", "!", "-", "\\", "\0", "\n", "é", "\ud800"),
    *("PUSHF", "leaks", "data?", ".text", "0x10", "0xffffffff81000000-0xffffffff81000100", "9" * 5000, "0x", "10-1"),
    *("class=leaks", "mnemonic=PUSHF", "symbol=*", "section=.te[xyz]t", "address=0-18446744073709551615"),
)
COMPARISONS = (
    *("class=leaks", "class!=traps", "mnemonic=pushf", "mnemonic=MOV*", "operation=*FLAGS", "section=.text"),
    *("symbol=0x*", "confidence=certain", "state=''", "address=0xffffffff81000010", 'mnemonic="MOV CR, r"'),
    *("address=0xffffffff81000000-0xffffffff81000040", "section!=.init.text"),
)


@cache
def sites() -> tuple[Site, ...]:
    return tuple(scan(small_kernel.image()))


def which(text: str) -> set[int]:
    """Addresses of the small kernel's sites that an expression is about."""
    test = match.parse(text)
    results = {site.address: test(site) for site in sites()}
    assert all(isinstance(result, bool) for result in results.values())
    return {address for address, result in results.items() if result}


def try_it(text: str) -> None:
    """What is refused is refused in a sentence, and the place is shown under it."""
    try:
        which(text)
    except UsageError as error:
        said = str(error)
        assert len(said) < 1000
        assert said.startswith("--only: ")
        said.encode()
        lines = said.split("\n")
        assert len(lines) in (1, 3), said
        if len(lines) == 3:
            assert lines[2].strip() == "^"


@given(text=st.text(max_size=200))
@bounded
def test_any_text_is_an_expression_or_refused_with_its_place(text: str) -> None:
    try_it(text)


@given(words=st.lists(st.sampled_from(WORDS), max_size=30), between=st.sampled_from(("", " ", "\t ")))
@bounded
def test_any_row_of_words_is_an_expression_or_refused_with_its_place(words: list[str], between: str) -> None:
    try_it(between.join(words))


@given(depth=st.integers(1, 4000), part=st.sampled_from(("(", "not ", "(not ", "class=leaks and (", "class=leaks or ")))
@bounded
def test_depth_and_length_are_bounded(depth: int, part: str) -> None:
    try_it(part * depth + "class=leaks" + ")" * (depth * part.count("(")))


def test_patterns_that_would_take_for_ever_do_not() -> None:
    assert which("symbol=" + "*a" * 2000 + "b") == set()
    assert which("symbol='" + "[!z]*" * 30 + "b'") == set()


expressions: st.SearchStrategy[str] = st.recursive(
    st.sampled_from(COMPARISONS),
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=8,
)


@given(left=expressions, right=expressions)
@bounded
def test_and_or_and_not_are_those_of_sets(left: str, right: str) -> None:
    whole = {site.address for site in sites()}
    assert which(f"{left} and {right}") == which(left) & which(right)
    assert which(f"{left} or {right}") == which(left) | which(right)
    assert which(f"not ({left})") == whole - which(left)
    assert which(f"{left} or {right} and not ({left})") == which(left) | (which(right) - which(left))
