"""The alarm that takes the processor back from a guest: a timer's signal that cannot be lost.

Room: `emulator/engine/kvm`. The signal is blocked in the thread that runs a guest, and let through only inside
KVM_RUN (KVM_SET_SIGNAL_MASK): one that comes early stays pending and ends the next KVM_RUN at its entry. The timer
runs on the host's clock; guest time is this thread's processor time, which can only be behind it.
"""

import ctypes
import fcntl
import signal
import struct
import threading
import time

from emulator.engine.kvm import api
from emulator.errors import EngineMissing

SIGNAL = signal.SIGRTMAX - 5
_TIMER_CREATE, _TIMER_SETTIME, _TIMER_DELETE = 222, 223, 226
_CLOCK_MONOTONIC = 1
_TO_THREAD = 4
_SECOND = 1_000_000_000
_LONGEST = 3600 * _SECOND

_library = ctypes.CDLL(None, use_errno=True)
_system_call = _library.syscall
_system_call.restype = ctypes.c_long


class _Running(threading.local):
    """Of each thread, the alarms of the engines that run in it, the innermost last."""

    def __init__(self) -> None:
        self.alarms: list[Alarm] = []


_running = _Running()


class Alarm:
    """The alarm of one engine. `begin` and `end` enclose a run; between them it belongs to the calling thread."""

    def __init__(self, cpu: int) -> None:
        self._cpu = cpu
        self._timer: int | None = None
        self._thread = 0
        self._mask: frozenset[int] | None = None
        self._outer: set[int] = set()
        self._time = ctypes.create_string_buffer(32)
        self.elapsed = 0
        """Nanoseconds of processor time of all runs that ended."""
        self._since: int | None = None
        self.look = False
        """Whether a signal may have been taken by an engine inside: the deadline is to be looked at."""
        self.waits_for: int | None = None
        """The deadline that it goes off for, until it has; None where it was set for something else, or not at all."""

    def now(self) -> int:
        """Nanoseconds of processor time that runs have taken. It stands still between runs."""
        if self._since is None:
            return self.elapsed
        return self.elapsed + time.thread_time_ns() - self._since

    def begin(self) -> None:
        """A run begins in this thread."""
        self._outer = set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})))
        mask = frozenset(self._outer - {SIGNAL})
        if mask != self._mask:
            bits = sum(1 << number - 1 for number in mask)
            fcntl.ioctl(self._cpu, api.SET_SIGNAL_MASK, struct.pack("<IQ", 8, bits))
            self._mask = mask
        thread = threading.get_native_id()
        if self._timer is None or thread != self._thread:
            self._delete()
            self._create(thread)
        _running.alarms.append(self)
        self._since = time.thread_time_ns()

    def end(self) -> None:
        """The run ends: the alarm is off, and no signal of it is left."""
        self.elapsed, self._since = self.now(), None
        self.set(None)
        self.take()
        _running.alarms.pop()
        for outer in _running.alarms:
            outer.look, outer.waits_for = True, None  # its signal may have been taken here
        if SIGNAL not in self._outer:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})

    def set(self, nanoseconds: int | None) -> None:
        """Go off in so many nanoseconds of the host's time, or not at all."""
        self.waits_for = None
        wait = 0 if nanoseconds is None else min(max(nanoseconds, 1), _LONGEST)
        struct.pack_into("<4q", self._time, 0, 0, 0, wait // _SECOND, wait % _SECOND)
        _system_call(_TIMER_SETTIME, self._timer, 0, self._time, None)

    def take(self) -> None:
        """Take the signals that wait for this thread."""
        self.waits_for = None
        while signal.sigtimedwait({SIGNAL}, 0) is not None:
            pass

    def _create(self, thread: int) -> None:
        event = struct.pack("<QiiiI", 0, SIGNAL, _TO_THREAD, thread, 0).ljust(64, b"\0")
        number = ctypes.c_int()
        if _system_call(_TIMER_CREATE, _CLOCK_MONOTONIC, event, ctypes.byref(number)):
            raise EngineMissing("the host has no timer left for the KVM engine; close what uses timers")
        self._timer, self._thread = number.value, thread

    def _delete(self) -> None:
        if self._timer is not None:
            _system_call(_TIMER_DELETE, self._timer)
            self._timer = None

    def close(self) -> None:
        """Give the timer back. Idempotent."""
        self._delete()
