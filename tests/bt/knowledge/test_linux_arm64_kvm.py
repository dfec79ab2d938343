"""The tag of AArch64's hypervisor addresses: its places and values are told from anything else that differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from bt.knowledge import linux_arm64_kvm
from bt.knowledge.linux_arm64_kvm import Tags

SITE, POINTER = 0x1000, 0x1100
SHIFT = 28
NOP = 0xD503_201F


@dataclass
class Memory:
    data: bytes

    def read(self, physical: int, size: int) -> bytes:
        return self.data[physical : physical + size]


@dataclass
class Run:
    memory: Memory


@dataclass
class Runs:
    reference: Run
    rewritten: Run
    delta: int = 0
    image: None = None

    def physical(self, address: int) -> int:
        return address


def text(tag: int, register: int = 3, pointer: int | None = None) -> Memory:
    """`and`, `ror`, two `add` and `ror` at `SITE` and behind it, and a pointer with the tag."""
    same = register << 5 | register
    words = [
        0x9240_6C00 | same,
        0x93C0_0000 | register << 16 | SHIFT << 10 | same,
        0x9100_0000 | (tag & 0xFFF) << 10 | same,
        0x9140_0000 | (tag >> 12) << 10 | same,
        0x93C0_0000 | register << 16 | 36 << 10 | same,
    ]
    site = b"".join(word.to_bytes(4, "little") for word in words)
    value = (tag if pointer is None else pointer) << SHIFT | 0x0123_4568
    return Memory(bytes(SITE) + site.ljust(POINTER - SITE, b"\0") + value.to_bytes(8, "little") + bytes(64))


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux_arm64_kvm, "sites", lambda _image: frozenset({SITE}))


def tags(left: Memory, right: Memory) -> Tags:
    runs: Any = Runs(Run(left), Run(right))
    return Tags(runs)


def differing(left: Memory, right: Memory) -> list[int]:
    return [at for at, (a, b) in enumerate(zip(left.data, right.data, strict=True)) if a != b]


@pytest.mark.usefixtures("sites")
def test_what_the_tags_alone_make_different_is_excused() -> None:
    left, right = text(0xFF71F), text(0xAD899)
    known = tags(left, right)
    assert all(known.excuse(at) > 0 for at in differing(left, right))
    assert known.excuse(SITE + 10) == 2  # to the end of the instruction, and no further
    assert known.excuse(POINTER + 4) == 4


@pytest.mark.usefixtures("sites")
def test_a_pointer_with_another_tag_is_not() -> None:
    left, right = text(0xFF71F), text(0xAD899, pointer=0xAD89A)
    assert tags(left, right).excuse(POINTER + 4) == 0


@pytest.mark.usefixtures("sites")
def test_a_place_that_was_not_patched_is_not() -> None:
    left = text(0xFF71F)
    right = Memory(left.data[:SITE] + NOP.to_bytes(4, "little") * 5 + left.data[SITE + 20 :])
    assert [tags(left, right).excuse(at) for at in (SITE + 9, SITE + 13)] == [0, 0]


def test_without_the_kernels_table_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux_arm64_kvm, "sites", lambda _image: frozenset())
    left, right = text(0xFF71F), text(0xAD899)
    assert not any(tags(left, right).excuse(at) for at in differing(left, right))
