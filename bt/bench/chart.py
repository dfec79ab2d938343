"""Charts as SVG and PNG, byte for byte the same for the same figures.

Room: `bt/bench`. matplotlib is optional, and imported here only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emulator.errors import Unavailable, Unwritable


def subplots(size: tuple[float, float], columns: int = 1) -> tuple[Any, Any]:
    """A figure of `size` inches with one pair of axes, or as many beside each other as `columns`, whose rows are the
    same. Raises `Unavailable` without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise Unavailable(
            "matplotlib is not installed, which draws; install retrap[plot], or leave --plot out"
        ) from None
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "retrap"  # the same input gives the same bytes
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=size, sharey=True)


def save(figure: Any, base: Path) -> list[Path]:
    """Write a figure beside `base`, as SVG and as PNG; returns the files. Raises `Unwritable`."""
    from matplotlib import pyplot

    files = [base.with_suffix(".svg"), base.with_suffix(".png")]
    figure.tight_layout()
    try:
        figure.savefig(files[0], metadata={"Date": None, "Creator": None})
        figure.savefig(files[1], dpi=120, metadata={"Software": None})
    except OSError as error:
        raise Unwritable(f"{base}: the plot cannot be written ({error.strerror}); name another place") from None
    finally:
        pyplot.close(figure)
    return files
