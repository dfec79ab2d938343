"""Para-virtual images: known by their note, refused where they cannot run."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bt import para
from bt.image import load
from bt.session import Options, Session
from emulator.errors import BadImage, UsageError
from paravirt.abi.calls import ABI_MAJOR, ABI_MINOR, PARA_VERSION
from tests.paravirt.para.para_tiny import NOTE, file_of


def note(version: int, name: bytes = b"retrap\0\0", kind: int = 1) -> bytes:
    return struct.pack("<III", 7, 4, kind) + name + struct.pack("<I", version)


def image(directory: Path, contents: bytes) -> Path:
    return file_of("x86-64", b"\xf4", directory, note=contents)


def test_a_ported_kernel_is_known_by_its_note(tmp_path: Path) -> None:
    assert para.version_of(load(image(tmp_path, NOTE))) == PARA_VERSION


@pytest.mark.parametrize("contents", [b"", note(1, b"someone\0"), note(1, kind=2)])
def test_another_kernel_is_none(contents: bytes, tmp_path: Path) -> None:
    assert para.version_of(load(image(tmp_path, contents))) is None


def test_a_note_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="damaged"):
        para.version_of(load(image(tmp_path, NOTE[:-2])))


def start(path: Path, mode: str) -> None:
    Session(load(path), Options(mode=mode, memory=64 << 20, cache=False), lambda _data: None).close()


@pytest.mark.parametrize("mode", ["native", "none", "trap", "inline"])
def test_a_ported_kernel_is_refused_by_every_other_way(mode: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is para-virtual.*--virt para"):
        start(image(tmp_path, NOTE), mode)


def test_a_kernel_that_was_not_ported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not para-virtual.*--virt inline"):
        start(image(tmp_path, b""), "para")


@pytest.mark.parametrize("version", [(ABI_MAJOR + 1) << 16, PARA_VERSION + 1, 0])
def test_a_version_that_there_is_not_is_refused_by_name(version: int, tmp_path: Path) -> None:
    with pytest.raises(
        BadImage, match=rf"version {version >> 16}\.{version & 0xFFFF} .* here is {ABI_MAJOR}\.{ABI_MINOR}"
    ):
        start(image(tmp_path, note(version)), "para")
