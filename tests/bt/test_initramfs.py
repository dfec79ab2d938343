"""The archive that /init comes in: its bytes, and that the kernel's format is kept."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt.initramfs import MARKER, Entry, init_script, initramfs, newc


def unpack(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Name, mode and contents of every member, read by the format's description alone."""
    members: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += (110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return members
        members.append((name, mode, archive[at : at + size]))
        at += (size + 3) & ~3


@given(
    st.lists(
        st.tuples(st.text("abc/.", min_size=1, max_size=9), st.binary(max_size=40)), unique_by=lambda member: member[0]
    )
)
def test_every_member_comes_out_as_it_went_in(members: list[tuple[str, bytes]]) -> None:
    archive = newc(Entry(name, stat.S_IFREG | 0o644, data) for name, data in members)
    assert unpack(archive) == [(name, stat.S_IFREG | 0o644, data) for name, data in members]
    assert len(archive) % 512 == 0


def test_equal_inputs_give_equal_bytes() -> None:
    assert initramfs(b"\x7fELF", ["true"]) == initramfs(b"\x7fELF", ["true"])


def test_the_console_is_a_device_node_before_init_runs() -> None:
    modes = {name: mode for name, mode, _ in unpack(initramfs(b""))}
    assert stat.S_ISCHR(modes["dev/console"])
    assert modes["init"] == stat.S_IFREG | 0o755


def test_init_prints_the_marker_then_runs_the_lines_then_ends_the_machine() -> None:
    script = init_script(["echo one", "echo two"])
    places = [script.index(part) for part in (MARKER, "echo one", "echo two", "retrap.end=reboot", "poweroff -f")]
    assert places == sorted(places)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_cpio_reads_the_archive() -> None:
    listing = subprocess.run(["cpio", "-t", "--quiet"], input=initramfs(b"busy"), capture_output=True, check=True)
    names = listing.stdout.decode().split()
    assert names == ["bin", "dev", "proc", "sys", "tmp", "dev/console", "bin/busybox", "bin/sh", "init"]


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_the_init_script_is_good_shell() -> None:
    subprocess.run(["sh", "-n"], input=init_script(["true"]), text=True, check=True, timeout=10)
