"""Where Unicorn 2.1.4 departs from the x86 architecture, and where each departure is mended.

Room: `emulator/engine/unicorn`, as data. Every row names the test (in `tests/emulator/engine/test_quirks.py`) that
shows the raw misbehaviour and fails when upstream mends it; the documentation prints the rows. What single instructions
of the sensitive-instruction table do otherwise than the manual is in `emulator.isa.x86.proof_cases.DEPARTURES`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quirk:
    """One departure."""

    name: str
    happens: str
    """What Unicorn does."""
    architecture: str
    """What a processor does."""
    mended: str
    """Where this project works around it, or why it does no harm."""
    test: str
    """The test that shows it."""
    upstream: tuple[int, ...] = ()
    """Issues and pull requests of unicorn-engine/unicorn that are about it; `upstream.NAMES` has their names."""
    searched: str = ""
    """Where none was found: what was searched for (`upstream.SEARCHED` says where)."""


QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "the last exception is remembered",
        "the exception under way is never forgotten, so that a second #GP arrives as a double fault",
        "an exception is over when its delivery is",
        "`engine.py` forgets it at every event (`UnicornRegisters.forget_exception`)",
        "test_a_second_general_protection_fault_arrives_as_a_double_fault",
        (1883, 578),
    ),
    Quirk(
        "a stop counts as an exception",
        "the end of an emulation leaves a remembered exception behind: the first #GP afterwards is a double fault",
        "nothing is left of an earlier run",
        "`engine.py` forgets it whenever `uc_emu_start` returns",
        "test_the_first_fault_after_a_stop_arrives_as_a_double_fault",
        (1883,),
    ),
    Quirk(
        "the end is looked up",
        "`uc_emu_start` translates its `until` by the guest's tables when it ends; outside long mode, where no address "
        "is non-canonical, that page-faults and CR2 is gone",
        "CR2 changes by a page fault or a MOV",
        "`engine.py` gives a 32-bit guest an empty list of ends (`UC_CTL_UC_USE_EXITS`)",
        "test_the_end_of_a_run_outside_long_mode_overwrites_the_page_fault_address",
        (2376,),
    ),
    Quirk(
        "ports are open to everyone",
        "IN, OUT, INS and OUTS never fault: IOPL and the I/O permission bitmap are not looked at",
        "#GP(0) above IOPL unless the bitmap of the TSS allows the port (SDM 1, 19.5)",
        "the exit asks the handler, who may refuse; `engine.py` then raises #GP",
        "test_a_port_is_read_at_user_level_without_a_fault",
        searched="IN OUT instruction hook IOPL I/O permission bitmap user mode no #GP",
    ),
    Quirk(
        "a hook cannot stop an instruction",
        "after a hook of IN, OUT, CPUID or RDTSC asks for a stop the rest of the basic block is executed, and hooks of "
        "its other instructions are not called any more",
        "an instruction that faults changes nothing, and nothing behind it runs",
        "`engine.py` takes all mappings away until the block is over, and puts the registers back (`_refuse`)",
        "test_the_block_goes_on_after_a_stop_in_a_hook",
        (2185,),
    ),
    Quirk(
        "forgetting code forgets where it is",
        "when a hook within a basic block has all translated code forgotten, later exits of the block have RIP of "
        "an earlier instruction",
        "(an engine's own affair)",
        "`engine.py`: `flush_code` waits for the next block",
        "test_code_forgotten_within_a_block_loses_rip",
        (2279,),
    ),
    Quirk(
        "INS stores twice",
        "INS stores a zero to see whether its destination can be written, before it reads the port",
        "a refused INS leaves its destination alone",
        "not mended: seen only by a program that may not use the port, on the memory that it wanted overwritten",
        "test_ins_stores_a_zero_before_the_port_is_read",
        searched="target/i386 INS instruction writes destination before reading port",
    ),
    Quirk(
        "SYSCALL does nothing",
        "SYSCALL is an instruction of two bytes without effect; a hook sees RIP at it, and 2 is added to what RIP "
        "the hook leaves",
        "the target in LSTAR, the flags and the segments are loaded (SDM 2, SYSCALL)",
        "`engine.py` reports it and takes 2 off; whoever drives the CPU does what SYSCALL does",
        "test_syscall_does_nothing_and_adds_two_to_what_its_hook_leaves",
        (1048,),
    ),
    Quirk(
        "SYSENTER does nothing",
        "SYSENTER is an instruction of two bytes without effect",
        "#GP when SYSENTER_CS is 0; on the processor shown to guests (64-bit, AMD's way) #UD",
        "`engine.py` raises #UD",
        "test_sysenter_does_nothing",
        (341, 694, 1048),
    ),
    Quirk(
        "INT looks at no gate",
        "INT n and INT3 reach the hook whatever the gate's privilege or the table's limit is, RIP behind them",
        "#GP(vector) at the instruction above the gate's DPL or behind the table's end (SDM 3A, 6.12.1.2)",
        "`engine.py` puts RIP back; `isa/x86/delivery.py` looks at the gate",
        "test_int_is_not_checked_against_its_gate_and_leaves_rip_behind",
        (1048, 1027),
    ),
    Quirk(
        "the length of INT is lost",
        "with prefixes in front of INT n nothing tells where the instruction began",
        "RIP in the frame of a refused INT is that of its first prefix",
        "not mended: RIP is two bytes (INT3: one) before the next instruction; both addresses do the same when resumed",
        "test_prefixes_of_int_cannot_be_told",
        searched="x86 syscall sysenter int instruction gate IDT; exception hook INT",
    ),
    Quirk(
        "INT1 is undefined",
        "INT1 (ICEBP, F1) arrives as an invalid instruction",
        "#DB behind the instruction (SDM 2, INT1)",
        "`isa/x86/delivery.py`, `undefined_or`, by the byte at RIP",
        "test_int1_arrives_as_an_invalid_instruction",
        (577,),
    ),
    Quirk(
        "RDPMC is undefined",
        "RDPMC arrives as an invalid instruction",
        "#GP(0) for a counter that is not there, or at user level with CR4.PCE clear (SDM 2, RDPMC)",
        "`isa/x86/delivery.py`, `undefined_or`",
        "test_rdpmc_arrives_as_an_invalid_instruction",
        searched="RDPMC instruction unsupported UC_ERR_INSN_INVALID",
    ),
    Quirk(
        "no UMIP",
        "CR4.UMIP can be set and does nothing: SGDT and its like go on at user level",
        "#GP(0) at user level (SDM 2, SGDT)",
        "CPUID does not show UMIP; kernels are rewritten, and user code is shown the guest's own tables",
        "test_umip_is_accepted_and_does_nothing",
        searched="CR4 UMIP SGDT SIDT user mode",
    ),
    Quirk(
        "CR8 is always 0",
        "what is written to CR8 is lost",
        "CR8 is the task priority (SDM 3A, 10.8.6)",
        "the virtual CPU keeps its own; in a reference run nothing, since no kernel here uses CR8",
        "test_cr8_forgets_what_is_written",
        (1330, 2014),
    ),
    Quirk(
        "any MSR is there",
        "RDMSR of a register that is not there gives 0, WRMSR to it is lost",
        "#GP(0) (SDM 2, RDMSR)",
        "the virtual CPU raises it; in a reference run nothing: kernels ask CPUID before",
        "test_an_msr_that_is_not_there_reads_as_zero",
        searched="RDMSR WRMSR nonexistent MSR no #GP",
    ),
    Quirk(
        "control registers take anything",
        "values with reserved bits, and CR0 without PE or PG in 64-bit mode, are accepted",
        "#GP(0) (SDM 3A, 2.5)",
        "the virtual CPU raises it; in a reference run nothing: no kernel tries",
        "test_cr0_accepts_what_64_bit_mode_forbids",
        searched="reserved bits control register CR0 CR4 no #GP",
    ),
    Quirk(
        "a call gate without a task-state segment aborts",
        "a far call to a lower level by a call gate, while TR holds no present segment, aborts the host's process",
        "#TS (SDM 3A, 6.14.4)",
        "user code is shown no gate, a kernel no table (`paravirt/modes/x86/descriptors.py`); a reference run as it is",
        "test_a_call_gate_without_a_task_state_segment_aborts_the_process",
        searched="call gate TSS abort qemu fatal invalid tss helper_lcall",
    ),
    Quirk(
        "stale code behind a mapping without execute right",
        "a store through a page entry without execute right is checked against translated code only when it fills the "
        "TLB, and only for the bytes of that one store: later stores leave stale code",
        "a processor sees stores to code through any mapping, at the latest at a serialising instruction",
        "code frames are never writable elsewhere at the same time (`paravirt/mmu/shadow.py`, user code included); in "
        "a reference run CPUID forgets all code (`native.py`)",
        "test_a_store_through_a_page_without_execute_right_leaves_stale_code",
        (2041, 2367),
    ),
    Quirk(
        "host stores leave stale code",
        "code that was executed and is then changed by the host executes as it was",
        "(a debugger's matter)",
        "callers say `code_changed` or `flush_code`",
        "test_a_host_store_to_executed_code_is_stale",
        (1148, 2271),
    ),
    Quirk(
        "fetch faults come early",
        "a block that reaches into a page that cannot be fetched faults before its first instruction, RIP at its start",
        "RIP is at the instruction whose bytes cannot be fetched, all before it are done",
        "the page is entered where its straight-line code arrives (`Hypervisor._entry_of`); the instructions before it "
        "are run when the page is there",
        "test_a_fetch_fault_on_the_second_page_of_a_block_is_raised_at_its_start",
        (2196,),
    ),
    Quirk(
        "fetches outside memory end the emulation",
        "a fetch from physical memory that is not there, or of a device, is an error and no exception",
        "the bus gives all ones, which is no instruction: #UD",
        "`engine.py` reports UNBACKED, whoever drives the CPU raises #UD",
        "test_a_fetch_outside_memory_ends_the_emulation",
        (371,),
    ),
    Quirk(
        "loads outside memory end the emulation",
        "a load from physical memory that is not there is an error and no exception",
        "the bus gives all ones",
        "`Machine` maps all that is not memory to its bus",
        "test_a_load_outside_memory_ends_the_emulation",
        (371,),
    ),
    Quirk(
        "the level does not follow the segment",
        "writing CS and SS through the public interface changes the selectors only; the code runs at the level it had",
        "the privilege level is that of CS",
        "`state.py` changes the level in place (`UnicornRegisters.privilege`)",
        "test_writing_cs_does_not_change_the_privilege_level",
        (1378, 1273),
    ),
    Quirk(
        "RDTSC and RDTSCP show the host's time",
        "the time-stamp counter is the host's",
        "(not repeatable, so no two runs are equal)",
        "`engine.py` reports RDTSC, by a hook that the Python binding refuses, and makes RDTSCP undefined, as CPUID "
        "says it is",
        "test_rdtsc_shows_the_hosts_time",
        (1902, 2065, 2066),
    ),
    Quirk(
        "protection keys without CPUID",
        "CR4.PKE can be set and the page walker honours protection keys, although CPUID does not show them",
        "without PKU setting CR4.PKE is #GP, and the bits of page entries are ignored",
        "welcome: `guard_code` makes executed copies unreadable, if a probe at start-up finds that it works",
        "test_protection_keys_work_though_cpuid_has_none",
        searched="protection keys PKU CR4.PKE CPUID",
    ),
    Quirk(
        "far transfers mark nothing",
        "far RET and IRET do not set the accessed bits of the descriptors they load",
        "the bit is set in the table (SDM 3A, 3.4.5.1)",
        "a deprivileged kernel's far transfers are done by `isa/x86/transfer.py`, which sets them",
        "test_far_transfers_do_not_set_accessed_bits",
        searched="far return iret descriptor accessed bit segment load",
    ),
    Quirk(
        "no alignment checks",
        "neither EFLAGS.AC nor MOVAPS makes a misaligned access fault",
        "#AC(0) at user level, #GP(0) for MOVAPS (SDM 3A, 6.15)",
        "not mended: reference and deprivileged guest see the same",
        "test_misaligned_accesses_do_not_fault",
        (1783,),
    ),
    Quirk(
        "no data breakpoints",
        "a watchpoint in DR0..DR3 that is armed for stores never fires",
        "#DB behind the store (SDM 3B, 18.2)",
        "`data_breakpoints.py`, for Xen guests; elsewhere reference and deprivileged guest see the same",
        "test_a_data_watchpoint_never_fires",
        searched="hardware breakpoint watchpoint DR0 DR7 debug registers",
    ),
)
"""Every departure that this project knows of and a test can show."""
