"""The interface between guest-side code and the hypervisor: addresses and the shared page.

Room: `paravirt`. Fixups (made by `bt`) and the hypervisor agree through this file only. The
fixups and the shared page are mapped by the hypervisor, in the guest-kernel view only, in the
last 2 MiB of the address space: reachable by a 32-bit displacement both from kernels in the top
2 GiB and, wrapping around, from kernels in the low 2 GiB, and unused by Linux ("unused hole" in
Documentation/arch/x86/x86_64/mm.rst). Nothing the guest writes to the shared page is trusted.
"""

ABI_VERSION = 1
"""Raised at every change of an address, an offset or a meaning below."""

HYPERVISOR_BASE = 0xFFFF_FFFF_FFE0_0000
"""First address of the hypervisor's window in the guest-kernel view."""

FIXUP_BASE = HYPERVISOR_BASE
"""First address of the fixups, mapped read-execute."""

FIXUP_SIZE = 0x1E_0000
"""Bytes reserved for fixups."""

SHARED_PAGE = HYPERVISOR_BASE + FIXUP_SIZE
"""The page of virtual CPU state shared with the guest kernel, mapped read-write, no execute.
As a sign-extended 32-bit displacement it is reachable from any 64-bit code."""

INTERRUPT_DELTA = 0x00
"""Offset, 64 bits: 0 when the virtual interrupt flag is set, -0x200 when it is clear. The real
interrupt flag of a deprivileged guest reads as 1, so real RFLAGS + delta = virtual RFLAGS."""

INTERRUPTS_ENABLED = 0
INTERRUPTS_DISABLED = -0x200

INTERRUPT_PENDING = 0x08
"""Offset, 64 bits: not 0 while an interrupt waits for the flag. Written by the hypervisor."""

SCRATCH = 0x10
"""Offset: eight 64-bit words that a fixup may use between its first and last instruction."""

SCRATCH_WORDS = 8

IO_PRIVILEGE = 0x50
"""Offset, 64 bits: the virtual IOPL at its place in RFLAGS (bits 12-13), written by the hypervisor. The real IOPL of a
deprivileged guest is 0, so real RFLAGS + delta + this = virtual RFLAGS."""

RING_OF_SELECTORS = 3
"""The real CS and SS of a deprivileged kernel are the virtual ones plus this; DS, ES, FS and GS hold the guest's own
selectors. So reads of selectors need no exit."""

CONTROL_REGISTERS = 0x80
"""Offset: 64-bit copies of the virtual CR0, CR2, CR3, CR4 at +0x00, +0x10, +0x18, +0x20,
written by the hypervisor, so that reads of them can be inline."""
