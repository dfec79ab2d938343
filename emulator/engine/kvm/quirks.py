"""Where a host's KVM departs from the x86 architecture, how that is probed, and where it is hidden.

Room: `emulator/engine/kvm`, as data; `retrap engines` and the documentation print the rows. A row names the field of
`Findings` that says whether the host has the quirk. On VT-x and AMD-V none is expected; hosts that are virtual
machines themselves may run KVM by software (`kvm_pvm`), and those have most of them.
"""

from dataclasses import dataclass
from typing import Final

from emulator.engine.kvm.findings import Findings

_DOCUMENT: Final = "https://docs.kernel.org/virt/kvm/api.html"
_PVM: Final = "https://lore.kernel.org/lkml/20240226143630.33643-1-jiangshanlai@gmail.com/"
"""The software KVM that the kernel's mailing list was shown; hosts have variants of it."""
_CALLS: Final = "https://docs.kernel.org/virt/kvm/x86/hypercalls.html"
_MMU: Final = "https://docs.kernel.org/virt/kvm/x86/mmu.html"


@dataclass(frozen=True, slots=True)
class Quirk:
    """One departure that a host's KVM may have."""

    name: str
    seen: str
    """What happens on a host that has it."""
    probed: str
    """The experiment by which that is found."""
    hidden: str
    """What the engine, or who uses it, does about it."""
    field: str
    """Of `Findings`."""
    present: bool
    """The field's value on a host that has the quirk."""
    upstream: str
    """Where it is documented, or the code that it comes from."""

    def found(self, findings: Findings) -> bool:
        """Whether the host has it."""
        return bool(getattr(findings, self.field)) is self.present


