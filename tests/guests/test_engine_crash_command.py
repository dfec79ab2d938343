"""The engine's native code crashes under a guest: the commands say that the guest is lost, with its last state.

The crash is a real one: straight MIPS code overruns a table of the engine's translator, once what keeps it from that
(`limit_blocks`) is taken away.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bt.image.image_files import Part, make_elf

STATUS = 14
BASE, ENTRY = 0x10_0000, 0x8010_0000
UNLIMITED = (
    "import sys, emulator.engine.unicorn.mips as mips\nmips.limit_blocks = lambda *_: None\n"
    "from bt.cli.main import main\nsys.argv = ['retrap', *sys.argv[1:]]\nsys.exit(main())\n"
)


@pytest.fixture
def straight(tmp_path: Path) -> Path:
    """A kernel that prints a line and goes into 500 instructions without a branch."""
    # lui t0,B800H; then li t1,character; sb t1,3F8H(t0) for each; lui s0,1234H; a jump, so that a block begins
    words = [0x3C08_B800]
    for character in b"so far\n":
        words += [0x2409_0000 | character, 0xA109_03F8]
    words += [0x3C10_1234, 0x1000_0001, 0, *[0x2484_0001] * 500, 0x1000_FFFF, 0]
    text = b"".join(word.to_bytes(4, "little") for word in words)
    path = tmp_path / "straight.elf"
    path.write_bytes(make_elf((Part(".text", text.ljust(0x1000, b"\0"), ENTRY, BASE, 5),), ENTRY, machine=8, bits=32))
    return path


def retrap(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", UNLIMITED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("virt", ["inline", "native"])
def test_run_reports_the_lost_guest_and_keeps_what_it_printed(straight: Path, tmp_path: Path, virt: str) -> None:
    result = tmp_path / "result.json"
    done = retrap("run", straight, "--virt", virt, "--memory", "16M", "--no-cache", "--json", result, "--exits")
    assert (done.returncode, done.stdout) == (STATUS, "so far\n")
    assert "the CPU engine crashed (SIGSEGV) and the guest is lost at 0x8010" in done.stderr
    assert "0x12340000" in done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(result.read_text())
    assert (found["outcome"]["kind"], found["outcome"]["exit_status"]) == ("error", STATUS)
    lost = found["lost"]
    assert lost["signal"] == "SIGSEGV"
    assert lost["progress"] > 0
    assert ENTRY <= int(lost["address"], 16) < ENTRY + 0x1000
    assert "0x12340000" in lost["registers"].values()
    assert found["console"]["bytes"] == 7


def test_verify_reports_the_lost_guest(straight: Path) -> None:
    done = retrap("verify", straight, "--memory", "16M", "--no-cache")
    assert done.returncode == STATUS
    assert "the CPU engine crashed (SIGSEGV)" in done.stderr
    assert "last state:" in done.stderr


def test_a_session_of_the_library_raises_and_can_be_looked_at(straight: Path) -> None:
    program = (
        "import emulator.engine.unicorn.mips as mips\nmips.limit_blocks = lambda *_: None\n"
        "from bt.image import load\nfrom bt.session import Options, Session\n"
        "from emulator.errors import EngineCrashed\n"
        "from pathlib import Path\nprinted = bytearray()\n"
        f"session = Session(load(Path({str(straight)!r})), Options(memory=16 << 20, cache=False), printed.extend)\n"
        "try:\n    session.run()\nexcept EngineCrashed as crash:\n"
        "    print(crash.last['signal'], bytes(printed), session.machine.memory.read_bytes(0x100000, 4).hex())\n"
        "session.close()\nprint('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "SIGSEGV b'so far\\n' 00b8083c\nalive\n", done.stderr
