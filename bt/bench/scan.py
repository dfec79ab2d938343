"""How fast an image is read and scanned, with and without what an earlier scan left on disk.

Room: measurements. Each step is done on a freshly loaded image, so nothing that a former one read is still known;
caches live in a directory that is thrown away. Wall-clock seconds of this process, the best of several runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ScanTimes:
    """What was measured on one image."""

    load: float
    """Seconds to read the file: decompression, or what is left of it when a cache has the payload."""
    first: float
    """Seconds to scan with an empty cache, filling it."""
    again: float
    """Seconds to scan with the cache that the first scan filled."""
    sites: int
    text: int
    """Bytes of executable sections."""


def measure(path: Path, runs: int = 3) -> ScanTimes:
    """Measure the image at `path`. Raises `BadImage` when it is none."""
    from bt.image import load
    from bt.pagecache import PageCache
    from bt.scan import scan

    loads, firsts, agains = [], [], []
    sites = text = 0
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="retrap-bench.") as directory:
            seconds, image = _timed(partial(load, path))
            loads.append(seconds)
            cache = PageCache(Path(directory))
            seconds, found = _timed(partial(scan, image, cache))
            cache.flush()
            firsts.append(seconds)
            sites, text = len(found), sum(end - start for start, end in image.text_ranges)
            seconds, repeated = _timed(partial(scan, load(path), PageCache(Path(directory))))
            agains.append(seconds)
            if repeated != found:
                raise RuntimeError(f"{path}: the cached scan has {len(repeated)} sites, the first had {len(found)}")
    return ScanTimes(min(loads), min(firsts), min(agains), sites, text)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
