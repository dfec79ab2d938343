"""`retrap run` with what a user gets wrong: one sentence, the status of its kind, no traceback, nothing half done."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from bt.cli.main import run
from bt.output import write
from emulator.errors import BadImage, Unavailable, Unwritable, UsageError

SAMPLES = Path(__file__).parents[3] / "samples" / "x86_64"
HALT = SAMPLES / "hostile" / "halt.elf"
ENTRY, TYPE, MACHINE = 24, 16, 18

Refused = Callable[..., str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command, which must fail with `status` and print nothing but one sentence; returns that."""

    def check(status: int, *arguments: str | Path) -> str:
        assert run(["run", *map(str, arguments)]) == status
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("retrap: ")
        assert err.count("\n") == 1
        return err

    return check


def changed(tmp_path: Path, offset: int, value: bytes) -> Path:
    """The halting guest with some bytes replaced."""
    contents = bytearray(HALT.read_bytes())
    contents[offset : offset + len(value)] = value
    path = tmp_path / "changed.elf"
    path.write_bytes(contents)
    return path


def test_a_file_that_is_no_kernel(refused: Refused, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a kernel\n" * 100)
    assert "is neither an ELF nor one of bzimage" in refused(BadImage.exit_status, text)


def test_an_empty_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert "is empty" in refused(BadImage.exit_status, tmp_path / "empty")


def test_a_directory(refused: Refused, tmp_path: Path) -> None:
    assert "is a directory" in refused(BadImage.exit_status, tmp_path)


def test_an_elf_for_another_processor(refused: Refused, tmp_path: Path) -> None:
    image = changed(tmp_path, MACHINE, struct.pack("<H", 243))
    assert "changed.elf" in refused(BadImage.exit_status, image)


def test_an_elf_of_32_bits(refused: Refused, tmp_path: Path) -> None:
    assert "changed.elf" in refused(BadImage.exit_status, changed(tmp_path, 4, b"\1"))


@pytest.mark.parametrize("size", [3, 63, 64, 200, 4096])
def test_a_truncated_elf(refused: Refused, tmp_path: Path, size: int) -> None:
    image = tmp_path / "short.elf"
    image.write_bytes(HALT.read_bytes()[:size])
    assert "short.elf" in refused(BadImage.exit_status, image)


def test_an_entry_outside_all_code(refused: Refused, tmp_path: Path) -> None:
    image = changed(tmp_path, ENTRY, struct.pack("<Q", 0x123))
    assert "entry" in refused(BadImage.exit_status, image)


def test_a_missing_file(refused: Refused, tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refused(UsageError.exit_status, tmp_path / "none.elf")


def test_a_name_that_is_neither_file_nor_guest(refused: Refused) -> None:
    sentence = refused(UsageError.exit_status, "debian-sparc")
    assert "debian-sparc: is no file and no guest" in sentence
    assert "debian-amd64" in sentence


def test_a_guest_that_was_not_fetched(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "`retrap guests get debian-amd64` fetches it" in refused(Unavailable.exit_status, "debian-amd64")


def test_an_initramfs_that_does_not_fit(refused: Refused, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as file:
        file.truncate(40 << 20)
    sentence = refused(BadImage.exit_status, HALT, "--memory", "48M", "--initrd", initrd)
    assert "initramfs of 41943040 bytes does not fit" in sentence


def test_a_missing_initramfs(refused: Refused, tmp_path: Path) -> None:
    assert "cannot be read" in refused(UsageError.exit_status, HALT, "--initrd", tmp_path / "none")


def test_an_initramfs_that_is_a_directory(refused: Refused, tmp_path: Path) -> None:
    assert "cannot be read" in refused(UsageError.exit_status, HALT, "--initrd", tmp_path)


@pytest.mark.parametrize("size", ["", "many", "-1", "1.5G", "256X", "0x100000", "256 MM", "٣M"])
def test_a_memory_size_that_is_none(refused: Refused, size: str) -> None:
    assert "is no size" in refused(UsageError.exit_status, HALT, f"--memory={size}")


@pytest.mark.parametrize("size", ["0", "1", "1M", "5000000", "4G", "999999999999999999G"])
def test_a_memory_size_that_no_machine_has(refused: Refused, size: str) -> None:
    assert "bytes of guest memory: give whole pages" in refused(UsageError.exit_status, HALT, "--memory", size)


def test_memory_too_small_for_the_kernel(refused: Refused) -> None:
    assert "give the guest more memory" in refused(BadImage.exit_status, HALT, "--memory", "8M")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
@pytest.mark.parametrize("option", ["--timeout", "--guest-timeout"])
def test_a_time_that_is_none(refused: Refused, option: str, value: str) -> None:
    assert f"{option} {value}: is no time" in refused(UsageError.exit_status, HALT, f"{option}={value}")


@pytest.mark.parametrize("option", ["--kaslr", "--physical"])
@pytest.mark.parametrize("value", ["far", "-0x200000", "", "99999999999999999999999"])
def test_an_offset_that_is_none(refused: Refused, option: str, value: str) -> None:
    assert "is no offset" in refused(UsageError.exit_status, HALT, f"{option}={value}")


@pytest.mark.parametrize("option", ["--kaslr", "--physical"])
def test_moving_a_kernel_that_cannot_be_moved(refused: Refused, option: str) -> None:
    assert "halt.elf: " in refused(UsageError.exit_status, HALT, option, "0x200000")


def test_an_empty_text_to_wait_for(refused: Refused) -> None:
    assert "--until needs a text" in refused(UsageError.exit_status, HALT, "--until", "")


def test_a_command_line_that_is_too_long(refused: Refused) -> None:
    assert "shorten it" in refused(BadImage.exit_status, HALT, "--append", "x" * 5000)


@pytest.mark.parametrize("option", ["--trace", "--json", "--record", "--to"])
def test_an_output_that_cannot_be_written(refused: Refused, tmp_path: Path, option: str) -> None:
    more = ("--snapshot-at", "user") if option == "--to" else ()
    for place in (tmp_path / "no" / "such", tmp_path, tmp_path / ("long" * 100)):
        sentence = refused(Unwritable.exit_status, HALT, option, place, *more)
        assert sentence.startswith(f"retrap: {place}: ")
        assert "cannot be written (" in sentence


@pytest.mark.parametrize(
    "command",
    [
        ("verify", HALT, "--json"),
        ("rewrite", HALT, "--dry-run", "--manifest"),
        ("rewrite", HALT, "-o"),
        ("report", HALT, "-o"),
        ("export", HALT, "--to", "ida", "-o"),
        ("revert", HALT, "-o"),
        ("bench", "ways", "--json"),
        ("bench", "para", "--plot"),
    ],
    ids=lambda command: "-".join(map(str, command[:2])) if command[1] != HALT else str(command[0]),
)
def test_no_command_begins_whose_output_cannot_be_written(
    tmp_path: Path, command: tuple[str | Path, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """The image is one that none of them could use: it is the output that is refused, and first."""
    image = tmp_path / "empty"
    image.touch()
    words = [str(image if word is HALT else word) for word in command]
    assert run([*words, str(tmp_path / "no" / "such")]) == Unwritable.exit_status
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "such" in err
    assert "cannot be written (No such file or directory)" in err


def test_two_outputs_of_one_name(refused: Refused, tmp_path: Path) -> None:
    one = tmp_path / "one"
    assert "for two outputs" in refused(UsageError.exit_status, HALT, "--trace", one, "--json", one)
    assert not one.exists()


def test_a_device_as_an_output_is_written_to_and_stays() -> None:
    """A report to `/dev/null` must not leave a file there."""
    write(Path("/dev/null"), b"a report")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(Unwritable, match="No space left"):
        write(Path("/dev/full"), b"a report")
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("option", ["--trace", "--json"])
def test_an_output_over_the_kernel(refused: Refused, tmp_path: Path, option: str) -> None:
    image = tmp_path / "kernel"
    image.write_bytes(HALT.read_bytes())
    assert "never overwritten" in refused(UsageError.exit_status, image, option, image)
    assert image.read_bytes() == HALT.read_bytes()


def test_a_full_disk_under_the_trace(refused: Refused) -> None:
    assert "/dev/full: cannot be written (No space left" in refused(
        Unwritable.exit_status, HALT, "--trace", "/dev/full"
    )


def test_an_unknown_way_to_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(HALT), "--virt", "hardware"]) == UsageError.exit_status
    assert "'hardware' is not one of" in capfd.readouterr().err
