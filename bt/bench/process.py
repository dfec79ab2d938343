"""A whole process, from its start to a line on its console.

Room: measurements. Times are wall-clock seconds by the monotonic clock, process creation included, as a user
feels them. It knows nothing of what the process is.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emulator.errors import Unavailable

TAIL = 400
"""Bytes of console kept to explain a run that did not get to its marker."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One run."""

    seconds: float | None
    """From start to marker; None when the process ended, or its time was up, before."""
    console: bytes
    """All that it printed until then, stderr included."""

    @property
    def tail(self) -> str:
        """The last of the console, for a message."""
        return self.console[-TAIL:].decode(errors="replace").strip()


def time_to_marker(
    command: Sequence[str], marker: str, timeout: float, environment: Mapping[str, str] | None = None
) -> Timing:
    """Start `command`, wait at most `timeout` seconds for `marker` on its output, and kill it.

    It has our environment, or the one given.

    Raises Unavailable when the program is not there.
    """
    wanted = marker.encode()
    console = bytearray()
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            bufsize=0,
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not on this host; install it to measure beside it") from None
    try:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while (left := started + timeout - time.monotonic()) > 0:
                if not selector.select(left):
                    break
                chunk = os.read(descriptor, 1 << 16)
                if not chunk:
                    break
                # The marker may lie across two chunks.
                searched = max(0, len(console) - len(wanted))
                console += chunk
                if wanted in console[searched:]:
                    return Timing(time.monotonic() - started, bytes(console))
        return Timing(None, bytes(console))
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it started, and collect it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
