"""What CPUID shows to a Xen guest: the processor of `emulator.isa.x86.identity`, and Xen's own leaves.

Room: `paravirt/xen`, data (arch-x86/cpuid.h). A counter in nanoseconds is there, since Xen's time depends on it; large
and global pages are not, since a guest with tables of its own cannot have them.
"""

from __future__ import annotations

from typing import Final

from emulator.isa.x86.identity import identify as identify_processor

VERSION: Final = 4 << 16 | 17
"""Of the interface."""
_LEAVES: Final = 0x4000_0000
_LAST: Final = _LEAVES + 3
_TSC = 1 << 4
_WITHOUT: Final = ~(1 << 3 | 1 << 13 | 1 << 17)
"""PSE, PGE, PSE-36."""
_HYPERVISOR: Final = 1 << 31
_FEATURES: Final = 7
_FSGSBASE: Final = 1
_SIGNATURE: Final = (0x566E_6558, 0x6558_4D4D, 0x4D4D_566E)
"""XenVMMXenVMM."""
_KILOHERTZ: Final = 1_000_000


def identify(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX of CPUID `leaf`."""
    if _LEAVES <= leaf <= _LAST:
        return _xen(leaf - _LEAVES, subleaf)
    eax, ebx, ecx, edx = identify_processor(leaf, subleaf)
    if leaf == 0:
        return max(eax, _FEATURES), ebx, ecx, edx
    if leaf == 1:
        return eax, ebx, ecx | _HYPERVISOR, edx & _WITHOUT | _TSC
    if leaf == _FEATURES and subleaf == 0:
        return eax, ebx | _FSGSBASE, ecx, edx
    return eax, ebx, ecx, edx


def _xen(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    if leaf == 0:
        return _LAST, *_SIGNATURE
    if leaf == 1:
        return VERSION, 0, 0, 0
    if leaf == 2:
        return 1, _LEAVES, 1, 0  # one hypercall page; the base of the registers; updates that keep accessed and dirty
    if subleaf == 0:
        return 1, 1, _KILOHERTZ, 0  # the counter is emulated, always
    if subleaf == 1:
        return 0, 0, 1 << 31, 1
    return _KILOHERTZ, 0, 0, 0
