"""Debian packages by name: which one is meant, and the files inside it.

Room: guests to try things on. It runs the distribution's own client (`apt-get`, `apt-cache`, `dpkg-deb`), which
checks what it downloads, and never touches the system's package lists: lists that must be newer, and
packages of an architecture that the system has not enabled, live in a directory that is thrown away.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emulator.errors import Unavailable

DOWNLOAD_SECONDS = 900
"""How long one call of apt may take."""


@dataclass(frozen=True, slots=True)
class Package:
    """A downloaded package file."""

    name: str
    version: str
    file: Path


class Apt:
    """The distribution's client for one architecture, with a scratch directory for all that it writes."""

    def __init__(self, architecture: str, scratch: Path) -> None:
        """`architecture` is Debian's name for it; `scratch` an existing directory, removed by the caller.

        Raises Unavailable when this host has no apt.
        """
        for program in ("apt-get", "apt-cache", "dpkg", "dpkg-deb"):
            if shutil.which(program) is None:
                raise Unavailable(
                    f"{program} is not on this host: fetch the guest on a Debian machine and copy its directory"
                )
        self.scratch = scratch
        self.options: list[str] = []
        self.doubt = ""
        if _run(["dpkg", "--print-architecture"]).strip() != architecture:
            self.options = ["-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures={architecture}"]
            self._use_lists_of_our_own()

    def dependency(self, package: str, pattern: str) -> str:
        """Name of the package that `package` depends on and that matches `pattern` whole.

        Debian's `linux-image-amd64` has no contents but a dependency on the newest kernel.
        """
        output = self._query(["apt-cache", *self.options, "depends", package], package)
        names = re.findall(r"^\s*\|?Depends: (\S+)$", output, re.MULTILINE)
        for name in names:
            if re.fullmatch(pattern, name):
                return str(name)
        raise Unavailable(f"Debian's {package} depends on no package named like {pattern}; it has {', '.join(names)}")

    def download(self, package: str) -> Package:
        """Download a package into the scratch directory."""
        self._query(["apt-cache", *self.options, "show", "--no-all-versions", package], package)
        before = set(self.scratch.glob("*.deb"))
        _run(["apt-get", *self.options, "--quiet", "download", package], self.scratch)
        new = set(self.scratch.glob("*.deb")) - before
        if len(new) != 1:
            raise Unavailable(f"apt-get download {package} left {len(new)} files where one was expected")
        file = new.pop()
        return Package(package, _run(["dpkg-deb", "--field", str(file), "Version"]).strip(), file)

    def _query(self, command: list[str], package: str) -> str:
        """Ask about a package; when it is not known, fetch lists once and ask again."""
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0 and result.stdout.strip():
            return result.stdout
        if not any(option.startswith("Dir::State=") for option in self.options):
            first = len(self.options)
            self._use_lists_of_our_own()
            position = command.index(package) - 1
            added = self.options[first:]
            return self._query([*command[:position], *added, *command[position:]], package)
        raise Unavailable(f"no Debian package {package} in the sources of this host (see /etc/apt){self.doubt}")

    def _use_lists_of_our_own(self) -> None:
        """Fetch package lists into the scratch directory; needs no privilege and changes nothing outside it."""
        state, cache = self.scratch / "state", self.scratch / "cache"
        (state / "lists" / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        (state / "status").touch()
        self.options += [
            "-o",
            f"Dir::State={state}",
            "-o",
            f"Dir::State::status={state / 'status'}",
            "-o",
            f"Dir::Cache={cache}",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Acquire::Languages=none",
        ]
        try:
            _run(["apt-get", *self.options, "--quiet", "update"])
        except Unavailable as error:
            # One source of several may be down, or a mirror half-way through its update: what came is what counts.
            self.doubt = f" ({error})"


def extract(package: Package, pattern: str) -> tuple[str, bytes]:
    """The one regular file of a package whose path matches `pattern` whole: its path, without `./`, and contents."""
    return extract_all(package, [pattern])[0]


def extract_all(package: Package, patterns: Sequence[str]) -> list[tuple[str, bytes]]:
    """The first regular file for each of some patterns, as `extract` has it, in their order, of one reading."""
    found: dict[str, tuple[str, bytes]] = {}
    # A kernel package unpacks to some 400 MB: read it as a stream, and only as far as the file.
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package.file)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as unpacker:
        assert unpacker.stdout is not None
        try:
            with tarfile.open(fileobj=unpacker.stdout, mode="r|") as members:
                for member in members:
                    path = member.name.removeprefix("./")
                    if not member.isfile():
                        continue
                    for pattern in patterns:
                        if pattern not in found and re.fullmatch(pattern, path):
                            contents = members.extractfile(member)
                            assert contents is not None
                            found[pattern] = path, contents.read()
                            break
                    if len(found) == len(set(patterns)):
                        return [found[pattern] for pattern in patterns]
        except (tarfile.TarError, EOFError) as error:
            raise Unavailable(f"dpkg-deb cannot read {package.file.name}: {error}") from None
        finally:
            unpacker.kill()
    missing = next(pattern for pattern in patterns if pattern not in found)
    raise Unavailable(f"Debian's {package.name} {package.version} has no file named like {missing}")


def _run(command: Sequence[str], directory: Path | None = None) -> str:
    try:
        result = subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} did not end within {DOWNLOAD_SECONDS} s: is the network up?") from None
    if result.returncode != 0:
        raise Unavailable(f"{' '.join(_short(command))} failed: {_last_line(result.stderr)}")
    return result.stdout


def _short(command: Sequence[str]) -> list[str]:
    """A command without its options, for a message."""
    words = list(command)
    return [word for before, word in zip(["", *words], words, strict=False) if word[0] != "-" and before != "-o"]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason"