QUIRKS: Final = (
    Quirk(
        "INT n is undefined",
        "INT n arrives as #UD at the instruction, whatever its gate is",
        "INT 80H: the vector of the handler",
        "`traps.py` looks at the code and reports a software interrupt",
        "int_is_undefined",
        True,
        _PVM,
    ),
    Quirk(
        "INT3 ignores its gate",
        "INT3 arrives by vector 3 behind the instruction, although its gate is closed to user mode",
        "INT3: the vector of the handler",
        "`traps.py` puts RIP back",
        "breakpoint_ignores_gate",
        True,
        _PVM,
    ),
    Quirk(
        "SYSCALL stays in user mode",
        "SYSCALL jumps to its target still at level 3, where the page is the supervisor's: #PF with CR2 = RIP = LSTAR",
        "SYSCALL: the vector of the handler",
        "`traps.py` takes either form; of the flags in R11 it takes what user code may set",
        "system_call_keeps_level",
        True,
        _PVM,
    ),
    Quirk(
        "INT1 stays where it is",
        "#DB by INT1 has RIP at the instruction, not behind it",
        "INT1: RIP in the frame",
        "`traps.py` steps over it, unless DR6 says that a single step ended there",
        "int1_at_instruction",
        True,
        _PVM,
    ),
    Quirk(
        "PUSHF shows IF set",
        "PUSHF shows the flags of the host's user mode, IF set and IOPL 0; a trap's frame has the guest's IF",
        "PUSHF with the flag clear",
        "the real flag of a deprivileged guest is 1 anyhow; a fixup corrects what PUSHF shows (`real_interrupt_flag`)",
        "interrupt_flag_shown",
        True,
        _PVM,
    ),
    Quirk(
        "CPUID is the host's",
        "CPUID in user mode shows the host's leaves, not those of KVM_SET_CPUID2",
        "CPUID leaf 1 against what was set",
        "kernel code has a planted trap at CPUID; user code sees the host's processor",
        "identify_is_hosts",
        True,
        _PVM,
    ),
    Quirk(
        "CPUID cannot be made to fault",
        "MSR_MISC_FEATURES_ENABLES has no effect",
        "CPUID with faulting asked for",
        "user code sees what CPUID shows there",
        "identify_faults",
        False,
        _DOCUMENT + "#kvm-set-msrs",
    ),
    Quirk(
        "RDTSC always works",
        "CR4.TSD is ignored: RDTSC shows the host's counter",
        "RDTSC with CR4.TSD set",
        "kernel code has planted traps there (`time_stamp_faults`); CPUID offers user code no TSC",
        "time_stamp_faults",
        False,
        _PVM,
    ),
    Quirk(
        "CR0.TS is ignored",
        "floating-point instructions never fault",
        "an SSE instruction with CR0.TS set",
        "the hypervisor raises #NM before user code is entered with TS set (`task_switched_faults`)",
        "task_switched_faults",
        False,
        _PVM,
    ),
    Quirk(
        "RDFSBASE always works",
        "RDFSBASE and its like work with CR4.FSGSBASE clear",
        "RDFSBASE with the bit clear",
        "bases are taken from the processor at every exit, so that what user code sets is the guest's",
        "bases_open",
        True,
        _PVM,
    ),
    Quirk(
        "AVX always works",
        "vector instructions work with CR4.OSXSAVE clear, and so does XGETBV: user code may keep state that its kernel "
        "does not save",
        "VMOVDQA with CR4.OSXSAVE clear",
        "the hypervisor keeps the upper parts apart by thread (`paravirt/modes/x86/vectors.py`); a signal handler that "
        "uses them may still change those of the code that it interrupts",
        "wide_vectors_open",
        True,
        _PVM,
    ),
    Quirk(
        "the host's segments are open",
        "selectors of the host's own user segments (2BH and its like) can be loaded, whatever the guest's table holds",
        "MOV DS, 2BH with an empty table",
        "not hidden: they are flat and of level 3, as those of 64-bit guests are. A kernel is not told that its user "
        "code loaded one of them; loads of all others fault, and are done from the guest's table as it is then",
        "host_segments_open",
        True,
        _PVM,
    ),
    Quirk(
        "reads of segment registers show the host's",
        "MOV from CS and SS shows the selectors of the host's user mode, that from DS, ES, FS and GS 0 where the guest "
        "loaded others; a trap's frame has the guest's",
        "MOV from CS and SS, entered with others",
        "kernel code has planted traps there, never fixups (`shows_selectors`)",
        "host_selectors_shown",
        True,
        _PVM,
    ),
    Quirk(
        "LAR looks at the host's segments",
        "LAR, LSL, VERR and VERW find the host's own user segments alone (28H, 30H, 78H), whatever the guest's table "
        "holds",
        "LAR of a segment that the table has",
        "not hidden: nothing faults, and the table is the host's. Kernel code has planted traps there; what user code "
        "learns is what is so on each 64-bit Linux, but for the 32-bit code segment, which it does not find",
        "descriptors_are_hosts",
        True,
        _PVM,
    ),
    Quirk(
        "RDTSCP shows the host's processor",
        "RDTSCP and RDPID give the number of the host's processor on which the guest happens to run; MSR_TSC_AUX is "
        "taken and has no effect",
        "RDTSCP against MSR_TSC_AUX",
        "not hidden: the guest's CPUID offers neither, so that Linux's vDSO asks LSL for the limit of 78H, which is 0, "
        "and kernel code has planted traps there. A program that executes them unasked may see processor 1 of one",
        "processor_shown",
        True,
        _PVM,
    ),
    Quirk(
        "VMMCALL is answered",
        "VMCALL or VMMCALL of user code gives -1 (not permitted) in RAX, and faults on no processor's terms",
        "both, against #UD",
        "not hidden: KVM refuses every call of level 3 and changes RAX alone. #GP in place of #UD is put right by the "
        "hypervisor (`delivery.protected_or`)",
        "calls_answered",
        True,
        _CALLS,
    ),
    Quirk(
        "32-bit code is interpreted",
        "code of a 32-bit segment runs a thousand times slower, and what KVM's interpreter does not know (arithmetic "
        "of x87 and SSE, BOUND, AAA, POPCNT) is undefined",
        "FLD1 in a 32-bit segment",
        "INT n, INT3 and INTO are told by their code, and SYSCALL by the vendor that the guest is shown; programs of "
        "integers run, others get SIGILL: run them with --engine unicorn",
        "compatibility_interpreted",
        True,
        _PVM,
    ),
    Quirk(
        "SGDT shows real tables",
        "CR4.UMIP is ignored: SGDT, SIDT, SLDT, STR and SMSW show what the processor has",
        "SGDT, STR and SMSW with CR4.UMIP set",
        "user code would see the engine's own tables; kernel code is rewritten",
        "tables_fault",
        False,
        _DOCUMENT + "#kvm-set-cpuid2",
    ),
    Quirk(
        "translations are kept",
        "an entry of a page table that the host changes is not looked at again, whatever is done to CR3 and CR4: this "
        "KVM shadows the tables, and watches the guest's own stores to them alone",
        "an entry is changed, then CR4.PGE",
        "`flush_tlb` is told the entries: the engine's stub stores them once more (`stub.py`), or the mapped page is "
        "taken away",
        "flush_by_control",
        False,
        _MMU,
    ),
    Quirk(
        "a right that was gained goes unseen",
        "a store is refused by an entry that has gained the right to write since it was looked at",
        "a store that is refused, the right, the same store",
        "none was seen yet: such a host is told of these changes as well (`names_gained`)",
        "looks_again",
        False,
        _MMU,
    ),
    Quirk(
        "stores to code go unseen",
        "code that was executed and is then changed through another mapping, or by the host, executes as it was",
        "both, to the instruction behind the store",
        "none was seen yet: such a host is given no user code that may change unseen (`coherent_aliases`)",
        "code_is_coherent",
        False,
        _MMU,
    ),
    Quirk(
        "level 3 is interpreted",
        "a loop takes a thousand times as long as it should",
        "131072 rounds of a loop against the clock",
        "not hidden: `auto` takes another engine",
        "native_speed",
        False,
        _PVM,
    ),
)
"""Every departure that an experiment looks for."""
