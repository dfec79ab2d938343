"""What was found of a host's KVM, as a value, and the capabilities that follow from it.

Room: `emulator/engine/kvm`. A fresh `Findings` is a processor as the manuals have it; `probe.py` fills in what it
sees. The engine reads nothing else about its host.
"""

from dataclasses import dataclass

from emulator.engine.kvm import room
from emulator.engine.protocol import Capabilities


@dataclass(frozen=True, slots=True)
class Findings:
    """The results of the experiments. Each field is one; the default is the architecture's answer."""

    int_is_undefined: bool = False
    """INT n arrives as #UD."""
    breakpoint_ignores_gate: bool = False
    """INT3 arrives by its vector although its gate is closed to user mode."""
    system_call_keeps_level: bool = False
    """SYSCALL jumps to its target without leaving user mode."""
    int1_at_instruction: bool = False
    """#DB by INT1 has RIP at the instruction."""
    interrupt_flag_shown: bool = False
    """PUSHF shows IF set although it is clear."""
    identify_is_hosts: bool = False
    """CPUID in user mode shows the host's leaves, not those set for the guest."""
    identify_faults: bool = False
    """CPUID in user mode can be made to fault."""
    time_stamp_faults: bool = True
    """CR4.TSD makes RDTSC fault in user mode."""
    task_switched_faults: bool = True
    """CR0.TS makes a floating-point instruction fault."""
    bases_open: bool = False
    """RDFSBASE and its like work with CR4.FSGSBASE clear."""
    counter_is_hosts: bool = False
    """RDTSC in user mode shows the host's own counter, and MULX works."""
    wide_vectors_open: bool = False
    """AVX works with CR4.OSXSAVE clear: user code has state that its kernel does not save."""
    host_segments_open: bool = False
    """The host's own user segments can be loaded, although the descriptor table in GDTR has none."""
    host_selectors_shown: bool = False
    """Reads of segment registers show the host's selectors."""
    descriptors_are_hosts: bool = False
    """LAR, LSL, VERR and VERW look at the host's descriptor table, not at the one in GDTR."""
    processor_shown: bool = False
    """RDTSCP and RDPID show the number of the host's processor, not MSR_TSC_AUX."""
    calls_answered: bool = False
    """VMCALL or VMMCALL of user code is answered by KVM."""
    compatibility_interpreted: bool = False
    """32-bit code is interpreted, and what the interpreter does not know is undefined."""
    tables_fault: bool = True
    """CR4.UMIP makes SGDT and its like fault in user mode."""
    flush_by_control: bool = True
    """A change of CR4.PGE forgets translations whose entries the host changed."""
    flush_by_page: bool = False
    """Taking a page away forgets the translations that led to it."""
    flush_by_store: bool = True
    """A store of the processor itself to an entry forgets its translation."""
    flush_by_table: bool = False
    """A store of the processor itself to a part of an entry forgets all translations of the table."""
    looks_again: bool = True
    """A store is not refused by an entry that has gained the right to write meanwhile: the tables are looked at."""
    code_is_coherent: bool = True
    """Stores to code are seen, by the guest through any mapping and by the host."""
    crosses: bool = False
    """Code of the engine's at level 0 leads from user code to the kernel and back, for less than an exit."""
    exit_cost: float = 2.0
    """Microseconds of a trap from user mode to the engine and back."""
    native_speed: bool = True
    """Code at level 3 runs on the processor, not in an interpreter."""

    def capabilities(self) -> Capabilities:
        """What an engine on such a host can do."""
        return Capabilities(
            name="kvm",
            deterministic=False,
            full_privilege=False,
            coherent_code=self.code_is_coherent,
            coherent_aliases=self.code_is_coherent,
            fast_store_needs_no_execute=False,
            execute_only=False,
            reports_identify=False,
            ports_exit_in_user_mode=False,
            real_interrupt_flag=True,
            exit_cost=self.exit_cost,
            reserved_root_slots=(room.SLOT - 1, room.SLOT),
            time_stamp_faults=self.time_stamp_faults,
            task_switched_faults=self.task_switched_faults,
            wide_vectors=self.wide_vectors_open,
            shows_selectors=not self.host_selectors_shown,
            shows_io_privilege=not self.interrupt_flag_shown,
            opens_ports=True,
            shows_segments=True,
            names_changes=not self.flush_by_control,
            names_gained=not self.looks_again,
            open_bases=self.bases_open,
            steady_counter=self.counter_is_hosts,
            crosses=self.crosses,
            progress_per_second=1_000_000_000,
        )
