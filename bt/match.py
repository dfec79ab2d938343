"""The match language: which sites a command is about, as `mnemonic=PUSHF and not section=.init.text`.

Room: `bt`. An expression is comparisons joined by `and`, `or`, `not` and parentheses; a comparison is FIELD=VALUE or
FIELD!=VALUE, the value a word, or anything in quotes. Names take the patterns of the shell (`native_*`), addresses a
number or a range START-END, its end not included. Nothing but sites is looked at, and nothing is executed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NoReturn

from emulator.errors import UsageError, brief

if TYPE_CHECKING:
    from bt.scan import Site

Match = Callable[["Site"], bool]

MOST: Final = 10_000
"""Characters of an expression."""
DEEPEST: Final = 100
"""Parentheses and `not`s inside each other."""
_TOKEN: Final = re.compile(r"""\s*(?:([()])|(!=|=)|"([^"]*)"|'([^']*)'|([^\s()!='"]+))""")


@dataclass(frozen=True, slots=True)
class Field:
    """Something of a site that can be compared."""

    meaning: str
    """For people."""
    of: Callable[[Site], str]
    """Its value, as text."""
    values: tuple[str, ...] = ()
    """The values there are, where there are few."""


def _name(symbol: str) -> str:
    """A symbol without the distance from it."""
    return symbol.rpartition("+0x")[0] or symbol


FIELDS: Final[dict[str, Field]] = {
    "class": Field(
        "what the instruction does in user mode",
        lambda site: site.row.at_user_level.value,
        ("traps", "ignored", "leaks", "differs"),
    ),
    "mnemonic": Field("the name of its row in the table (`retrap isa`), capitals or not", lambda site: site.row.name),
    "operation": Field("the privileged act it stands for, such as WRITE_FLAGS", lambda site: site.row.operation.name),
    "section": Field("the section it stands in; empty where there are none", lambda site: site.section),
    "symbol": Field("the symbol it belongs to, without the distance from it", lambda site: _name(site.symbol)),
    "address": Field("its guest-virtual address: a number, or a range START-END", lambda site: f"{site.address:#x}"),
    "confidence": Field(
        "how sure it is that it is an instruction", lambda site: site.confidence.value, ("certain", "likely", "data?")
    ),
    "state": Field("its instruction-set state", lambda site: site.state, ("a32", "t32", "")),
}
"""Every field by its name."""
_FOLDED: Final = frozenset({"mnemonic", "operation"})


class _Parser:
    """A recursive descent over one expression."""

    def __init__(self, text: str, option: str) -> None:
        self._text = text
        self._option = option
        self._at = 0
        self._depth = 0
        if len(text) > MOST:
            raise UsageError(f"{option}: the expression has {len(text)} characters; at most {MOST} are read")

    def parse(self) -> Match:
        match = self._either()
        if self._peek() is not None:
            self._fail("this is too much; join comparisons by `and` or `or`")
        return match

    def _either(self) -> Match:
        parts = [self._both()]
        while self._word("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else lambda site: any(part(site) for part in parts)

    def _both(self) -> Match:
        parts = [self._one()]
        while self._word("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else lambda site: all(part(site) for part in parts)

    def _one(self) -> Match:
        self._depth += 1
        if self._depth > DEEPEST:
            self._fail(f"more than {DEEPEST} parentheses and `not`s stand inside each other")
        try:
            if self._word("not"):
                inner = self._one()
                return lambda site: not inner(site)
            token = self._peek()
            if token is not None and token[1] == "(":
                self._take()
                match = self._either()
                closing = self._peek()
                if closing is None or closing[1] != ")":
                    self._fail("a closing parenthesis is missing here")
                self._take()
                return match
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Match:
        token = self._peek()
        if token is None or token[1] or token[3]:
            self._fail(f"here must be a comparison, such as mnemonic=PUSHF; fields are {', '.join(FIELDS)}")
        name = token[2]
        if name not in FIELDS:
            self._fail(f"there is no field {brief(repr(name))}; fields are {', '.join(FIELDS)}")
        self._take()
        operator = self._peek()
        if operator is None or operator[1] not in ("=", "!="):
            self._fail(f"here must be = or !=, as in {name}=VALUE")
        self._take()
        value = self._peek()
        if value is None or value[1]:
            self._fail("here must be a value; put it in quotes where it is no single word")
        compare = self._compare(name, value[2])
        self._take()
        return compare if operator[1] == "=" else lambda site: not compare(site)

    def _compare(self, name: str, value: str) -> Match:
        field = FIELDS[name]
        if name == "address":
            low, high = self._range(value)
            return lambda site: low <= site.address < high
        if field.values and value not in field.values:
            self._fail(f"{name} is one of {', '.join(repr(one) for one in field.values)}")
        if name in _FOLDED:
            folded = value.casefold()
            return lambda site: fnmatchcase(field.of(site).casefold(), folded)
        return lambda site: fnmatchcase(field.of(site), value)

    def _range(self, value: str) -> tuple[int, int]:
        start, dash, end = value.partition("-")
        try:
            low = int(start, 0)
            high = int(end, 0) if dash else low + 1
        except ValueError:
            self._fail("here must be an address, such as 0xffffffff81000000, or a range START-END")
        if not 0 <= low < high <= 1 << 64:
            self._fail("the range is empty, or outside the address space")
        return low, high

    # -- tokens: (offset, punctuation or "", word, whether it was quoted) ---------------------

    def _peek(self) -> tuple[int, str, str, bool] | None:
        rest = len(self._text) - len(self._text[self._at :].lstrip())
        if rest >= len(self._text):
            return None
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            self._at = rest
            self._fail("a quotation mark is not closed here" if self._text[rest] in "\"'" else "this is no word")
        bracket, operator, double, single, word = found.groups()
        quoted = double if double is not None else single
        self._next = found.end()
        return rest, bracket or operator or "", quoted if quoted is not None else word or "", quoted is not None

    def _take(self) -> None:
        self._peek()
        self._at = self._next

    def _word(self, word: str) -> bool:
        """Take a word of the language if it comes next."""
        token = self._peek()
        if token is None or token[1] or token[3] or token[2] != word:
            return False
        self._take()
        return True

    def _fail(self, what: str) -> NoReturn:
        at = len(self._text) - len(self._text[self._at :].lstrip()) if self._at < len(self._text) else len(self._text)
        line = "".join(one if one.isprintable() else " " for one in self._text)
        low, high = max(at - 60, 0), at + 40
        raise UsageError(f"{self._option}: {what}\n  {line[low:high]}\n  {' ' * (at - low)}^")


def parse(text: str, option: str = "--only") -> Match:
    """The test that an expression stands for; `option` is for messages. Raises `UsageError` that shows the place."""
    return _Parser(text, option).parse()


def chosen(only: Iterable[str], but: Iterable[str], at: Iterable[int]) -> Match | None:
    """The test for options --only (any of), --except (none of) and --at (addresses); None where all are chosen."""
    wanted = [parse(text, "--only") for text in only]
    unwanted = [parse(text, "--except") for text in but]
    places = frozenset(at)
    if not (wanted or unwanted or places):
        return None

    def match(site: Site) -> bool:
        named = not wanted and not places
        named = named or site.address in places or any(one(site) for one in wanted)
        return named and not any(one(site) for one in unwanted)

    return match
