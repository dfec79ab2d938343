"""Behind a load Unicorn does not look whether it shall stop; where nothing answers a load, its block is left there."""

import ctypes
import os
from types import SimpleNamespace

import pytest

from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.load_checks import not_behind_loads
from emulator.errors import EngineMissing

PROCESSORS = ["x86_64", "aarch64", "arm", "mips", "mipsel"]
RETURN, JUMP = 0xC3, 0xE9
ENDS = bytes.fromhex("4889ef 5d")


def _end_of(library: ctypes.CDLL, name: str) -> int:
    """What stands behind the last instructions of a function, before which it takes its frame down."""
    function = ctypes.cast(library[name], ctypes.c_void_p).value or 0
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        code = os.pread(descriptor, 96, function)
    finally:
        os.close(descriptor)
    return code[code.index(ENDS) + len(ENDS)]


@pytest.mark.parametrize("processor", PROCESSORS)
def test_what_makes_a_load_adds_no_look_and_what_makes_a_store_does(processor: str) -> None:
    library = lib.load()
    not_behind_loads(library, processor)
    not_behind_loads(library, processor)
    ends = [_end_of(library, f"tcg_gen_qemu_{name}_{processor}") for name in ("ld_i32", "ld_i64", "st_i32", "st_i64")]
    assert ends == [RETURN, RETURN, JUMP, JUMP]


def test_a_library_that_is_another_is_refused_and_left_as_it_is() -> None:
    other = SimpleNamespace(check_exit_request_else=lib.load().uc_open, tcg_gen_qemu_ld_i32_else=lib.load().uc_close)
    with pytest.raises(EngineMissing, match="makes no loads of else that retrap knows"):
        not_behind_loads(other, "else")  # type: ignore[arg-type]
