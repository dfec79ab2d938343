"""A crash of the engine's native code ends a run with an error; the process and other engines go on."""

import mmap
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from emulator.engine.unicorn.aarch64 import UnicornAArch64Engine
from emulator.engine.unicorn.arm import UnicornArmEngine
from emulator.engine.unicorn.engine import UnicornEngine
from emulator.engine.unicorn.mips import UnicornMipsEngine
from emulator.errors import EngineCrashed, GuestFault

CRASHES = {
    "SIGSEGV": "31c0 8800",  # xor eax,eax; mov [rax],al
    "SIGILL": "0f0b",
    "SIGFPE": "31c9 31d2 f7f1",  # div ecx
}
ENGINES: tuple[Callable[[], Any], ...] = (UnicornEngine, UnicornArmEngine, UnicornAArch64Engine, UnicornMipsEngine)


def crashing(make: Callable[[], Any], code: str) -> Any:
    """An engine with memory whose native callback of basic blocks crashes."""
    engine = make()
    engine.map_memory(0, memoryview(mmap.mmap(-1, 1 << 20)))
    if make is UnicornMipsEngine:
        engine.registers.jump(0x8000_1000)
    elif make is not UnicornEngine:
        engine.registers.pc = 0x1000
    engine._counter._page[: len(bytes.fromhex(code))] = bytes.fromhex(code)
    return engine


def run(engine: Any) -> EngineCrashed:
    with pytest.raises(EngineCrashed) as caught:
        engine.run(lambda _exit: engine.stop())
    return caught.value


@pytest.mark.parametrize("make", ENGINES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("signal", CRASHES)
def test_a_crash_in_a_native_callback_ends_the_run_alone(make: Callable[[], Any], signal: str) -> None:
    engine = crashing(make, CRASHES[signal])
    crash = run(engine)
    assert isinstance(crash, GuestFault)
    assert (crash.signal, crash.exit_status) == (signal, 14)
    assert run(engine).signal == signal  # nothing of it is run again
    engine.close()
    make().close()  # opening an engine runs code on it


def test_an_abort_in_the_engine_ends_the_run_alone() -> None:
    # push rbp (the stack is aligned so); mov edi,SIGABRT; mov rax,raise; call rax
    import ctypes

    target = ctypes.cast(getattr(ctypes.CDLL(None), "abort"), ctypes.c_void_p).value or 0  # noqa: B009
    engine = crashing(UnicornEngine, "4883e4f0 48b8" + target.to_bytes(8, "little").hex() + "ffd0")
    assert run(engine).signal == "SIGABRT"
    engine.close()


def test_an_engine_runs_on_while_another_one_has_crashed() -> None:
    other = UnicornMipsEngine()
    memory = memoryview(mmap.mmap(-1, 1 << 20))
    memory[0x1000:0x1004] = (0x4200_0020).to_bytes(4, "little")  # WAIT
    other.map_memory(0, memory)
    other.registers.jump(0x8000_1000)
    seen: list[str] = []

    def handler(exit_: Any) -> None:
        if not seen:
            run(crashing(UnicornEngine, CRASHES["SIGSEGV"]))
        seen.append(exit_.kind.name)
        other.stop()

    other.run(handler)
    assert seen == ["HALT"]
    other.close()


def test_a_crash_of_pythons_own_is_not_taken_for_the_engines() -> None:
    program = (
        "import ctypes, mmap\nfrom emulator.engine.unicorn.engine import UnicornEngine\n"
        "engine = UnicornEngine()\nengine.map_memory(0, memoryview(mmap.mmap(-1, 1 << 20)))\n"
        "engine.run(lambda _exit: ctypes.string_at(0))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert done.returncode == -11
