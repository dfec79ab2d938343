"""Where Unicorn 2.1.4 departs from AArch64, and where each departure is mended.

Room: `emulator/engine/unicorn`, as data. Every row names the test (in `tests/emulator/engine/test_aarch64_quirks.py`)
that shows the raw misbehaviour and fails when upstream mends it. What single instructions of the sensitive-instruction
table do otherwise than the manual is in `emulator.isa.aarch64.proof_cases.DEPARTURES`.
"""

from emulator.engine.unicorn.quirks import Quirk

QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "EL1 counts as AArch32",
        "without SCR_EL3.RW addresses are translated by AArch32's tables, though the code is AArch64's",
        "a processor that starts at EL1 in AArch64 has the bit set",
        "`aarch64.py` sets it when the engine is opened",
        "test_without_scr_rw_translation_is_aarch32",
        (1126,),
    ),
    Quirk(
        "the level does not follow PSTATE",
        "writing PSTATE through the public interface changes the fields only; the code runs at the level it had, until "
        "any system register is written",
        "the exception level is that of PSTATE",
        "`aarch64_state.py` keeps the summary of the mode for each level and loads it with the level",
        "test_writing_pstate_does_not_change_the_level",
        (1843, 2333, 2386),
    ),
    Quirk(
        "ESR_EL1 and FAR_EL1 stay as they were",
        "an exception leaves ESR_EL1, FAR_EL1, ELR_EL1 and SPSR_EL1 alone",
        "taking an exception to EL1 writes them (D1.3)",
        "`aarch64.py` reads the syndrome and the address in place; whoever drives the CPU takes the exception",
        "test_an_exception_leaves_esr_and_far_alone",
        (1732,),
    ),
    Quirk(
        "a misaligned PC is executed",
        "a branch to an address that is no multiple of four executes what lies there",
        "a PC alignment fault (D1.3.5.5)",
        "`aarch64.py` reports the fault when the word there raises any exception; the hypervisor raises it where it "
        "sets PC itself",
        "test_a_misaligned_pc_is_executed",
        searched="aarch64 misaligned PC or SP alignment fault not raised",
    ),
    Quirk(
        "a misaligned SP is used",
        "SCTLR_EL1.SA and SA0 do nothing",
        "a load or store by an SP that is no multiple of 16 raises an SP alignment fault",
        "not mended: reference and deprivileged guest see the same",
        "test_a_misaligned_sp_is_used",
        searched="aarch64 misaligned PC or SP alignment fault not raised",
    ),
    Quirk(
        "SMC is behind itself",
        "SMC at EL1 exits with PC behind the instruction",
        "without a monitor it is undefined, PC at the instruction",
        "`aarch64.py` puts PC back and says undefined",
        "test_smc_exits_with_pc_behind_it",
        searched="ARM SMC HVC instruction exception PC",
    ),
    Quirk(
        "the counters show the host's time",
        "CNTVCT_EL0 and CNTPCT_EL0 at EL1 count the host's nanoseconds",
        "(not repeatable, so no two runs are equal)",
        "at EL0 they trap while CNTKCTL_EL1 is clear, and virtual time is given; the reference hooks MRS",
        "test_cntvct_counts_the_hosts_time",
        searched="ARM generic timer CNTVCT CNTV_CTL interrupt timer registers",
    ),
    Quirk(
        "the timer never fires",
        "CNTV_CTL_EL0 and CNTV_CVAL_EL0 keep what is written and raise no interrupt",
        "the virtual timer's interrupt is asserted while its condition is met",
        "the board has its own timer; its registers trap at EL0, and the reference hooks MRS and MSR",
        "test_the_virtual_timer_keeps_its_status_clear",
        searched="ARM generic timer CNTVCT CNTV_CTL interrupt timer registers",
    ),
    Quirk(
        "stores do not always reach translated code",
        "without a memory hook a store through one mapping leaves code translated from another one as it was",
        "after DC CVAU, IC IVAU and ISB the new code is executed, by whatever address (B2.4.4)",
        "`paravirt` never maps an executable frame writable at the same time and says which code changed",
        "test_host_stores_leave_stale_code",
        (2041, 2367),
    ),
    Quirk(
        "no watchpoints",
        "what is written to DBGWVR and DBGWCR is kept, and no access looks at it; breakpoints fire",
        "a watchpoint exception before the access (D2.9)",
        "a deprivileged guest's watched pages are not mapped (`debug.py`); the reference departs",
        "test_a_watchpoint_never_fires",
        searched="hardware breakpoint watchpoint debug registers not firing",
    ),
    Quirk(
        "floating point never traps",
        "instructions on V registers run whatever CPACR_EL1.FPEN says",
        "they trap to EL1 where FPEN says so (D19.2, CPACR_EL1)",
        "`floating_access.py` puts a function of its own in the place of the one that says so",
        "test_floating_point_runs_whatever_cpacr_says",
        searched="CPACR_EL1 FPEN CPACR cp10 floating point access not trapped fp_exception_el",
    ),
)
"""Every departure that this project knows of and a test can show."""
