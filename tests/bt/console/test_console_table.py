"""The page of differing lines: every one with its rule, values blanked, and what no rule explains said so."""

from __future__ import annotations

from bt.console_compare import compare
from bt.console_table import PAGE, section

OURS = b"[    0.000000] Linux\n[    0.100000] NR_IRQS: 16, nr_irqs: 56\n[    0.100000] random: crng init done\n"
THEIRS = b"[    0.000000] Linux\n[    0.200000] NR_IRQS: 16, nr_irqs: 64\n[    0.300000] what is | this\n"


def test_a_guests_part_names_every_difference_and_its_rule() -> None:
    text = section("guest", compare(OURS, THEIRS))
    assert text.startswith("## guest\n")
    assert "| `random: crng init done` | here only | timers and clock sources |" in text
    assert "| `what is \\| this` | QEMU only | UNEXPLAINED |" in text
    assert "| 1 | interrupt controllers | " in text


def test_the_page_explains_every_line() -> None:
    page = PAGE.read_text()
    assert page.count("\n## ") == 5
    assert "UNEXPLAINED" not in page
