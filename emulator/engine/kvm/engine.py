"""The KVM engine: guests at level 3 on the host's own processor, behind the `Engine` protocol.

Room: `emulator/engine/kvm`. The processor traps into 256 handlers of one HLT each, which end KVM_RUN: the vector is
where it halted, the rest is in the frame that it pushed. It knows nothing of a hypervisor. What a host's KVM does
otherwise than a processor is found by `probe.py` and mended here, by what was found and never by a name.
"""

import fcntl
from typing import Final

from emulator.engine.exit import ExitKind
from emulator.engine.kvm import api
from emulator.engine.kvm.accesses import Accesses
from emulator.engine.kvm.processor import FOREVER, QUANTUM
from emulator.engine.kvm.translations import Translations
from emulator.engine.protocol import Handler
from emulator.errors import GuestFault

_HALTED: Final = api.EXIT_HLT
_PAGE_FAULT: Final = 14


class KvmEngine(Accesses, Translations):
    """One virtual processor. Use `registers` only while no guest code runs or inside the handler."""

    # -- running --------------------------------------------------------------------------------

    def run(self, handler: Handler) -> None:
        """Run until the handler calls `stop`. An exception raised by the handler propagates."""
        if self.registers.privilege != 3:
            raise GuestFault(
                f"the KVM engine runs code at level 3 only, not at level {self.registers.privilege}; "
                "run an unmodified kernel with --engine unicorn"
            )
        alarm = self._alarm
        alarm.begin()
        self._running = True
        self._stopped = False
        self._bytes[api.IMMEDIATE_EXIT] = 0
        try:
            self._arm()
            self._loop(handler)
        finally:
            self._running = False
            alarm.end()

    def _loop(self, handler: Handler) -> None:
        """Enter, see why it came back, hand it up; again until stopped. The hot path."""
        enter, cpu, request = fcntl.ioctl, self._vm.cpu, api.RUN
        halves, words, alarm, exit_ = self._halves, self._words, self._alarm, self._exit
        reason, dirty, registers, read = api.H_EXIT_REASON, api.W_DIRTY, self.registers, self._traps.read
        root = api.W_CR3
        ring = self._ring[:8].cast("I") if self._ring is not None else None
        try:
            while True:
                if (self._due or alarm.look or self._stopped) and not self._midway and self._ends_here(handler):
                    if self._stopped:
                        return
                    self._due = self._moved = False
                    self._dirty = True
                    self._passed = 0
                    exit_.kind = ExitKind.BUDGET
                    handler(exit_)
                    continue
                if self._changes:
                    self._store_changes()
                    if self._due:
                        continue  # the alarm went off meanwhile: a guest that does not exit would run on for ever
                if self._dirty:
                    self._put()
                self.entered += 1
                try:
                    enter(cpu, request, 0)
                except InterruptedError:
                    words[dirty] = 0
                    self._moved = True
                    self._interrupted()
                    # Midway nobody sees the guest: what it posts waits for the exit that comes next.
                    if not self._midway and ring is not None and ring[0] != ring[1]:
                        self._hand_up_posted(handler)
                    continue
                except OSError as error:
                    raise GuestFault(
                        f"the engine lost the guest at {registers.rip:#x}: KVM does not enter it ({error.strerror})"
                    ) from None
                words[dirty] = 0
                self._moved = True
                self._midway = self._incomplete = False
                self._passed = 0
                if ring is not None and ring[0] != ring[1]:
                    self._hand_up_posted(handler)
                if halves[reason] == _HALTED:  # a trap
                    self._dirty = True
                    read()
                    if registers.reloaded or words[root] != registers.root:
                        self._crossed()
                    if self._due and self._comes_again():
                        continue
                    handler(exit_)
                else:
                    self._other(halves[reason], handler)
        finally:
            if self._incomplete:
                self._complete(handler)

    def _ends_here(self, handler: Handler) -> bool:
        """Whether the guest does not go on now, but stands behind an instruction for a BUDGET exit or for good."""
        if not self._stopped and not self._is_due():
            return False
        if self._incomplete:
            self._complete(handler)
        return True

    def _is_due(self) -> bool:
        """Whether the deadline is reached and a BUDGET exit may be handed up; sets the alarm again if not."""
        self._alarm.look = False
        self._gates.resume()
        left = self._deadline - self._alarm.now()
        if left <= 0 and self._moved:
            return True
        self._due = False
        self._alarm.set(max(left, QUANTUM if not self._moved else 1))
        return False

    def _comes_again(self) -> bool:
        """Whether an exit need not be handed up while the deadline may have been reached: user code's page fault, to
        which the gates would lead if they were not paused. Its handler begins with interrupts disabled; before it, the
        deadline finds a guest that takes one. Once at most, lest a busy host's alarms keep it from getting further."""
        registers, exit_ = self.registers, self._exit
        if exit_.kind != ExitKind.FAULT or exit_.vector != _PAGE_FAULT or registers.root != self._gates.pair[1]:
            return False
        before, self._again = self._again, (registers.rip, exit_.address)
        return self._again != before

    # -- stopping and time ----------------------------------------------------------------------

    def stop(self) -> None:
        """End `run` after the handler returns. May also be called by a signal's handler."""
        self._stopped = True
        self._bytes[api.IMMEDIATE_EXIT] = 1

    @property
    def progress(self) -> int:
        """Nanoseconds of processor time that runs have taken."""
        return self._alarm.now()

    def set_deadline(self, progress: int) -> None:
        """Ask for a BUDGET exit at `progress`; the past means: at once, or after the guest ran a little."""
        if progress == self._deadline == self._alarm.waits_for:
            return  # to set a timer is a good part of an exit, and devices ask for the same event again and again
        self._deadline = progress
        if self._running:
            self._arm()

    def _arm(self) -> None:
        left = self._deadline - self._alarm.now()
        if left <= 0 and self._moved:
            self._due = True
            return
        self._due = False
        if self._deadline >= FOREVER:
            self._alarm.set(None)
            return
        self._alarm.set(max(left, 1 if self._moved else QUANTUM))
        self._alarm.waits_for = self._deadline
