"""The match language: what expressions choose, and errors that show the place."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.match import DEEPEST, FIELDS, MOST, chosen, parse
from bt.scan import Site, scan
from emulator.errors import UsageError
from tests.bt.rewrite.small_kernel import addresses, image

SITES = scan(image())


def names(expression: str) -> list[str]:
    match = parse(expression)
    return sorted({site.row.name for site in SITES if match(site)})


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("mnemonic=CLI", ["CLI"]),
        ("mnemonic=cli or mnemonic=sti", ["CLI", "STI"]),
        ('mnemonic="MOV r, CR"', ["MOV r, CR"]),
        ("mnemonic='MOV*'", ["MOV CR, r", "MOV r, CR"]),
        ("operation=READ_FLAGS", ["PUSHF"]),
        ("operation=*_flags", ["PUSHF"]),
        ("class=leaks and not mnemonic=CPUID", ["PUSHF", "SGDT"]),
        ("not (class=traps or class=leaks)", []),
        ("section=.text and mnemonic!=CLI and mnemonic!=STI and class=traps", ["HLT", "MOV CR, r", "MOV r, CR"]),
        ("section=.init.text", []),
        ("state=''", ["CLI", "CPUID", "HLT", "MOV CR, r", "MOV r, CR", "PUSHF", "SGDT", "STI"]),
        (f"address={addresses()['sgdt']:#x}", ["SGDT"]),
        (f"address={addresses()['sgdt']:#x}-{addresses()['wait']:#x}", ["SGDT", "STI"]),
        (f"mnemonic=CLI and address={addresses()['start']}", ["CLI"]),
    ],
)
def test_an_expression_chooses_the_sites_it_names(expression: str, expected: list[str]) -> None:
    assert names(expression) == expected


def test_and_binds_more_tightly_than_or() -> None:
    assert names("mnemonic=CLI or mnemonic=STI and mnemonic=HLT") == ["CLI"]
    assert names("(mnemonic=CLI or mnemonic=STI) and mnemonic=HLT") == []


@pytest.mark.parametrize(
    ("expression", "what", "caret"),
    [
        ("", "here must be a comparison", 0),
        ("mnemonik=CLI", "there is no field 'mnemonik'", 0),
        ("mnemonic CLI", "here must be = or !=", 9),
        ("mnemonic=", "here must be a value", 9),
        ("mnemonic=(", "here must be a value", 9),
        ("class=trap", "class is one of 'traps'", 6),
        ("(class=traps", "closing parenthesis", 12),
        ("class=traps mnemonic=CLI", "this is too much", 12),
        ("class=traps)", "this is too much", 11),
        ("class=traps and", "here must be a comparison", 15),
        ("not", "here must be a comparison", 3),
        ("and", "there is no field 'and'", 0),
        ('mnemonic="CLI', "quotation mark is not closed", 9),
        ("address=start", "here must be an address", 8),
        ("address=0x10-0x10", "the range is empty", 8),
        ("address=-5", "here must be an address", 8),
        ("'class'=traps", "here must be a comparison", 0),
        ("mnemonic=CLI !", "this is no word", 13),
    ],
)
def test_an_error_shows_its_place(expression: str, what: str, caret: int) -> None:
    with pytest.raises(UsageError) as caught:
        parse(expression)
    sentence, shown, pointer = str(caught.value).split("\n")
    assert what in sentence
    assert sentence.startswith("--only: ")
    assert shown == "  " + expression
    assert pointer == "  " + " " * caret + "^"


def test_an_expression_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match="stand inside each other"):
        parse("(" * (DEEPEST + 1))
    with pytest.raises(UsageError, match="stand inside each other"):
        parse("not " * (DEEPEST + 1) + "class=traps")
    with pytest.raises(UsageError, match="at most 10000"):
        parse("a" * (MOST + 1))
    assert parse(" or ".join(["class=traps"] * 500))(SITES[0])


@given(st.text(alphabet="()='\"! \n\tandorclass=tpsmneic*-0x1é", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_an_expression_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        for site in SITES:
            assert parse(text)(site) in (True, False)


def addresses_of(only: tuple[str, ...] = (), but: tuple[str, ...] = (), at: tuple[int, ...] = ()) -> set[int]:
    match = chosen(only, but, at)
    assert match is not None
    return {site.address for site in SITES if match(site)}


def test_options_join_as_any_of_and_none_of() -> None:
    sgdt, start = addresses()["sgdt"], addresses()["start"]
    clis = {site.address for site in SITES if site.row.name == "CLI"}
    assert chosen((), (), ()) is None
    assert addresses_of(("mnemonic=CLI",), (), (sgdt,)) == clis | {sgdt}
    assert addresses_of(("mnemonic=CLI",), (f"address={start:#x}",)) == clis - {start}
    assert addresses_of((), ("class=traps",)) == {s.address for s in SITES if not s.row.privileged}
    assert addresses_of(at=(sgdt,)) == {sgdt}


def test_every_field_has_a_value_for_every_site() -> None:
    def text(site: Site) -> list[str]:
        return [field.of(site) for field in FIELDS.values()]

    assert all(isinstance(one, str) for site in SITES for one in text(site))
    assert all(field.meaning for field in FIELDS.values())
