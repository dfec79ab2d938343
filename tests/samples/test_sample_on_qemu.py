"""The guest kernels on QEMU, the independent reference: console, status, and memory at the end."""

import shutil
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

SAMPLES = Path(__file__).parents[2] / "samples"
MANIFEST: dict[str, Any] = tomllib.loads((SAMPLES / "manifest.toml").read_text())
SAMPLE = next(guest for guest in MANIFEST["guest"] if guest["kind"] == "checks")
HOSTILE = {guest["name"]: guest for guest in MANIFEST["guest"] if guest["kind"] == "hostile"}
QEMU = "qemu-system-x86_64"
MEMORY, MEMORY_SIZE = 0x1000000, 0xA00000
ENDLESS = {"spin", "spin-with-exits", "fault-loop", "halt"}

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed"),
]


def run(file: str, *extra: str, timeout: float) -> tuple[int, bytes]:
    """QEMU's exit status (0 for a reset, as by a triple fault) and the console's bytes."""
    command = [QEMU, "-kernel", str(SAMPLES / file), *MANIFEST["qemu"]["arguments"], *extra]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    return done.returncode, done.stdout


COUNTED = "-icount", "shift=0"
"""Time is counted in instructions: on a busy host, too, a guest is done before the firmware's timer, which nobody
masked, interrupts its user code."""


@pytest.mark.parametrize("extra", [[], ["-icount", "shift=3"], ["-cpu", "max"]], ids=["default", "icount", "cpu-max"])
def test_the_sample_passes_all_its_checks(extra: list[str]) -> None:
    status, console = run(SAMPLE["file"], *extra, timeout=SAMPLE["timeout"])
    assert console == (SAMPLES / SAMPLE["console"]).read_bytes()
    assert status == 2 * SAMPLE["status"] + 1


def test_the_command_line_chooses_checks() -> None:
    status, console = run(SAMPLE["file"], "-append", "quiet only=tables.s", timeout=60)
    wanted = ["sgdt", "sidt", "str", "sldt", "smsw"]
    lines = [f"ok tables.{name}" for name in wanted]
    assert console.decode().splitlines()[1:] == [*lines, "retrap sample: 5 checks, 0 failed"]
    assert status == 1


def test_a_failing_check_is_visible_on_the_console_and_in_the_status() -> None:
    """A processor without NX, FXSR and SSE2 is not sane to the sample."""
    status, console = run(SAMPLE["file"], "-cpu", "qemu64,-sse2", "-append", "only=registers.cpuid", timeout=60)
    assert b"FAIL registers.cpuid: " in console
    assert console.endswith(b"retrap sample: 1 checks, 1 failed\n")
    assert status == 3


def volatile_range() -> tuple[int, int]:
    """Offsets of the volatile section in the dumped memory."""
    with (SAMPLES / SAMPLE["file"]).open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        addresses = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}
    bounds = [addresses[SAMPLE["volatile"][key]] for key in ("start", "end")]
    return bounds[0] - 0xFFFF_FFFF_8000_0000 - MEMORY, bounds[1] - 0xFFFF_FFFF_8000_0000 - MEMORY


def memory_at_the_end(directory: Path, *extra: str) -> bytes:
    """The guest's memory when it has halted; without debug-exit, so that QEMU stays to be asked."""
    console, dump = directory / "console", directory / "memory"
    console.write_bytes(b"")
    command = [QEMU, "-kernel", str(SAMPLES / SAMPLE["file"]), "-M", "pc,acpi=off", "-m", "128", "-display", "none"]
    command += ["-serial", f"file:{console}", "-monitor", "stdio", *extra]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            deadline = time.monotonic() + SAMPLE["timeout"]
            while b" failed\n" not in console.read_bytes():
                assert time.monotonic() < deadline, "the sample did not end"
                time.sleep(0.05)
            time.sleep(0.2)  # the few instructions from the last character to HLT
            process.communicate(f'stop\npmemsave {MEMORY:#x} {MEMORY_SIZE:#x} "{dump}"\nquit\n', timeout=30)
        finally:
            process.kill()
    return dump.read_bytes()


def test_memory_at_the_end_depends_on_timing_only_in_the_volatile_section(tmp_path: Path) -> None:
    start, end = volatile_range()
    runs = []
    for number, extra in enumerate([[], ["-icount", "shift=2"], ["-icount", "shift=6"]]):
        directory = tmp_path / str(number)
        directory.mkdir()
        runs.append(memory_at_the_end(directory, *extra))
    assert all(len(memory) == MEMORY_SIZE for memory in runs)
    assert len({memory[:start] + memory[end:] for memory in runs}) == 1
    assert len({memory[start:end] for memory in runs}) > 1, "the runs had the same timing, so nothing was shown"
    pool = slice(0x400000, 0xA00000)
    assert not any(runs[0][pool]), "pages given back are zero"


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - ENDLESS))
def test_a_hostile_guest_ends_as_the_manifest_says(name: str) -> None:
    guest = HOSTILE[name]
    try:
        status, console = run(
            guest["file"], *COUNTED, timeout=5 if "host-timeout" in guest["outcome"] else guest["timeout"]
        )
    except subprocess.TimeoutExpired:
        assert "host-timeout" in guest["outcome"]
        return
    outcome = "triple-fault" if status == 0 else "debug-exit"
    assert outcome in guest["outcome"]
    if outcome == "debug-exit":
        assert status == 2 * guest["status"] + 1
    if "console_text" in guest:
        assert console.decode() == guest["console_text"]


@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_an_endless_guest_ends_only_by_its_time(name: str) -> None:
    guest = HOSTILE[name]
    assert "host-timeout" in guest["outcome"]
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run(guest["file"], timeout=2)
    assert (caught.value.output or b"").decode() == guest["console_text"]
