"""What Unicorn's functions answer, and the handlers of an engine that has none.

Room: `emulator/engine/unicorn`, shared by the engines of every instruction set.
"""

from typing import Any

from emulator.engine.exit import Exit
from emulator.errors import EngineMissing


class Statuses:
    """Of an engine, how it takes the statuses of the library's functions."""

    library: Any

    def _message(self, status: int) -> str:
        return str(self.library.uc_strerror(status).decode())

    def _check(self, status: int, what: str) -> None:
        if status:
            raise EngineMissing(f"the unicorn engine {what}: {self._message(status)}")


def ignore(_exit: Exit) -> None:
    """The handler for what is left of a block whose end is of no interest any more."""


def no_handler(_exit: Exit) -> None:
    """The handler of an engine that was not given one."""
    raise RuntimeError("the engine runs without a handler")
