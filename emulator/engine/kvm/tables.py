"""A walk of the page tables that the processor uses, for the few times when the engine needs the guest's bytes.

Room: `emulator/engine/kvm`. Reads; sets no accessed bit, and trusts nothing: what is not backed is nothing.
"""

from emulator.engine.kvm.device import Vm

_FRAME = 0x000F_FFFF_FFFF_F000
_PRESENT, _LARGE = 1, 1 << 7
_LONGEST = 15


def translate(vm: Vm, root: int, address: int) -> int | None:
    """Physical address of a linear one, or None where no entry maps it."""
    entry, shift = root & _FRAME | _PRESENT, 48
    while shift > 12:
        shift -= 9
        found = vm.word((entry & _FRAME) + (address >> shift & 511) * 8)
        if found is None or not found & _PRESENT:
            return None
        entry = found
        if entry & _LARGE and shift in (30, 21):
            break
    mask = (1 << shift) - 1
    return entry & _FRAME & ~mask | address & mask


def read_code(vm: Vm, root: int, address: int) -> bytes:
    """Up to 15 bytes at a linear address, as far as memory is mapped there."""
    parts = b""
    while len(parts) < _LONGEST:
        physical = translate(vm, root, address + len(parts) & 0xFFFF_FFFF_FFFF_FFFF)
        found = vm.find(physical) if physical is not None else None
        if physical is None or found is None:
            break
        first, words = found[0], found[2]
        size = min(_LONGEST - len(parts), 4096 - physical % 4096)
        low = physical - first
        contents = words[low >> 3 : (low + size + 7) >> 3].tobytes()
        parts += contents[low & 7 : (low & 7) + size]
    return parts
