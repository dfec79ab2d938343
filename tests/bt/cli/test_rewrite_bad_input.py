"""What goes wrong with `rewrite`, `apply`, `revert` and `check`: one sentence, a status of its own, nothing half done.

Files that lie about sizes, or unpack without end, are in tests/fuzz/test_bombs.py.
"""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bt.cli.main import run
from emulator.errors import (
    AlreadyRewritten,
    BadImage,
    CoverageMissed,
    Tampered,
    Unwritable,
    UsageError,
    WrongManifest,
)  # fmt: skip
from tests.bt.image.image_files import make_bzimage, make_elf

SAMPLES = Path(__file__).parents[3] / "samples"
STATUSES = {
    "usage": UsageError, "no image": BadImage, "unwritable": Unwritable, "twice": AlreadyRewritten,
    "foreign": WrongManifest, "changed": Tampered, "share": CoverageMissed,
}  # fmt: skip

Refused = Callable[..., str]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A directory with an original, which is the same afterwards, and nothing half written beside what is there."""
    kernel = (SAMPLES / "x86_64" / "portable.elf").read_bytes()
    (tmp_path / "kernel").write_bytes(kernel)
    yield tmp_path
    assert (tmp_path / "kernel").read_bytes() == kernel
    assert not [one for one in tmp_path.rglob(".*") if one.is_file()]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line, which must fail with a status and print nothing but one sentence; returns that."""

    def check(kind: str, *arguments: str | Path) -> str:
        capfd.readouterr()
        assert run([str(one) for one in arguments]) == STATUSES[kind].exit_status
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("retrap: ")
        assert err.count("\n") == 1
        return err

    return check


def rewrite(room: Path, *more: str) -> None:
    assert run(["rewrite", str(room / "kernel"), "-o", str(room / "out"), "--no-cache", *more]) == 0


def test_every_kind_has_a_status_of_its_own() -> None:
    assert len({kind.exit_status for kind in STATUSES.values()}) == len(STATUSES)


@pytest.mark.parametrize("place", ["missing/out", "kernel/out", "."])
def test_an_output_that_cannot_be_written(room: Path, refused: Refused, place: str) -> None:
    files = set(room.iterdir())
    assert "make room" in refused("unwritable", "rewrite", room / "kernel", "-o", room / place) or place == "."
    assert set(room.iterdir()) == files


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_an_output_in_a_directory_that_may_not_be_written(room: Path, refused: Refused) -> None:
    (room / "closed").mkdir(0o555)
    assert "Permission denied" in refused("unwritable", "rewrite", room / "kernel", "-o", room / "closed" / "out")


def test_one_output_of_several_that_cannot_be_written_leaves_none(room: Path, refused: Refused) -> None:
    arguments = ("-o", room / "out", "--manifest", room / "plan", "--report", "html", room / "missing" / "page")
    refused("unwritable", "rewrite", room / "kernel", *arguments)
    assert [file.name for file in room.iterdir()] == ["kernel"]


def full_disk(room: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that may write no file larger than 16 KiB: what a full disk is to it."""
    return subprocess.run(
        [sys.executable, "-m", "bt", *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=room,
    )


def test_a_disk_that_is_full_leaves_nothing(room: Path) -> None:
    rewrite(room)
    for command in (
        ["rewrite", "kernel", "-o", "other", "--no-cache"],
        ["revert", "out", "-o", "other"],
        ["report", "out", "--format", "html", "-o", "other"],
    ):
        done = full_disk(room, *command)
        assert (done.returncode, done.stdout) == (Unwritable.exit_status, ""), command
        assert done.stderr.count("\n") == 1
        assert "cannot be written" in done.stderr
        assert sorted(file.name for file in room.iterdir()) == ["kernel", "out"]


@pytest.mark.parametrize("full", ["kept", "gone"])
def test_a_disk_that_is_full_leaves_what_was_there_before(room: Path, full: str) -> None:
    if full == "kept":
        (room / "other").write_bytes(b"what was there")
    done = full_disk(room, "rewrite", "kernel", "-o", "other", "--no-cache")
    assert done.returncode == Unwritable.exit_status
    assert [file.read_bytes() for file in room.glob("other")] == ([b"what was there"] if full == "kept" else [])


def test_an_image_that_is_rewritten_already(room: Path, refused: Refused) -> None:
    rewrite(room)
    assert "revert it first" in refused("twice", "rewrite", room / "out", "-o", room / "again")
    assert not (room / "again").exists()


def test_a_manifest_of_another_image(room: Path, refused: Refused) -> None:
    rewrite(room, "--manifest", str(room / "plan"))
    other = room / "other"
    other.write_bytes((SAMPLES / "x86_64" / "hostile" / "halt.elf").read_bytes())
    assert "is not the image" in refused("foreign", "apply", room / "plan", other, "-o", room / "again")
    assert not (room / "again").exists()


def test_a_rewritten_image_that_was_changed(room: Path, refused: Refused) -> None:
    rewrite(room)
    data = bytearray((room / "out").read_bytes())
    data[0x1100] ^= 1
    (room / "out").write_bytes(data)
    refused("changed", "check", room / "out")
    refused("changed", "revert", room / "out", "-o", room / "again")
    assert not (room / "again").exists()


def test_a_share_that_is_missed(room: Path, refused: Refused) -> None:
    arguments = ("--strategy", "trap", "--fail-under", "99", "-o", room / "out")
    assert "nothing was written" in refused("share", "rewrite", room / "kernel", *arguments)
    assert not (room / "out").exists()


def test_an_output_that_is_the_original(room: Path, refused: Refused) -> None:
    (room / "link").symlink_to(room / "kernel")
    for name in ("kernel", "link"):
        assert "never overwritten" in refused("usage", "rewrite", room / "kernel", "-o", room / name)


@pytest.mark.parametrize("name", ["truncated", "empty", "container in itself", "container of a container", "noise"])
def test_what_is_no_image(room: Path, refused: Refused, name: str) -> None:
    kernel = (room / "kernel").read_bytes()
    whole = make_bzimage(make_elf())
    contents = {
        "truncated": kernel[:0x200],
        "empty": b"",
        "container in itself": make_bzimage(whole, init_size=1 << 26),
        "container of a container": gzip.compress(gzip.compress(gzip.compress(kernel, mtime=0), mtime=0), mtime=0),
        "noise": bytes(range(256)) * 64,
    }[name]
    (room / "bad").write_bytes(contents)
    for command in (["rewrite", room / "bad", "-o", room / "out"], ["scan", room / "bad"]):
        refused("no image", *command)
    assert not (room / "out").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", ["scan kernel", "rewrite kernel --dry-run --no-cache", "export out --to ghidra"])
def test_a_report_that_is_printed_to_a_full_disk(room: Path, command: str) -> None:
    rewrite(room)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bt", *command.split()],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False, cwd=room,
        )  # fmt: skip
    assert done.returncode == Unwritable.exit_status
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
