"""The x86-64 engines, for the tests that hold every one of them to the protocol.

Room: `tests`. An engine that this host cannot have is skipped with the reason that it gives itself.
"""

from collections.abc import Callable, Iterator

import pytest

from emulator.engine.engines import X86_ENGINES
from emulator.engine.x86 import X86Engine
from emulator.errors import EngineMissing


def opener(name: str) -> Callable[[], X86Engine]:
    """How to open an engine, which was tried once."""
    try:
        X86_ENGINES[name]().close()
    except EngineMissing as error:
        if name == next(iter(X86_ENGINES)):
            raise
        pytest.skip(str(error))
    return X86_ENGINES[name]


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.kvm] if name == "kvm" else []) for name in X86_ENGINES])
def opened(request: pytest.FixtureRequest) -> Callable[[], X86Engine]:
    """How to open the engine; each test is run once an engine."""
    return opener(request.param)


@pytest.fixture
def engine(opened: Callable[[], X86Engine]) -> Iterator[X86Engine]:
    """An open engine."""
    engine = opened()
    yield engine
    engine.close()
