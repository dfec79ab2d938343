"""Unicorn's C interface, called without the binding's wrappers.

Room: `emulator/engine/unicorn`. An exit through the public Python binding costs several
microseconds (facts measured: `reg_read` 2.35 against 0.43 by a raw call), so this module declares
the few C functions the engine needs, and the callback types. Only this folder imports unicorn.
"""

import ctypes
from ctypes import c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

import unicorn
from unicorn import x86_const
from unicorn.unicorn_py3 import unicorn as _binding

from emulator.errors import EngineMissing

SUPPORTED_VERSION = (2, 1, 4)
"""The wheel whose state layout `state.py` knows; the layout is confirmed at start-up besides."""

FaultCallback = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
InvalidCallback = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
PortReadCallback = ctypes.CFUNCTYPE(c_uint32, c_void_p, c_uint32, c_int, c_void_p)
PortWriteCallback = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_int, c_uint32, c_void_p)
SystemCallCallback = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
MemoryCallback = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_uint64, c_int, ctypes.c_int64, c_void_p)
SkipCallback = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
DeviceReadCallback = ctypes.CFUNCTYPE(c_uint64, c_void_p, c_uint64, ctypes.c_uint, c_void_p)
DeviceWriteCallback = ctypes.CFUNCTYPE(None, c_void_p, c_uint64, ctypes.c_uint, c_uint64, c_void_p)

CodeCallback = ctypes.CFUNCTYPE(None, c_void_p, c_uint64, c_uint32, c_void_p)

