"""The engines there are, by name: the one place that knows which.

Room: `emulator/engine`. An engine is imported when it is opened, so that a command that runs no guest loads none.
Callers take a way to open an engine, and see the `Engine` protocol.
"""

from collections.abc import Callable

from emulator.engine.protocol import Engine


def open_unicorn() -> Engine:
    """The embedded CPU. Raises `EngineMissing` when the installed Unicorn is not the one known."""
    from emulator.engine.unicorn.engine import UnicornEngine

    return UnicornEngine()


ENGINES: dict[str, Callable[[], Engine]] = {"unicorn": open_unicorn}
"""How to open each engine; the first is the default."""
