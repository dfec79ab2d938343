"""Unicorn as it is, through its public binding alone: what the tests of its quirks look at.

Room: `tests`. A flat 64-bit machine of 2 MiB with four-level tables that map it to itself, entered at CPL 0
or, by an IRETQ that the machine itself executes, at CPL 3. No offset into Unicorn's state is used here.
"""

import importlib
from collections.abc import Callable
from typing import Any

# The binding's annotations are partial: as Any, its calls can be checked by nobody but also fail no check.
unicorn: Any = importlib.import_module("unicorn")
names: Any = importlib.import_module("unicorn.x86_const")

SIZE = 0x20_0000
ROOT, PAGES = 0x1000, 0x4000
GDT, STACK, ENTRY = 0x6000, 0x8000, 0x9000
CODE = 0x1_0000
DATA = 0x2_0000
KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE = 0x08, 0x10, 0x1B, 0x23
DESCRIPTORS = (0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF)
NOWHERE = 0x8000_0000_0000_0000
NO_EXECUTE = 1 << 63
_EFER = 0xC000_0080
_HLT = b"\xf4"


class RawUnicorn:
    """One Unicorn. `events` collects (vector, RIP) of every exception; the hook steps over `skip` bytes, or stops."""

    def __init__(self, code: str, user: bool = False, skip: int | None = None, paged: bool = True) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.mem_map(0, SIZE)
        self.user = user
        self.skip = skip
        self.events: list[tuple[int, int]] = []
        self.uc.mem_write(CODE, bytes.fromhex(code) + _HLT)
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)
        for index, descriptor in enumerate(DESCRIPTORS):
            self.word(GDT + 8 * index, descriptor)
        for level in range(3):
            self.word(ROOT + 0x1000 * level, ROOT + 0x1000 * (level + 1) | 7)
        for page in range(512):
            self.word(PAGES + 8 * page, page << 12 | 7)
        self.uc.reg_write(names.UC_X86_REG_GDTR, (0, GDT, 8 * len(DESCRIPTORS) - 1, 0))
        if paged:
            self.uc.reg_write(names.UC_X86_REG_CR3, ROOT)
            self.uc.reg_write(names.UC_X86_REG_MSR, (_EFER, 0xD01))
            self.uc.reg_write(names.UC_X86_REG_CR4, 0x20)
            self.uc.reg_write(names.UC_X86_REG_CR0, 0x8001_0011)

    def _on_exception(self, uc: Any, vector: int, _data: object) -> None:
        self.events.append((vector, self.rip))
        if self.skip is None or len(self.events) > 8:
            uc.emu_stop()
        else:
            uc.reg_write(names.UC_X86_REG_RIP, self.rip + self.skip)

    def word(self, address: int, value: int | None = None) -> int:
        """A 64-bit word of memory, written first if a value is given."""
        if value is not None:
            self.uc.mem_write(address, value.to_bytes(8, "little"))
        return int.from_bytes(self.uc.mem_read(address, 8), "little")

    def hook(self, instruction: int, callback: Callable[..., object]) -> None:
        """Call back at every execution of one of the instructions that Unicorn offers."""
        self.uc.hook_add(unicorn.UC_HOOK_INSN, callback, None, 1, 0, instruction)

    @property
    def rip(self) -> int:
        """The instruction pointer."""
        return int(self.uc.reg_read(names.UC_X86_REG_RIP))

    def get(self, register: str) -> int:
        """A register by its name."""
        return int(self.uc.reg_read(getattr(names, f"UC_X86_REG_{register.upper()}")))

    def set(self, register: str, value: int) -> None:
        """Write a register by its name, through the public interface."""
        self.uc.reg_write(getattr(names, f"UC_X86_REG_{register.upper()}"), value)

    def run(self, address: int = CODE) -> list[tuple[int, int]]:
        """Run from `address` to a HLT or the first exception not stepped over; returns all events."""
        if self.user:
            frame = (address, USER_CODE, 2, STACK, USER_DATA)
            for index, word in enumerate(frame):
                self.word(STACK - 0x100 + 8 * index, word)
            self.uc.mem_write(ENTRY, b"\x48\xcf")
            self.uc.reg_write(names.UC_X86_REG_RSP, STACK - 0x100)
            self.uc.reg_write(names.UC_X86_REG_CS, KERNEL_CODE)
            address = ENTRY
        else:
            self.uc.reg_write(names.UC_X86_REG_RSP, STACK)
        self.resume(address)
        return self.events

    def resume(self, address: int) -> None:
        """Run on from `address` at the level that it is."""
        self.uc.emu_start(address, NOWHERE)