HOOK_INTR = unicorn.UC_HOOK_INTR
HOOK_INSN = unicorn.UC_HOOK_INSN
HOOK_INSN_INVALID = unicorn.UC_HOOK_INSN_INVALID
HOOK_BLOCK = unicorn.UC_HOOK_BLOCK
HOOK_CODE = unicorn.UC_HOOK_CODE
HOOK_MEM_READ = unicorn.UC_HOOK_MEM_READ
HOOK_MEM_WRITE = unicorn.UC_HOOK_MEM_WRITE
HOOK_MEMORY = HOOK_MEM_READ | HOOK_MEM_WRITE
MEMORY_WRITE = unicorn.UC_MEM_WRITE
HOOK_MEM_INVALID = unicorn.UC_HOOK_MEM_INVALID
HOOK_MEM_WRITE_UNMAPPED = unicorn.UC_HOOK_MEM_WRITE_UNMAPPED
INS_IN = x86_const.UC_X86_INS_IN
INS_OUT = x86_const.UC_X86_INS_OUT
INS_SYSCALL = x86_const.UC_X86_INS_SYSCALL
INS_SYSENTER = x86_const.UC_X86_INS_SYSENTER
INS_CPUID = x86_const.UC_X86_INS_CPUID
INS_RDTSC = x86_const.UC_X86_INS_RDTSC
INS_RDTSCP = x86_const.UC_X86_INS_RDTSCP
REG_RIP = x86_const.UC_X86_REG_RIP
REG_CR2 = x86_const.UC_X86_REG_CR2
REG_DR0 = x86_const.UC_X86_REG_DR0
REG_FS_BASE = x86_const.UC_X86_REG_FS_BASE
REG_GDTR = x86_const.UC_X86_REG_GDTR
REG_IDTR = x86_const.UC_X86_REG_IDTR
REG_EFLAGS = x86_const.UC_X86_REG_EFLAGS
REG_CR0 = x86_const.UC_X86_REG_CR0
REG_CR4 = x86_const.UC_X86_REG_CR4
REG_MSR = x86_const.UC_X86_REG_MSR
REG_FPSW, REG_FPCW, REG_FPTAG = x86_const.UC_X86_REG_FPSW, x86_const.UC_X86_REG_FPCW, x86_const.UC_X86_REG_FPTAG
REG_FIP, REG_FDP, REG_FOP = x86_const.UC_X86_REG_FIP, x86_const.UC_X86_REG_FDP, x86_const.UC_X86_REG_FOP
REG_MXCSR, REG_FP0, REG_XMM0 = x86_const.UC_X86_REG_MXCSR, x86_const.UC_X86_REG_FP0, x86_const.UC_X86_REG_XMM0
GENERAL = (
    *(getattr(x86_const, f"UC_X86_REG_{name}") for name in ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")),
    *(getattr(x86_const, f"UC_X86_REG_R{number}") for number in range(8, 16)),
)
"""Unicorn's numbers of the general registers, in the processor's encoding order."""

PROT_ALL = unicorn.UC_PROT_ALL
PROT_EXEC = unicorn.UC_PROT_EXEC
_CTL_WRITE = 1 << 30


def control_write(kind: int, arguments: int) -> int:
    """`UC_CTL_WRITE(kind, arguments)` of unicorn.h."""
    return kind | (arguments << 26) | _CTL_WRITE


CONTROL_REMOVE_CODE = control_write(unicorn.UC_CTL_TB_REMOVE_CACHE, 2)
CONTROL_FLUSH_CODE = control_write(unicorn.UC_CTL_TB_FLUSH, 0)
CONTROL_FLUSH_TLB = control_write(unicorn.UC_CTL_TLB_FLUSH, 0)
CONTROL_ENDS = control_write(unicorn.UC_CTL_UC_USE_EXITS, 1)
"""With 1: a list of addresses, empty at first, is where an emulation ends, and not `uc_emu_start`'s `until`."""


class MsrAccess(ctypes.Structure):
    """`uc_x86_msr` of unicorn/x86.h."""

    _fields_ = (("number", c_uint32), ("value", c_uint64))


class TableRegister(ctypes.Structure):
    """`uc_x86_mmr` of unicorn/x86.h."""

    _fields_ = (("selector", ctypes.c_uint16), ("base", c_uint64), ("limit", c_uint32), ("flags", c_uint32))


def load() -> Any:
    """The C library with the functions the engine uses declared.

    Raises `EngineMissing` when the installed Unicorn is another version than the one known.
    """
    version = tuple(int(part) for part in unicorn.__version__.split(".")[:3])
    if version != SUPPORTED_VERSION:
        known = ".".join(map(str, SUPPORTED_VERSION))
        raise EngineMissing(
            f"the unicorn engine is version {unicorn.__version__}, but retrap knows the state layout of {known} only: "
            f"pip install unicorn=={known}"
        )
    # Python's lock is held in all calls but the emulation itself (`crash`), which so can be told from the others.
    library = ctypes.PyDLL(_binding.uclib._name)
    library.uc_open.argtypes = (c_int, c_int, c_void_p)
    library.uc_close.argtypes = (c_void_p,)
    library.uc_hook_del.argtypes = (c_void_p, c_size_t)
    library.uc_strerror.restype = ctypes.c_char_p
    library.uc_strerror.argtypes = (c_int,)
    library.uc_emu_start.argtypes = (c_void_p, c_uint64, c_uint64, c_uint64, c_size_t)
    library.uc_emu_stop.argtypes = (c_void_p,)
    library.uc_reg_read.argtypes = (c_void_p, c_int, c_void_p)
    library.uc_reg_write.argtypes = (c_void_p, c_int, c_void_p)
    library.uc_mem_map_ptr.argtypes = (c_void_p, c_uint64, c_uint64, c_uint32, c_void_p)
    library.uc_mem_unmap.argtypes = (c_void_p, c_uint64, c_uint64)
    library.uc_mmio_map.argtypes = (c_void_p, c_uint64, c_uint64, c_void_p, c_void_p, c_void_p, c_void_p)
    library.uc_vmem_read.argtypes = (c_void_p, c_uint64, c_uint32, c_void_p, c_size_t)
    library.uc_context_alloc.argtypes = (c_void_p, c_void_p)
    library.uc_context_save.argtypes = (c_void_p, c_void_p)
    library.uc_context_restore.argtypes = (c_void_p, c_void_p)
    library.uc_context_free.argtypes = (c_void_p,)
    library.uc_ctl.argtypes = (c_void_p, c_uint32)  # and what the control asks for
    return library


def page_flush(library: Any, processor: str) -> Any:
    """QEMU's function that forgets one page of a CPU's TLB: it takes the CPU object and an address.

    It is no part of Unicorn's interface, which has but the whole TLB. Raises `EngineMissing` where it is not exported.
    """
    try:
        function = library[f"tlb_flush_page_{processor}"]
    except AttributeError:
        raise EngineMissing(
            f"the unicorn engine has no tlb_flush_page_{processor}: install unicorn==2.1.4 as a wheel"
        ) from None
    function.argtypes, function.restype = (c_void_p, c_uint64), None
    return function
