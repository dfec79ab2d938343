"""The formats of a report on a rewritten image, by name.

Room: `bt/report`. A format is a function from an `Account` to text; whoever asks decides where that goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bt.report.account import Account


def _text(account: Account) -> str:
    from bt.report import text

    return text.account_text(account)


def _json(account: Account) -> str:
    from bt.report import json

    return json.dumps_rows(json.rewrite_json(account))


def _sarif(account: Account) -> str:
    from bt.report import json, sarif

    return json.dumps_flat(sarif.sarif(account))


def _html(account: Account) -> str:
    from bt.report import html

    return html.page(account)


FORMATS: Final[dict[str, Callable[[Account], str]]] = {
    "text": _text,
    "json": _json,
    "sarif": _sarif,
    "html": _html,
}
"""Name of a format -> what makes it."""


def render(account: Account, name: str) -> str:
    """The report in a format of `FORMATS`; the same text for the same account."""
    return FORMATS[name](account)
