"""Writes what the built guests are into the manifest: their hashes and the tools' versions.

Room: `samples`. Run by `make -C samples record` after a change of the sources; it touches only the
lines `sha256`, `compiler` and `linker` of `manifest.toml`, everything else there is written by hand.
"""

import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
MANIFEST = HERE / "manifest.toml"


def first_line(*command: str) -> str:
    """The first line a tool prints about itself."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def main() -> None:
    """Bring the recorded lines up to date."""
    text = MANIFEST.read_text()
    text = re.sub(r'^compiler = ".*"$', f'compiler = "{first_line("gcc", "--version")}"', text, flags=re.MULTILINE)
    text = re.sub(r'^linker = ".*"$', f'linker = "{first_line("ld", "--version")}"', text, flags=re.MULTILINE)
    for guest in tomllib.loads(text)["guest"]:
        digest = hashlib.sha256((HERE / guest["file"]).read_bytes()).hexdigest()
        text, changed = re.subn(
            rf'(^file = "{re.escape(guest["file"])}"\nsha256 = )".*"$', rf'\g<1>"{digest}"', text, flags=re.MULTILINE
        )
        if changed != 1:
            raise SystemExit(f"{MANIFEST}: {guest['file']} has no sha256 line right behind its file line; add one")
    MANIFEST.write_text(text)


if __name__ == "__main__":
    main()
