"""What cannot be moved into a fixup, and why."""

from __future__ import annotations

import pytest

from bt.pagescan import PAGE
from bt.tactics.x86.choose import choose
from bt.tactics.x86.pagescan import scan_page
from bt.tactics.x86.window import Ground
from tests.bt.tactics.bare_cpu import SITE_PAGE
from tests.bt.tactics.template_models import NOP5, refusal


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (b"\x9c\xfa\x48\x8b\x03", "cannot be done twice"),  # pushf; cli; mov rax, [rbx]: may be a device
        (
            b"\x9c\x5b\x65\x48\x8b\x03",
            "at an address that what comes before makes",
        ),  # pushf; pop rbx; mov rax, gs:[rbx]
    ],
)
def test_what_must_not_be_tried_is_refused(code: bytes, why: str) -> None:
    assert why in refusal(code)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (b"\xfb\x90\xfa\x0f\x1f\x00", "an interrupt may have to come before"),  # sti; nop; cli
        (b"\xfb\x9c\x58\xfa\x90", "an interrupt may have to come before"),  # sti; pushf; pop; cli
        (b"\xfb\x90\x90\x48\x8b\x03", "an interrupt may have to come before"),  # sti; nop; nop; mov rax, [rbx]
        (b"\x9c\x48\x8b\x03\x90\x90", "may fault"),  # pushf; mov rax, [rbx]
        (b"\xfa\x74\x10\x90\x90", "a branch follows it before there is room"),  # cli; jz
        (b"\xfa\xc3\x55\x90\x90", "a branch follows it before there is room"),  # cli; ret; push rbp
        (b"\x9c\xc3\xcc\xcc\xcc", "a stack that has moved"),  # pushf; ret
        (b"\xfa\xff\xd0\x90\x90\x90", "something else where it would be moved"),  # cli; call rax
        (b"\xfb\xf4\x90\x90\x90", "another sensitive instruction"),  # sti; hlt
        (b"\x0f\x20\xc0\xf3\xaa\x90", "something else where it would be moved"),  # mov rax, cr0; rep stosb
        (b"\x44\x0f\x20\xc0\x90", "no copy in the shared page"),  # mov rax, cr8
        (b"\x66\x9c\x0f\x1f\x40\x00", "no fixup can do it"),  # pushfw
    ],
)
def test_what_cannot_be_moved_is_refused_with_its_reason(code: bytes, why: str) -> None:
    assert why in refusal(code)


def test_branches_tables_and_page_ends_are_refused() -> None:
    plain = b"\xfa" + NOP5
    short = "in place: it has 1 byte, and a jump takes 5"
    assert refusal(plain) == short
    assert "branch leads into" in refusal(b"\xfa\x66\x90\x66\x90", targets=1 << 3)
    assert "looks at or patches" in refusal(plain, taken=1 << 1)
    assert refusal(plain, targets=1, taken=1) == short
    assert "not all branches are known" in refusal(b"\xfa\xb8\x00\x00\x00\x00", known=False)
    assert "not all branches are known" in refusal(plain, known=False)
    page = b"\x90" * (PAGE - 3) + b"\xfa\x90\x90"
    scan = scan_page(page, b"\x90" * 15, 0)
    ground = Ground(SITE_PAGE, page, b"\x90" * 15, scan.boundaries, 0, 0, known=True)
    assert "crosses the end of its page" in choose(ground, scan.sites[0], "inline").refused
