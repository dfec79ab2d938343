"""The privileged acts of a processor, by their field names.

Room: `emulator/isa`, knowledge about instruction sets as data. An `Operation` is what a
sensitive instruction *stands for*; the tables name one for every row, and the hypervisor has
one handler for each, however the operation arrives. Nothing here knows of an engine or of the
hypervisor.
"""

from enum import Enum, auto


class Operation(Enum):
    """One privileged act. Names follow the vendors' manuals and the lecture."""

    DISABLE_INTERRUPTS = auto()
    """x86 CLI."""
    ENABLE_INTERRUPTS = auto()
    """x86 STI, with its one-instruction shadow."""
    READ_FLAGS = auto()
    """x86 PUSHF: the processor status word, interrupt flag included."""
    WRITE_FLAGS = auto()
    """x86 POPF."""
    RETURN_FROM_EXCEPTION = auto()
    """x86 IRET."""
    FAR_RETURN = auto()
    """x86 far RET."""
    FAR_JUMP = auto()
    """x86 far JMP."""
    FAR_CALL = auto()
    """x86 far CALL."""
    SOFTWARE_INTERRUPT = auto()
    """x86 INT n, INT3, INT1, INTO."""
    SYSTEM_CALL = auto()
    """x86 SYSCALL and SYSENTER."""
    RETURN_FROM_SYSTEM_CALL = auto()
    """x86 SYSRET and SYSEXIT."""
    SWAP_GS = auto()
    """x86 SWAPGS."""
    HALT = auto()
    """x86 HLT: wait for an interrupt."""
    MONITOR_WAIT = auto()
    """x86 MONITOR and MWAIT."""
    READ_CONTROL_REGISTER = auto()
    """x86 MOV r, CRn."""
    WRITE_CONTROL_REGISTER = auto()
    """x86 MOV CRn, r."""
    READ_MACHINE_STATUS_WORD = auto()
    """x86 SMSW."""
    WRITE_MACHINE_STATUS_WORD = auto()
    """x86 LMSW."""
    CLEAR_TASK_SWITCHED = auto()
    """x86 CLTS."""
    READ_DEBUG_REGISTER = auto()
    """x86 MOV r, DRn."""
    WRITE_DEBUG_REGISTER = auto()
    """x86 MOV DRn, r."""
    READ_MODEL_SPECIFIC_REGISTER = auto()
    """x86 RDMSR."""
    WRITE_MODEL_SPECIFIC_REGISTER = auto()
    """x86 WRMSR."""
    READ_DESCRIPTOR_TABLE = auto()
    """x86 SGDT and SIDT."""
    WRITE_DESCRIPTOR_TABLE = auto()
    """x86 LGDT and LIDT."""
    READ_SYSTEM_SELECTOR = auto()
    """x86 SLDT and STR."""
    WRITE_SYSTEM_SELECTOR = auto()
    """x86 LLDT and LTR."""
    READ_SEGMENT_SELECTOR = auto()
    """x86 MOV r, Sreg and PUSH Sreg: the selector shows the privilege level."""
    WRITE_SEGMENT_SELECTOR = auto()
    """x86 MOV Sreg, r, POP Sreg, LSS and LFS and LGS."""
    INSPECT_DESCRIPTOR = auto()
    """x86 LAR, LSL, VERR, VERW."""
    READ_SEGMENT_BASE = auto()
    """x86 RDFSBASE and RDGSBASE."""
    WRITE_SEGMENT_BASE = auto()
    """x86 WRFSBASE and WRGSBASE."""
    INVALIDATE_PAGE = auto()
    """x86 INVLPG."""
    INVALIDATE_CONTEXT = auto()
    """x86 INVPCID."""
    FLUSH_CACHES = auto()
    """x86 INVD and WBINVD."""
    READ_PORT = auto()
    """x86 IN and INS."""
    WRITE_PORT = auto()
    """x86 OUT and OUTS."""
    IDENTIFY_PROCESSOR = auto()
    """x86 CPUID."""
    READ_TIME_STAMP = auto()
    """x86 RDTSC and RDTSCP."""
    READ_PROCESSOR_ID = auto()
    """x86 RDPID."""
    READ_PERFORMANCE_COUNTER = auto()
    """x86 RDPMC."""
    READ_EXTENDED_CONTROL_REGISTER = auto()
    """x86 XGETBV."""
    WRITE_EXTENDED_CONTROL_REGISTER = auto()
    """x86 XSETBV."""
    READ_PROTECTION_KEYS = auto()
    """x86 RDPKRU."""
    WRITE_PROTECTION_KEYS = auto()
    """x86 WRPKRU."""
    SET_ACCESS_CHECK = auto()
    """x86 CLAC and STAC."""
    ENTER_HYPERVISOR = auto()
    """x86 VMCALL, VMMCALL and the other VMX and SVM instructions."""
    SAVE_SUPERVISOR_STATE = auto()
    """x86 XSAVES and XRSTORS."""
    RETURN_FROM_MANAGEMENT_MODE = auto()
    """x86 RSM."""
    MANAGE_SHADOW_STACK = auto()
    """x86 SETSSBSY, CLRSSBSY and WRUSS."""
    CONTROL_PLATFORM = auto()
    """x86 GETSEC, ENCLS, PCONFIG and other instructions of extensions of the platform."""
    READ_SYSTEM_REGISTER = auto()
    """ARM MRC, MRRC and VMRS, AArch64 MRS: a register of the system by its name."""
    WRITE_SYSTEM_REGISTER = auto()
    """ARM MCR, MCRR and VMSR, AArch64 MSR."""
    INVALIDATE_TRANSLATIONS = auto()
    """ARM TLBI operations."""
    TRANSLATE_ADDRESS = auto()
    """ARM ATS operations, AArch64 AT."""
    MAINTAIN_CACHES = auto()
    """ARM cache and branch-predictor maintenance, AArch64 DC and IC."""
    CHANGE_MODE = auto()
    """ARM CPS with a mode alone."""
    READ_SAVED_STATUS = auto()
    """ARM MRS SPSR."""
    WRITE_SAVED_STATUS = auto()
    """ARM MSR SPSR."""
    READ_BANKED_REGISTER = auto()
    """ARM MRS of another mode's register."""
    WRITE_BANKED_REGISTER = auto()
    """ARM MSR of another mode's register."""
    SAVE_EXCEPTION_STATE = auto()
    """ARM SRS."""
    LOAD_USER_REGISTERS = auto()
    """ARM LDM with ^ and without PC."""
    STORE_USER_REGISTERS = auto()
    """ARM STM with ^."""
    ACCESS_AS_USER = auto()
    """ARM LDRT and STRT, AArch64 LDTR and STTR: a load or store with user code's rights."""
    SET_ENDIANNESS = auto()
    """ARM SETEND."""
    WAIT_FOR_EVENT = auto()
    """ARM and AArch64 WFE."""
    BREAKPOINT = auto()
    """ARM BKPT, AArch64 BRK."""
    RAISE_UNDEFINED = auto()
    """ARM UDF: undefined for ever."""
    CALL_SECURE_MONITOR = auto()
    """ARM and AArch64 SMC."""
    ACCESS_DEBUG_CHANNEL = auto()
    """ARM LDC and STC of the debug data-transfer registers."""
    WRITE_PAGE_TABLE_BASE = auto()
    """AArch64 MSR to TTBR0_EL1 and TTBR1_EL1."""
    SELECT_STACK = auto()
    """AArch64 MSR to SPSel: which stack pointer SP is."""
    READ_TRANSLATION = auto()
    """MIPS TLBR."""
    WRITE_TRANSLATION = auto()
    """MIPS TLBWI and TLBWR."""
    PROBE_TRANSLATION = auto()
    """MIPS TLBP."""
    READ_HARDWARE_REGISTER = auto()
    """MIPS RDHWR."""
    USE_COPROCESSOR = auto()
    """MIPS instructions of coprocessors 1 and 2, usable or not by Status."""
    LOAD_LINKED = auto()
    """MIPS LL."""
    STORE_CONDITIONAL = auto()
    """MIPS SC."""
    CONDITIONAL_TRAP = auto()
    """MIPS TEQ and its like."""
    RETURN_FROM_DEBUG = auto()
    """MIPS DERET."""
