"""The kernel's interface to KVM as numbers: requests, capabilities, exits, and where each field lies.

Room: `emulator/engine/kvm`, as data. Values are those of Linux's `include/uapi/linux/kvm.h` and
`arch/x86/include/uapi/asm/kvm.h`, which never change (Documentation/virt/kvm/api.rst). It opens nothing.
"""

from typing import Final

API_VERSION: Final = 12
_TYPE: Final = 0xAE


def _none(number: int) -> int:
    return _TYPE << 8 | number


def _write(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _TYPE << 8 | number


def _read(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _TYPE << 8 | number


def _both(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | _TYPE << 8 | number


GET_API_VERSION: Final = _none(0x00)
CREATE_VM: Final = _none(0x01)
CHECK_EXTENSION: Final = _none(0x03)
GET_VCPU_MMAP_SIZE: Final = _none(0x04)
GET_SUPPORTED_CPUID: Final = _both(0x05, 8)
CREATE_VCPU: Final = _none(0x41)
SET_NR_MMU_PAGES: Final = _none(0x44)
SET_USER_MEMORY_REGION: Final = _write(0x46, 32)
SET_TSS_ADDR: Final = _none(0x47)
REGISTER_COALESCED: Final = _write(0x67, 16)
UNREGISTER_COALESCED: Final = _write(0x68, 16)
RUN: Final = _none(0x80)
GET_SREGS: Final = _read(0x83, 312)
SET_MSRS: Final = _write(0x89, 8)
SET_SIGNAL_MASK: Final = _write(0x8B, 4)
SET_CPUID2: Final = _write(0x90, 8)
GET_DEBUGREGS: Final = _read(0xA1, 128)
SET_DEBUGREGS: Final = _write(0xA2, 128)
GET_XSAVE: Final = _read(0xA4, 4096)
SET_XSAVE: Final = _write(0xA5, 4096)

# Extensions asked for by CHECK_EXTENSION.
CAP_SET_TSS_ADDR: Final = 4
CAP_NR_MEMSLOTS: Final = 10
CAP_COALESCED_MMIO: Final = 15
CAP_DEBUGREGS: Final = 50
CAP_XSAVE: Final = 55
CAP_SYNC_REGS: Final = 74
CAP_IMMEDIATE_EXIT: Final = 136
CAP_COALESCED_PIO: Final = 162

# Why KVM_RUN came back (`kvm_run.exit_reason`).
EXIT_UNKNOWN: Final = 0
EXIT_IO: Final = 2
EXIT_DEBUG: Final = 4
EXIT_HLT: Final = 5
EXIT_MMIO: Final = 6
EXIT_SHUTDOWN: Final = 8
EXIT_FAIL_ENTRY: Final = 9
EXIT_INTR: Final = 10
EXIT_INTERNAL_ERROR: Final = 17

# `struct kvm_run`: offsets in bytes, or in 32- or 64-bit words where the name says so.
IMMEDIATE_EXIT: Final = 1
H_EXIT_REASON: Final = 8 // 4
W_CR8: Final = 16 // 8
B_UNION: Final = 32
"""What an exit says of itself."""
W_VALID: Final = 288 // 8
W_DIRTY: Final = 296 // 8
B_REGISTERS: Final = 304
B_SPECIAL: Final = B_REGISTERS + 144
B_EVENTS: Final = B_SPECIAL + 312
SYNC_REGISTERS: Final = 1
SYNC_SPECIAL: Final = 2
SYNC_EVENTS: Final = 4

W_REGISTERS: Final = B_REGISTERS // 8
"""RAX RBX RCX RDX RSI RDI RSP RBP R8..R15 RIP RFLAGS."""
W_RSP: Final = W_REGISTERS + 6
W_RIP: Final = W_REGISTERS + 16
W_RFLAGS: Final = W_REGISTERS + 17

W_SEGMENTS: Final = B_SPECIAL // 8
"""CS DS ES FS GS SS TR LDTR, three words each: base; limit, selector, type, present; dpl, db, s, l, g, avl, usable."""
SEGMENT_WORDS: Final = tuple(W_SEGMENTS + 3 * place for place in (2, 0, 5, 1, 3, 4, 7, 6))
"""First word of ES CS SS DS FS GS LDTR TR, in encoding order."""
W_GDT: Final = W_SEGMENTS + 24
"""Base; then the limit in 16 bits. The IDT follows."""
W_CR0: Final = W_GDT + 4
W_CR2: Final = W_CR0 + 1
W_CR3: Final = W_CR0 + 2
W_CR4: Final = W_CR0 + 3
W_EFER: Final = W_CR0 + 5
W_APIC_BASE: Final = W_CR0 + 6

# `kvm_vcpu_events`, synced.
EVENT_INJECTED: Final = B_EVENTS
EVENT_PENDING: Final = B_EVENTS + 3
EVENT_SHADOW: Final = B_EVENTS + 8 + 3

COALESCED_RING_BYTES: Final = 24
"""Of one entry: address (8), length (4), whether a port (4), data (8). In front of them: first and last (4 each)."""

MSR_STAR: Final = 0xC000_0081
MSR_LSTAR: Final = 0xC000_0082
MSR_CSTAR: Final = 0xC000_0083
MSR_FMASK: Final = 0xC000_0084
MSR_KERNEL_GS_BASE: Final = 0xC000_0102
MSR_TSC_AUX: Final = 0xC000_0103
MSR_EFER: Final = 0xC000_0080
MSR_PLATFORM_INFO: Final = 0xCE
MSR_MISC_FEATURES: Final = 0x140
CPUID_FAULTS: Final = 1 << 31
"""Of MSR_PLATFORM_INFO: CPUID can be made to fault in user mode, by bit 0 of MSR_MISC_FEATURES."""
