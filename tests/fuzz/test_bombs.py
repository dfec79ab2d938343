"""Files that claim to be huge, or become so: refused in a sentence, in little memory, and nothing is written.

All of them are given to one process, which runs the command line on each and says how it ended and what memory it
had; a limit on its address space keeps a mistake from taking the machine down.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.bt.image import image_files as files
from tests.bt.rewrite.small_kernel import kernel

MIB = 1 << 20
ZEROS = bytes(64 * MIB)
INIT_SIZE = 16 * MIB
"""What the setup header allows a bomb to become."""
MEMORY = 300 * MIB
"""Most that any of these may take; Python with all that a scan imports has about a third."""

CHILD = """
import contextlib, io, json, os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from bt.cli.main import run
from bt import scan, rewrite, planner
for name, command in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = run(command)
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    print(json.dumps([name, status, said.getvalue(), peak << 10]), flush=True)
"""


def _zstd() -> bytes:
    return bytes(zstandard.ZstdCompressor(level=1).compress(ZEROS))


def _lz4() -> bytes:
    import lz4.block

    block: bytes = lz4.block.compress(bytes(8 * MIB), store_size=False)
    return b"\x02\x21\x4c\x18" + bytes(struct.pack("<I", len(block)) + block) * 8


COMPRESSED: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip.compress(ZEROS, 1, mtime=0),
    "xz": lambda: lzma.compress(ZEROS, preset=0),
    "lzma": lambda: lzma.compress(ZEROS, lzma.FORMAT_ALONE, preset=0),
    "bzip2": lambda: bz2.compress(ZEROS, 1),
    "zstd": _zstd,
    "lz4": _lz4,
}


def _put(data: bytes, *words: tuple[int, str, int]) -> bytes:
    made = bytearray(data)
    for at, form, value in words:
        struct.pack_into(form, made, at, value)
    return bytes(made)


def _section(data: bytes, number: int) -> int:
    """Offset of a section header of an ELF64."""
    return int(struct.unpack_from("<Q", data, 0x28)[0]) + 64 * number


def elves() -> dict[str, bytes]:
    """Headers that lie about sizes and places."""
    data = kernel()
    one = _section(data, 1)
    huge = 10 << 30
    return {
        "section-of-10-GB": _put(data, (one + 0x20, "<Q", huge)),
        "section-at-10-GB": _put(data, (one + 0x18, "<Q", huge)),
        "every-section-of-10-GB": _put(data, *((_section(data, n) + 0x20, "<Q", huge) for n in range(1, 4))),
        "segment-file-size-10-GB": _put(data, (64 + 0x20, "<Q", huge), (64 + 0x28, "<Q", huge)),
        "segment-memory-size-10-GB": _put(data, (64 + 0x28, "<Q", huge)),
        "segments-overlap": _put(data, (64 + 56 + 0x10, "<Q", files.BASE + 8), (64 + 56 + 0x18, "<Q", 0x100_0008)),
        "segment-wraps": _put(data, (64 + 0x10, "<Q", (1 << 64) - 16)),
        "header-is-its-own-program-header": _put(data, (0x20, "<Q", 0)),
        "header-is-its-own-section-table": _put(data, (0x28, "<Q", 0), (0x3C, "<H", 3)),
        "section-table-within-a-section": _put(data, (one + 0x18, "<Q", _section(data, 0)), (one + 0x20, "<Q", 256)),
        "65534-program-headers": _put(data, (0x38, "<H", 0xFFFE)),
        "65534-program-headers-all-the-same": _put(data + bytes(MIB * 4), (0x38, "<H", 0xFFFE), (0x36, "<H", 0)),
        "section-count-in-section-0": _put(data, (0x3C, "<H", 0), (_section(data, 0) + 0x20, "<Q", 1 << 40)),
        "names-in-themselves": _put(data, (_section(data, 3) + 0x18, "<Q", _section(data, 3))),
        "entry-in-data": _put(data, (0x18, "<Q", files.BASE + 0x20_0000)),
        "cut-in-its-header": data[:48],
    }


def texts() -> dict[str, bytes]:
    """JSON that is deep, long or wide."""
    return {
        "deep-lists": b'{"a":' + b"[" * 200_000,
        "deep-objects": b'{"a":' * 100_000,
        "long-number": b'{"format":' + b"9" * 1_000_000 + b"}",
        "many-keys": b"{" + b",".join(b'"%d":0' % n for n in range(200_000)) + b"}",
        "huge-lists": b'{"format":2,"abi":1,"sites":[' + b",".join([b"0"] * 500_000) + b"]}",
    }


HARMLESS = ("header-is-its-own-section-table", "section-table-within-a-section", "names-in-themselves")
"""Section headers that say odd things and contradict nothing: such a file is read, and must come back as it was."""


@dataclass(frozen=True)
class Ending:
    """How the command ended on one file."""

    status: int
    said: str
    peak: int


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ending]:
    """Every bomb, given to `scan` or `report`, and to `rewrite`."""
    directory = tmp_path_factory.mktemp("bombs")
    bombs = {f"{name}-bomb": files.make_bzimage(make(), init_size=INIT_SIZE) for name, make in COMPRESSED.items()}
    work: list[Any] = []
    (directory / "back").mkdir()
    for name, data in {**bombs, **elves(), **texts()}.items():
        (directory / name).write_bytes(data)
        path, out = str(directory / name), str(directory / "out" / name)
        work.append([name, ["report" if name in texts() else "scan", path]])
        work.append([f"rewrite {name}", ["rewrite", path, "-o", out]])
        if name in HARMLESS:
            work.append([f"revert {name}", ["revert", out, "-o", str(directory / "back" / name)]])
    (directory / "out").mkdir()
    before = {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(directory / ".cache"), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(work),
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert before == {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(work)
    made = {name: Ending(status, said, peak) for name, status, said, peak in rows}
    written = {f"rewrite {file.name}" for file in (directory / "out").iterdir()}
    assert written == {name for name, ending in made.items() if ending.status == 0 and name.startswith("rewrite ")}
    for name in HARMLESS:
        assert (directory / "back" / name).read_bytes() == (directory / name).read_bytes()
    return made


NAMES = [*(f"{name}-bomb" for name in COMPRESSED), *elves(), *texts()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["", "rewrite "], ids=["read", "rewrite"])
def test_it_is_refused_in_one_sentence_or_harmless_and_takes_little_memory(
    endings: dict[str, Ending], how: str, name: str
) -> None:
    ending = endings[how + name]
    assert ending.peak < MEMORY, ending
    if name in HARMLESS:
        assert (ending.status, ending.said) == (0, "")
        return
    assert ending.status == 3, ending
    assert ending.said.count("\n") == 1, ending
    assert ending.said.startswith("retrap: "), ending
    assert name in ending.said, ending
    assert len(ending.said) < 700, ending
