"""The examples of docs/api.md run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bt
from emulator.errors import UsageError

ROOT = Path(__file__).parents[3]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_of_the_documentation_runs(number: int, tmp_path: Path) -> None:
    text = (
        EXAMPLES[number].replace("samples/", f"{ROOT}/samples/").replace("here.snapshot", f"{tmp_path}/here.snapshot")
    )
    exec(compile(text, f"docs/api.md, example {number}", "exec"), {"bt": bt})


def test_what_does_not_exist_is_named() -> None:
    with bt.open_guest(ROOT / "samples/x86_64/sample.elf", bt.Options(memory=64 << 20)) as guest:
        with pytest.raises(UsageError, match="no symbol 'nowhere'"):
            guest.run("nowhere")
        with pytest.raises(UsageError, match="no event 'rain'"):
            guest.run(event="rain")
        with pytest.raises(UsageError, match="no memory at"):
            guest.read(0x1234_5678_9000, 4)
