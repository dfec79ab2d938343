"""Accounts of the tests' small kernel, as it was rewritten.

Room: tests.
"""

from __future__ import annotations

from bt.image import from_bytes
from bt.planner import plan
from bt.report.account import Account
from bt.report.source import of_rewritten
from bt.rewrite import rewrite
from bt.scan import scan
from tests.bt.rewrite.small_kernel import image


def rewritten(mode: str = "inline") -> bytes:
    """The rewritten ELF."""
    one = image()
    return rewrite(one, plan(one, scan(one), mode))


def small_account(mode: str = "inline") -> Account:
    """What it says of itself."""
    made = of_rewritten(from_bytes(rewritten(mode), "small.retrap"))
    assert made is not None
    return made
