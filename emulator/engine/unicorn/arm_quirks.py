"""Where Unicorn 2.1.4 departs from ARMv7-A, and where each departure is mended.

Room: `emulator/engine/unicorn`, as data. Every row names the test (in `tests/emulator/engine/test_arm_quirks.py`) that
shows the raw misbehaviour and fails when upstream mends it. What single instructions of the sensitive-instruction table
do otherwise than the manual is in `emulator.isa.arm.proof_cases.DEPARTURES`.
"""

from emulator.engine.unicorn.quirks import Quirk

ARM_QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "WFE and YIELD arrive as undefined instructions",
        "the hook of undefined instructions is called, PC behind the instruction, no syndrome set",
        "they are hints, which may do nothing (ARM A8.8.424, A8.8.426)",
        "`arm.py` goes on when there is no syndrome, which it clears at every event",
        "test_wfe_and_yield_arrive_without_a_syndrome_and_behind_the_instruction",
        (520,),
    ),
    Quirk(
        "SMC leaves PC behind the instruction",
        "a monitor call arrives as an exception of its own, PC behind it",
        "without a monitor it is undefined, PC at the instruction (ARM B9.3.14)",
        "`arm.py` reports it as undefined and moves PC back",
        "test_a_monitor_call_arrives_behind_the_instruction",
        searched="ARM SMC HVC instruction exception PC",
    ),
    Quirk(
        "translations are cached in pieces of 1 KiB",
        "the smallest page of the oldest processors: a page of 4 KiB is entered four times, and its flush flushes all",
        "(no matter of the architecture)",
        "`core.py` asks for 4 KiB when the engine is opened",
        "test_without_a_page_size_the_flush_of_one_page_flushes_another",
        searched="ARM page size TARGET_PAGE_BITS 1KB uc_ctl_set_page_size tlb flush",
    ),
    Quirk(
        "no alignment checks of plain loads",
        "with SCTLR.A set a load that is not aligned completes",
        "an alignment fault (ARM A3.2.1)",
        "not mended: reference and deprivileged guest see the same",
        "test_a_misaligned_load_completes_though_sctlr_forbids_it",
        (1535, 1786),
    ),
    Quirk(
        "the domain is looked at first",
        "where the domain has no access, a missing second-level entry or access flag shows as a domain fault",
        "translation and access-flag faults come before domain faults (ARM B3.12)",
        "the hypervisor's walk follows the manual; the reference departs",
        "test_the_domain_is_looked_at_before_the_second_level",
        searched="ARM short descriptor domain fault priority before translation fault DACR",
    ),
    Quirk(
        "code written through another mapping is kept",
        "a store to a page that is mapped twice does not reach what was made of the code at the other address",
        "instruction-cache maintenance makes the store visible (ARM A3.5.4)",
        "the hypervisor forgets code of frames that are written; the reference sees all stores (`see_all_stores`)",
        "test_code_written_through_another_mapping_is_kept_in_spite_of_maintenance",
        (2041, 2367),
    ),
    Quirk(
        "data processing into PC returns from no exception",
        "ANDS, EORS, RSBS, ADDS, ADCS, SBCS, RSCS, ORRS, BICS and MVNS with PC as destination only jump",
        "CPSR is restored from SPSR (ARM B9.3.20)",
        "the hypervisor does them; the reference departs",
        "test_adds_into_pc_keeps_the_mode",
        searched="ARM subs pc lr movs pc exception return SPSR CPSR not restored",
    ),
    Quirk(
        "the generic timer is the host's",
        "CNTVCT counts host time, and no timer ever interrupts",
        "(not repeatable, so no two runs are equal)",
        "deprivileged it traps; the reference has it withheld (`arm_timer.py`)",
        "test_the_counter_moves_while_no_instruction_runs",
        searched="ARM generic timer CNTVCT CNTV_CTL interrupt timer registers",
    ),
    Quirk(
        "floating point never traps by CPACR",
        "with FPEXC.EN set VFP and Advanced SIMD run whatever CPACR says",
        "they are undefined where CPACR.cp10 gives no access (ARM B4.1.40)",
        "`floating_access.py` puts a function of its own in the place of the one that says so",
        "test_floating_point_runs_whatever_cpacr_says",
        searched="CPACR_EL1 FPEN CPACR cp10 floating point access not trapped fp_exception_el",
    ),
)
"""Every departure that this project knows of and a test can show."""
