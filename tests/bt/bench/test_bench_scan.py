"""Measuring scans: the sample kernel's sites, found twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from bt.bench.scan import measure
from emulator.errors import BadImage

SAMPLE = Path(__file__).parents[3] / "samples" / "x86_64" / "sample.elf"


def test_the_samples_sites_are_counted_and_its_text_measured() -> None:
    times = measure(SAMPLE, runs=1)
    assert times.sites > 50
    assert 1000 < times.text < SAMPLE.stat().st_size
    assert min(times.load, times.first, times.again) > 0


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"nothing")
    with pytest.raises(BadImage):
        measure(tmp_path / "none")
