"""The engines there are, by instruction set and name: the one place that knows which.

Room: `emulator/engine`. An engine is imported when it is opened, so that a command that runs no guest loads none.
Callers take a way to open an engine, and see the protocol of its instruction set.
"""

from collections.abc import Callable

from emulator.engine.x86 import X86Engine


def open_unicorn() -> X86Engine:
    """The embedded CPU. Raises `EngineMissing` when the installed Unicorn is not the one known."""
    from emulator.engine.unicorn.engine import UnicornEngine

    return UnicornEngine()


X86_ENGINES: dict[str, Callable[[], X86Engine]] = {"unicorn": open_unicorn}
"""How to open each x86-64 engine; the first is the default."""
