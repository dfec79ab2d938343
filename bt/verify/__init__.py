"""Verification: a reference run and rewritten runs of one guest, compared by rules that are data.

Room: `bt`. The reference is the unmodified image at full privilege on the bare machine (`reference` says what stands
for it where that cannot be had); same board, same inputs. What is compared of which kind of guest, what may differ and
why is in `profiles`; `verify` only runs and asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bt import xen
from bt.session import Options
from bt.verify.engines import Operations, compare_operations
from bt.verify.guest import Guest
from bt.verify.observation import observe
from bt.verify.profiles import profile_for
from bt.verify.reference import reference_mode
from bt.verify.rules import Comparison, Pair, compare
from emulator.errors import GuestFault, Timeout, VerifyFailed
from emulator.machine import EndKind

if TYPE_CHECKING:
    from bt.console_compare import Comparison as ConsoleComparison
    from bt.plan import Plan
    from bt.verify.observation import Observation

MODES = ("trap", "inline")
"""The modes that are compared with the reference by default."""


@dataclass(slots=True)
class Verification:
    """A reference run, and what came of every run that was compared with it."""

    guest: Guest
    reference: Observation
    comparisons: list[Comparison] = field(default_factory=list)
    operations: list[Operations] = field(default_factory=list)
    """Exits by operation on two engines, for every mode, where more than one engine was asked for."""
    consoles: list[tuple[str, ConsoleComparison]] = field(default_factory=list)
    """Mode, and how its console compares with QEMU's."""
    blamed: list[str] = field(default_factory=list)
    """Which fixup is to blame, where that was asked for, in lines."""
    notes: list[str] = field(default_factory=list)
    """What was asked for and not done, or what is not known of the guest, and why."""

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return (
            all(one.passed for one in self.comparisons)
            and all(one.passed for one in self.operations)
            and all(one.passed for _, one in self.consoles)
        )

    def check(self) -> None:
        """Raise `VerifyFailed`, naming the first divergence, unless everything passed."""
        for comparison in self.comparisons:
            finding = comparison.first
            if finding is not None and finding.result.divergence is not None:
                mode, _, engine = comparison.name.partition(" ")
                raise VerifyFailed(
                    f"{self.guest.name} in {' '.join((mode, 'mode', engine)).rstrip()} is not the reference: "
                    f"{finding.rule.name}: {finding.result.divergence.what}"
                )
        for operations in self.operations:
            if not operations.passed:
                raise VerifyFailed(
                    f"{self.guest.name} in {operations.mode} mode does {', '.join(operations.differing)} more often on "
                    f"one of {' and '.join(operations.engines)} than on the other"
                )
        for mode, console in self.consoles:
            if not console.passed:
                raise VerifyFailed(
                    f"{self.guest.name} in {mode} mode does not print what it prints on QEMU: "
                    f"{len(console.unexplained)} lines differ and no rule says why"
                )


def verify(
    guest: Guest,
    options: Options,
    modes: Sequence[str] = MODES,
    say: Callable[[str], None] = lambda _: None,
    engines: Sequence[str] = (),
) -> Verification:
    """Run `guest` as the reference and in each of `modes` on each of `engines` (or that of the options), and compare.

    Of `options`, the mode is ignored; the reference runs on the default engine. Raises `Timeout` or `GuestFault` when
    the reference comes to no end, where the guest's manifest does not say that it must, and `EngineMissing` at once.
    """
    for engine in engines:  # what is missing is said before anything has run
        wanted = replace(options, mode=modes[0], engine=engine)
        wanted.open_engine(guest.image.isa.name, [], guest.image.byte_order).close()
    say(f"{guest.name}: reference run")
    options = replace(options, mode=reference_mode(guest.image.isa.name), plan=None)
    reference = observe(guest.image, replace(options, engine=Options().engine))
    _check_reference(guest, reference)
    result = Verification(guest, reference)
    for mode in modes:
        plan = guest.plan if guest.plan is not None and guest.plan.mode == mode else None
        first: Observation | None = None
        for engine in engines or (options.engine,):
            say(f"{guest.name}: {mode} run" + (f" on {engine}" if engines else ""))
            comparison = run_and_compare(result, replace(options, engine=engine), mode, plan)
            result.comparisons.append(comparison)
            run = comparison.pair.rewritten
            if first is not None:
                result.operations.append(compare_operations(first, run))
            first = first or run
    if not guest.described and guest.image.linux is None and not result.passed:
        result.notes.append(
            "no manifest.toml beside or above the image describes it, so that what depends on when interrupts come "
            "(memory, calls made while waiting) is compared as well; name its manifest by --manifest if it has one"
        )
    return result


def run_and_compare(verification: Verification, options: Options, mode: str, plan: Plan | None = None) -> Comparison:
    """Run the guest of a verification in `mode`, and compare with its reference; nothing is added to it."""
    guest = verification.guest
    asked = replace(options, mode=mode, plan=plan)
    if mode == xen.MODE:
        asked = replace(asked, command_line=xen.command_line(options.command_line))
    rewritten = observe(guest.image, asked)
    pair = Pair(
        image=guest.image,
        reference=verification.reference,
        rewritten=rewritten,
        delta=options.delta,
        physical_delta=options.physical_delta,
        volatile=guest.volatile,
        exit_calls=guest.exit_calls,
        waiting_calls=guest.waiting_calls,
        initrd=options.initrd,
        command_line=options.command_line,
    )
    return compare(profile_for(guest.image, mode), pair)


def _check_reference(guest: Guest, reference: Observation) -> None:
    outcome = reference.outcome
    if outcome.kind.value in guest.outcomes:
        return
    if outcome.kind in (EndKind.HOST_TIMEOUT, EndKind.GUEST_TIMEOUT):
        raise Timeout(
            f"the reference run of {guest.name} did not end within {outcome.detail}; give it more by --timeout, or a "
            "command line with which it ends"
        )
    if outcome.kind is EndKind.TRIPLE_FAULT and guest.outcomes:
        raise GuestFault(f"the reference run of {guest.name} is lost: {outcome.detail}; its manifest says otherwise")
