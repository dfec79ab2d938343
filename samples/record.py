"""Writes what the built guests are into the manifest: their hashes and the tools' versions.

Room: `samples`. Run by `make -C samples record` after a change of the sources; it touches only the
lines `sha256`, `compiler` and `linker` of the manifests, everything else there is written by hand.
"""

import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
MANIFEST = HERE / "manifest.toml"
PORTABLE = HERE / "portable" / "manifest.toml"


def first_line(*command: str) -> str:
    """The first line a tool prints about itself."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def main() -> None:
    """Bring the recorded lines up to date."""
    text = MANIFEST.read_text()
    text = re.sub(r'^compiler = ".*"$', f'compiler = "{first_line("gcc", "--version")}"', text, flags=re.MULTILINE)
    text = re.sub(r'^linker = ".*"$', f'linker = "{first_line("ld", "--version")}"', text, flags=re.MULTILINE)
    MANIFEST.write_text(with_hashes(MANIFEST, text, "guest"))
    for table in ("architecture", "para", "big_endian"):
        PORTABLE.write_text(with_hashes(PORTABLE, PORTABLE.read_text(), table))


def with_hashes(manifest: Path, text: str, table: str) -> str:
    """A manifest's text with the hash of each file of `table`, whose paths are relative to the manifest."""
    for guest in tomllib.loads(text)[table]:
        digest = hashlib.sha256((manifest.parent / guest["file"]).read_bytes()).hexdigest()
        text, changed = re.subn(
            rf'(^file = "{re.escape(guest["file"])}"\nsha256 = )".*"$', rf'\g<1>"{digest}"', text, flags=re.MULTILINE
        )
        if changed != 1:
            raise SystemExit(f"{manifest}: {guest['file']} has no sha256 line right behind its file line; add one")
    return text


if __name__ == "__main__":
    main()
