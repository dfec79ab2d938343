"""The distribution's client, played by scripts on PATH: the command lines it gets, and what its answers become."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from bt.debian import Apt, Package, extract
from emulator.errors import Unavailable

DEPENDS = """linux-image-amd64
  Depends: linux-image-6.1.0-56-amd64
  Depends: firmware
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in front of PATH with the four programs, on an amd64 host that knows all packages."""
    directory = tmp_path / "programs"
    directory.mkdir()
    script(directory, "dpkg", "echo amd64")
    script(directory, "dpkg-deb", "echo 1.0")
    script(directory, "apt-get", 'for last; do :; done; [ "$last" = update ] || : > "${last}_1.0_amd64.deb"')
    script(directory, "apt-cache", f"cat <<'END'\n{DEPENDS}END")
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    return directory


def script(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{directory}/log"\n{text}\n')
    path.chmod(0o755)


def log(directory: Path) -> list[str]:
    return (directory / "log").read_text().splitlines()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


def test_the_newest_kernel_is_the_dependency_of_that_name(programs: Path, scratch: Path) -> None:
    apt = Apt("amd64", scratch)
    assert apt.dependency("linux-image-amd64", r"linux-image-\d.*-amd64") == "linux-image-6.1.0-56-amd64"


def test_a_package_without_the_dependency_is_told_with_what_it_has(programs: Path, scratch: Path) -> None:
    with pytest.raises(Unavailable, match=r"it has linux-image-6\.1\.0-56-amd64, firmware"):
        Apt("amd64", scratch).dependency("linux-image-amd64", r"vmlinux-\d+")


def test_a_known_package_is_downloaded_without_fetching_lists(programs: Path, scratch: Path) -> None:
    package = Apt("amd64", scratch).download("busybox-static")
    assert package.version == "1.0"
    assert package.file == scratch / "busybox-static_1.0_amd64.deb"
    assert not any("update" in line for line in log(programs))


def test_an_unknown_package_is_asked_for_again_with_fresh_lists_of_our_own(programs: Path, scratch: Path) -> None:
    script(programs, "apt-cache", f"case \"$*\" in *Dir::State=*) cat <<'END'\n{DEPENDS}END\n;; *) exit 100;; esac")
    assert Apt("amd64", scratch).download("busybox-static").version == "1.0"
    (update,) = [line for line in log(programs) if line.endswith(" update")]
    assert f"Dir::State={scratch}" in update
    (download,) = [line for line in log(programs) if " download " in line]
    assert f"Dir::State={scratch}" in download


def test_a_package_that_fresh_lists_do_not_know_either_is_named(programs: Path, scratch: Path) -> None:
    script(programs, "apt-cache", "exit 100")
    script(programs, "apt-get", "echo 'E: no network' >&2; exit 100")
    with pytest.raises(Unavailable, match=r"no Debian package no-such in .*apt-get update failed: E: no network"):
        Apt("amd64", scratch).download("no-such")


def test_another_architecture_never_touches_the_systems_lists(programs: Path, scratch: Path) -> None:
    script(programs, "dpkg", "echo arm64")
    Apt("amd64", scratch).download("busybox-static")
    apt_calls = [line for line in log(programs) if line.startswith("apt-")]
    assert apt_calls
    assert all("APT::Architecture=amd64" in line and f"Dir::State={scratch}" in line for line in apt_calls)


def package(directory: Path, programs: Path, members: dict[str, bytes]) -> Package:
    """A package file that the played dpkg-deb unpacks to a tar of these members."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        folder = tarfile.TarInfo("./boot")
        folder.type, folder.mode = tarfile.DIRTYPE, stat.S_IRWXU
        tar.addfile(folder)
        for name, contents in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    (directory / "x.deb").write_bytes(archive.getvalue())
    script(programs, "dpkg-deb", 'cat "$2"')
    return Package("linux-image", "1.0", directory / "x.deb")


def test_the_file_whose_path_matches_is_taken_out(programs: Path, scratch: Path) -> None:
    made = package(
        scratch, programs, {"./boot/config-6.1": b"no", "./boot/vmlinuz-6.1": b"kernel", "./zzz": b"z" * 9999}
    )
    assert extract(made, r"boot/vmlinuz-.*") == ("boot/vmlinuz-6.1", b"kernel")


def test_a_package_without_such_a_file_is_named(programs: Path, scratch: Path) -> None:
    with pytest.raises(Unavailable, match=r"linux-image 1\.0 has no file named like boot/vmlinuz"):
        extract(package(scratch, programs, {"./boot/config-6.1": b"no"}), r"boot/vmlinuz-.*")


def test_a_damaged_package_is_refused(programs: Path, scratch: Path) -> None:
    made = package(scratch, programs, {})
    made.file.write_bytes(b"no archive at all" * 100)
    with pytest.raises(Unavailable, match=r"cannot read x\.deb"):
        extract(made, ".*")
