"""What CPUID shows: one processor, the same at full privilege and deprivileged.

Room: `emulator/isa/x86`, data. The processor is described as what an emulated one is: in order,
without speculation, so a kernel needs no mitigation. Family 6, model 1CH (the in-order Atom) is the
signature by which kernels know such a part. TSC, APIC, XSAVE, SMEP, SMAP, PCID, MCE and MTRR are
not offered. Layout: Intel SDM volume 2A, CPUID.
"""

from typing import Final

SIGNATURE: Final = 0x0001_06CA
"""Family 6, model 1CH, stepping 10."""

_FPU, _VME, _DE, _PSE, _TSC, _MSR, _PAE = (1 << bit for bit in (0, 1, 2, 3, 4, 5, 6))
_CX8, _PGE, _CMOV, _PAT, _PSE36, _CLFSH, _MMX, _FXSR, _SSE, _SSE2 = (
    1 << bit for bit in (8, 13, 15, 16, 17, 19, 23, 24, 25, 26)
)
LEAF_1_EDX: Final = (
    _FPU | _DE | _PSE | _MSR | _PAE | _CX8 | _PGE | _CMOV | _PAT | _PSE36 | _CLFSH | _MMX | _FXSR | _SSE | _SSE2
)
LEAF_1_ECX: Final = (1 << 0) | (1 << 9) | (1 << 13) | (1 << 19) | (1 << 20) | (1 << 22) | (1 << 23)
"""SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE, POPCNT."""
_CMPXCHG16B = 1 << 13
LEAF_8000_0001_EDX: Final = (1 << 11) | (1 << 20) | (1 << 29)
"""SYSCALL, NX, long mode."""
LEAF_8000_0001_ECX: Final = 1
"""LAHF and SAHF in 64-bit mode."""

PHYSICAL_BITS: Final = 36
VIRTUAL_BITS: Final = 48

_VENDOR: Final = (0x756E_6547, 0x6C65_746E, 0x4965_6E69)
"""EBX, ECX, EDX of "GenuineIntel"."""
_BRAND: Final = b"retrap virtual processor".ljust(48, b"\0")

_SEP = 1 << 11
_32_BIT_EXTENDED_EDX = 1 << 20
"""NX; neither SYSCALL nor long mode."""


def identify_32(leaf: int, _subleaf: int) -> tuple[int, int, int, int]:
    """The same processor without 64-bit mode, for 32-bit guests: SYSENTER in place of SYSCALL and long mode."""
    eax, ebx, ecx, edx = identify(leaf, _subleaf)
    if leaf == 1:
        return eax, ebx, ecx & ~_CMPXCHG16B, edx | _SEP
    if leaf == 0x8000_0001:
        return eax, ebx, 0, _32_BIT_EXTENDED_EDX
    if leaf == 0x8000_0008:
        return PHYSICAL_BITS | 32 << 8, 0, 0, 0
    return eax, ebx, ecx, edx


def identify(leaf: int, _subleaf: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX of CPUID `leaf`; unknown leaves read as zero, as AMD has it."""
    if leaf == 0:
        return 1, *_VENDOR
    if leaf == 1:
        return SIGNATURE, 0x0000_0800, LEAF_1_ECX, LEAF_1_EDX
    if leaf == 0x8000_0000:
        return 0x8000_0008, 0, 0, 0
    if leaf == 0x8000_0001:
        return 0, 0, LEAF_8000_0001_ECX, LEAF_8000_0001_EDX
    if 0x8000_0002 <= leaf <= 0x8000_0004:
        part = _BRAND[(leaf - 0x8000_0002) * 16 :][:16]
        return (
            int.from_bytes(part[0:4], "little"),
            int.from_bytes(part[4:8], "little"),
            int.from_bytes(part[8:12], "little"),
            int.from_bytes(part[12:16], "little"),
        )
    if leaf == 0x8000_0008:
        return PHYSICAL_BITS | VIRTUAL_BITS << 8, 0, 0, 0
    return 0, 0, 0, 0
