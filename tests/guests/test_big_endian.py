"""A big-endian MIPS32 guest: the portable sample, built so, under the hypervisor and at full privilege."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.errors import UsageError
from emulator.machine import EndKind

SAMPLES = Path(__file__).parents[2] / "samples"
KERNEL = SAMPLES / "mips32" / "big" / "portable.elf"


@pytest.mark.parametrize("mode", ["trap", "none", "native"])
def test_it_passes_the_checks_that_a_little_endian_one_passes(mode: str) -> None:
    printed = bytearray()
    options = Options(mode=mode, memory=64 << 20, command_line="only=sensitive.", cache=False)
    session = Session(load(KERNEL), options, printed.extend)
    try:
        assert session.run().kind in (EndKind.POWER_OFF, EndKind.RESET, EndKind.DEBUG_EXIT)
    finally:
        session.close()
    expected = (SAMPLES / "portable" / "portable.expected").read_text().splitlines()
    wanted = [line for line in expected if line.startswith("ok sensitive.")]
    lines = printed.decode().splitlines()
    assert [line for line in lines if line.startswith(("ok ", "FAIL"))] == wanted
    assert wanted


@pytest.mark.parametrize("mode", ["inline", "hypercall", "auto"])
def test_fixups_are_refused_and_the_way_out_said(mode: str) -> None:
    with pytest.raises(UsageError, match=r"is big-endian.*--virt trap"):
        Session(load(KERNEL), Options(mode=mode, memory=64 << 20, cache=False), lambda _data: None)


def test_the_sources_give_the_same_big_endian_bytes(tmp_path: Path) -> None:
    if shutil.which("mipsel-linux-gnu-gcc") is None:
        pytest.skip("mipsel-linux-gnu-gcc is not installed, so the kernel cannot be rebuilt")
    for part in ("portable", "include", "mips32/portable"):
        shutil.copytree(SAMPLES / part, tmp_path / part)
    command = ["make", "-s", "-C", str(tmp_path / "portable"), "ISA=mips32", "ENDIAN=B", f"OUT={tmp_path / 'out'}"]
    subprocess.run(command, check=True, timeout=120)
    assert (tmp_path / "out" / "portable.elf").read_bytes() == KERNEL.read_bytes()
