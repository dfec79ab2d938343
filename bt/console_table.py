"""The page of stock kernels' consoles: every line that is not the same here and on QEMU, and the rule that explains it.

Room: comparisons. `python -m bt.console_table` boots each fetched guest by fixups and by QEMU and writes
`docs/stock-consoles.md`; a guest or a QEMU that is not there is left as it stands on the page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bt.console_compare import LINUX, Comparison, Side

PAGE: Final = Path(__file__).parent.parent / "docs" / "stock-consoles.md"
GUESTS: Final = ("debian-amd64", "debian-i386", "debian-arm64", "debian-armhf", "debian-mipsel")
_HEAD: Final = """# Consoles of stock kernels beside QEMU's

<!-- Written by `python -m bt.console_table`; do not edit. -->

Debian's kernels, deprivileged with fixups, and QEMU's TCG at full privilege: the same kernel, initramfs and command
line. Below is every line that only one of the consoles has, or that is at another place, with the rule of
[the table](generated/console-rules.md) that excuses it, and how many lines differ in a value alone. No difference
is unexplained; a run in which one is fails.
"""
_WHOSE: Final = {Side.OURS: "here only", Side.THEIRS: "QEMU only", Side.MOVED: "elsewhere"}
_NUMBERS: Final = re.compile(r"\d+\.\d+")


def section(name: str, comparison: Comparison) -> str:
    """A guest's part of the page; clock readings in lines are blanked, so that it is the same on every host."""
    why = {rule.name: rule.why for rule in LINUX}
    lines = [f"## {name}", "", f"{comparison.equal} lines are equal once values are blanked.", ""]
    if comparison.blanked:
        lines += ["| Lines | differ by the value | for |", "|---|---|---|"]
        lines += [f"| {count} | {rule} | {why[rule]} |" for rule, count in sorted(comparison.blanked.items())]
        lines.append("")
    if comparison.differences:
        lines += ["| Line | where | rule |", "|---|---|---|"]
        lines += list(dict.fromkeys(_rows(comparison)))
        lines.append("")
    return "\n".join(lines)


def _rows(comparison: Comparison) -> Iterable[str]:
    for one in comparison.differences:
        text = _NUMBERS.sub("*", one.line).replace("|", "\\|").replace("`", "'")
        yield f"| `{text}` | {_WHOSE[one.side]} | {one.explanation or 'UNEXPLAINED'} |"


def write(names: Iterable[str]) -> None:
    """Boot the guests of these names, and put their parts into the page."""
    from bt import guests
    from bt.session import Options, read_initrd
    from bt.verify import verify
    from bt.verify.guest import find
    from bt.verify.third_party import compare_with_qemu
    from emulator.machine import Limits

    for name in names:
        fetched, guest = guests.find(name), find(name)
        options = Options(
            memory=guest.memory,
            initrd=read_initrd(fetched.initrd),
            command_line=fetched.command_line,
            limits=Limits(host_seconds=300),
        )
        result = verify(guest, options, ("inline",))
        compare_with_qemu(result, options, fetched.initrd)
        for _mode, comparison in result.consoles:
            _put(name, section(name, comparison))


def _put(name: str, text: str) -> None:
    old = PAGE.read_text() if PAGE.exists() else _HEAD
    parts = {part.split("\n", 1)[0]: f"## {part}" for part in old.split("\n## ")[1:]}
    parts[name] = text
    ordered = [parts[one].rstrip("\n") for one in GUESTS if one in parts]
    PAGE.write_text(_HEAD + "\n" + "\n\n".join(ordered) + "\n")


if __name__ == "__main__":
    write(sys.argv[1:] or GUESTS)
