"""The board is light: importing it loads no engine and no numerics."""

import subprocess
import sys


def test_importing_the_board_loads_nothing_heavy() -> None:
    program = (
        "import sys, emulator.board.pc, emulator.board.linux_boot;"
        "print(*sorted({'numpy', 'unicorn', 'iced_x86', 'lief', 'keystone'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
