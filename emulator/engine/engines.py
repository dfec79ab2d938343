"""The engines there are, by instruction set and name: the one place that knows which.

Room: `emulator/engine`. An engine is imported when it is opened, so that a command that runs no guest loads none.
Callers take a way to open an engine, and see the protocol of its instruction set.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from emulator.engine.aarch64 import AArch64Engine
from emulator.engine.arm import ArmEngine
from emulator.engine.mips import MipsEngine
from emulator.engine.protocol import Capabilities, Engine
from emulator.engine.x86 import I386Engine, X86Engine
from emulator.errors import EngineMissing, UsageError

AUTO = "auto"
"""Stands for the fastest engine that can run the guest."""
FASTEST_FIRST = ("kvm", "unicorn")
"""The order in which `auto` tries those that an instruction set has."""


def open_unicorn() -> I386Engine:
    """The embedded CPU. Raises `EngineMissing` when the installed Unicorn is not the one known."""
    from emulator.engine.unicorn.engine import UnicornEngine

    return UnicornEngine()


def open_kvm() -> X86Engine:
    """The host's own CPU. Raises `EngineMissing` where /dev/kvm is not there, not open to this user, or of no use."""
    from emulator.engine.kvm.engine import KvmEngine

    return KvmEngine()


def open_repeating_kvm() -> X86Engine:
    """The host's own CPU, for a run that is recorded or done again. Raises `EngineMissing`, as `open_kvm`."""
    from emulator.engine.kvm.repeating import RepeatingKvm

    return RepeatingKvm()


X86_ENGINES: dict[str, Callable[[], X86Engine]] = {"unicorn": open_unicorn, "kvm": open_kvm}
"""How to open each x86-64 engine; the first is the default."""

I386_ENGINES: dict[str, Callable[[], I386Engine]] = {"unicorn": open_unicorn}
"""How to open each engine that has 32-bit protected mode and compatibility mode; the first is the default."""


def open_unicorn_arm() -> ArmEngine:
    """The embedded ARMv7-A CPU. Raises `EngineMissing` when the installed Unicorn is not the one known."""
    from emulator.engine.unicorn.arm import UnicornArmEngine

    return UnicornArmEngine()


ARM_ENGINES: dict[str, Callable[[], ArmEngine]] = {"unicorn": open_unicorn_arm}
"""How to open each ARMv7-A engine; the first is the default."""


def open_unicorn_aarch64() -> AArch64Engine:
    """The embedded AArch64 CPU. Raises `EngineMissing` when the installed Unicorn is not the one known."""
    from emulator.engine.unicorn.aarch64 import UnicornAArch64Engine

    return UnicornAArch64Engine()


AARCH64_ENGINES: dict[str, Callable[[], AArch64Engine]] = {"unicorn": open_unicorn_aarch64}
"""How to open each AArch64 engine; the first is the default."""


def open_unicorn_mips(byte_order: str = "little") -> MipsEngine:
    """The embedded CPU as a MIPS32 of a byte order. Raises `EngineMissing`, as `open_unicorn`."""
    from emulator.engine.unicorn.mips import UnicornMipsEngine

    return UnicornMipsEngine(byte_order)


MIPS_ENGINES: dict[str, Callable[..., MipsEngine]] = {"unicorn": open_unicorn_mips}
"""How to open each MIPS32 engine, given "little" or "big"; the first is the default."""

ENGINES: dict[str, Mapping[str, Callable[[], Engine]]] = {
    "x86-64": X86_ENGINES,
    "i386": I386_ENGINES,
    "armv7": ARM_ENGINES,
    "aarch64": AARCH64_ENGINES,
    "mips32": MIPS_ENGINES,
}
"""How to open each engine of each instruction set; an instruction set's first is its default."""

REPEATING: dict[str, Callable[[], Engine]] = {"kvm": open_repeating_kvm}
"""How to open the engines whose runs repeat only when they are opened for that, by name."""

NAMES = (AUTO, *FASTEST_FIRST)
"""What can be asked for."""


def _anything(_capabilities: Capabilities) -> str:
    return ""


def open_engine(
    isa: str,
    name: str | None = None,
    lacks: Callable[[Capabilities], str] = _anything,
    passed_over: list[str] | None = None,
    byte_order: str = "little",
    *,
    repeats: bool = False,
) -> Any:
    """Open an engine of an instruction set by name: its default without one, with "auto" the fastest that will do.

    `lacks` says what is missing of an opened engine's capabilities for what it is wanted for, or nothing; `passed_over`
    is given the reasons for which faster ones were not taken; `byte_order` is "big" only where the instruction set has
    both; `repeats`: the run is recorded, or done again. Raises `EngineMissing` where the engine cannot be had here or
    lacks something, `UsageError` for a name that is none.
    """
    openers = ENGINES.get(isa)
    if openers and byte_order != "little":
        openers = {name: partial(cast("Any", opener), byte_order) for name, opener in openers.items()}
    if openers and repeats:
        openers = {name: REPEATING.get(name, opener) for name, opener in openers.items()}
    if not openers:
        raise EngineMissing(f"no engine runs {isa} guests yet; those of {', '.join(ENGINES)} can be run")
    if name is None:
        name = next(iter(openers))
    if name == AUTO:
        return _open_fastest(isa, openers, lacks, [] if passed_over is None else passed_over)
    if name not in NAMES:
        raise UsageError(f"there is no engine called {name!r}; take one of {', '.join(NAMES)}")
    if name not in openers:
        raise EngineMissing(f"the {name} engine runs no {isa} guests; take one of {', '.join(openers)}")
    return _open(name, openers[name], lacks, "; --engine auto takes the fastest that can")


def _open(name: str, opener: Callable[[], Engine], lacks: Callable[[Capabilities], str], way_out: str = "") -> Engine:
    engine = opener()
    missing = lacks(engine.capabilities)
    if missing:
        engine.close()
        raise EngineMissing(f"the {name} engine cannot run this guest so: {missing}{way_out}")
    return engine


def _open_fastest(
    isa: str, openers: Mapping[str, Callable[[], Engine]], lacks: Callable[[Capabilities], str], reasons: list[str]
) -> Engine:
    for name in FASTEST_FIRST:
        if name in openers:
            try:
                return _open(name, openers[name], lacks)
            except EngineMissing as error:
                reasons.append(str(error))
    raise EngineMissing(f"no engine can run this {isa} guest here: {'; '.join(reasons)}")
