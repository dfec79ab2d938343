"""What the manual says of 32-bit protected mode, tasks and virtual-8086 mode: deprivileged guests are the reference's
equals to the last byte of their memory."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paravirt.i386 import guest
from tests.paravirt.i386.guest import End, run
from tests.paravirt.i386.set_up import HALT, PAGING, SETUP, SYMBOLS
from tests.paravirt.i386.sources import CASES

MACHINE_CODE: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "machine_code.json").read_text())
RUNS = [(name, paging) for name, (_, _, modes) in CASES.items() for paging in modes]


def of(name: str, paging: str, mode: str) -> End:
    code = MACHINE_CODE[name]
    return run(mode, bytes.fromhex(code[paging]), bytes.fromhex(code.get("program", "")))


@pytest.mark.parametrize("mode", ["trap", "inline"])
@pytest.mark.parametrize(("name", "paging"), RUNS)
def test_a_deprivileged_guest_ends_as_the_reference_does(name: str, paging: str, mode: str) -> None:
    assert of(name, paging, mode) == of(name, paging, "native")


def vector(end: End) -> int:
    """The vector in whose stub a run halted, -1 when it halted elsewhere."""
    number, offset = divmod(end.eip - guest.STUBS, 8)
    return number if 0 <= number < 256 and offset == 2 else -1


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("user is refused: cli", 13),
        ("user is refused: not present", 11),
        ("user is refused: into", 4),
        ("user is refused: bound", 5),
        ("a page that is absent", 14),
        ("virtual-8086 at IOPL 0: cli", 13),
        ("virtual-8086 at IOPL 3: cli", 0x80),
        ("call gate from user code", 0x80),
        ("flags and selectors", -1),
    ],
)
def test_the_reference_ends_where_the_manual_says(name: str, wanted: int) -> None:
    end = of(name, "two levels", "native")
    assert end.kind == "halted"
    assert vector(end) == wanted


@pytest.mark.parametrize(("name", "paging"), RUNS)
def test_the_sources_give_the_machine_code(name: str, paging: str, tmp_path: Path) -> None:
    if shutil.which("as") is None or shutil.which("ld") is None:
        pytest.skip("as and ld are not installed")
    kernel, program, _ = CASES[name]
    code = MACHINE_CODE[name]
    assert assembled(whole(kernel, paging), guest.CODE, tmp_path) == code[paging]
    assert assembled(program, guest.USER, tmp_path) == code.get("program", "")


def whole(kernel: str, paging: str) -> str:
    """A kernel with its set-up before it and its end behind it."""
    return "\n".join((SETUP, PAGING[paging], kernel, HALT))


def assembled(source: str, address: int, scratch: Path) -> str:
    """Hexadecimal machine code of a source at an address."""
    text, linked, flat = scratch / "guest.s", scratch / "guest.o", scratch / "guest.bin"
    text.write_text(f".code32\n.text\n{SYMBOLS}{source}\n")
    flat.unlink(missing_ok=True)
    subprocess.run(["as", "--32", "-o", str(linked), str(text)], check=True)
    place = ["-m", "elf_i386", "-Ttext", hex(address), "--oformat", "binary", "-e", "0"]
    subprocess.run(["ld", *place, "-o", str(flat), str(linked)], check=True)
    return flat.read_bytes().hex() if flat.exists() else ""


if __name__ == "__main__":  # writes machine_code.json anew
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        made = {
            name: {
                **{paging: assembled(whole(kernel, paging), guest.CODE, Path(directory)) for paging in modes},
                **({"program": assembled(program, guest.USER, Path(directory))} if program else {}),
            }
            for name, (kernel, program, modes) in CASES.items()
        }
    (Path(__file__).parent / "machine_code.json").write_text(json.dumps(made, indent=1) + "\n")
