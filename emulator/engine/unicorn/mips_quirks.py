"""Where Unicorn 2.1.4 departs from MIPS32, and where each departure is mended.

Room: `emulator/engine/unicorn`, as data, in the form of `quirks`. The tests are in
`tests/emulator/engine/test_mips_quirks.py`: each shows the raw misbehaviour and fails when upstream mends it. What
single instructions do otherwise than the manual says is in `emulator.isa.mips.proof_cases.DEPARTURES`.
"""

from emulator.engine.unicorn.quirks import Quirk

MIPS_QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "MIPS: PC of an exception is stale",
        "in a hook of exceptions PC is that of an earlier instruction, but for SYSCALL",
        "EPC is the instruction's address, or its branch's",
        "`mips.py` puts a function into `stop_interrupt`, which MIPS leaves empty: exceptions then reach the hook of "
        "invalid instructions, with the right PC",
        "test_pc_of_a_break_is_stale_in_a_hook_of_exceptions",
        (866, 1027),
    ),
    Quirk(
        "MIPS: straight code kills the process",
        "376 instructions without a branch overrun a table of the translator: SIGSEGV",
        "code is as long as it likes",
        "`mips_blocks.py` lowers the number of instructions that the translator is allowed (`limit_blocks`)",
        "test_376_instructions_without_a_branch_kill_the_process",
        (2240,),
    ),
    Quirk(
        "MIPS: a miss in a delay slot leaks its branch",
        "after a hook has answered a TLB miss in a delay slot, the branch counts as under way for ever",
        "a branch is over with its delay slot",
        "the native fill (`mips_native.py`) takes the branch's flags away",
        "test_a_filled_delay_slot_leaves_its_branch_behind",
        (2272, 2347),
    ),
    Quirk(
        "MIPS: LL asks the processor's own TLB",
        "LL looks its address up in the processor's segments even where a hook translates",
        "LL is a load like any other",
        "`use_views` makes all segments unmapped (SegCtl0 to SegCtl2)",
        "test_ll_in_a_mapped_segment_fails_though_a_hook_translates",
        (2345, 2346),
    ),
    Quirk(
        "MIPS: a miss of the processor's TLB is an error of the run",
        "after a TLB exception at full privilege the run ends with UC_ERR_READ_UNMAPPED, whatever ends it, and however "
        "much later",
        "(an engine's own affair)",
        "`mips.py` clears the error when the exception arrives",
        "test_a_run_ends_with_the_error_of_a_tlb_exception_long_ago",
        searched="UC_ERR_READ_UNMAPPED invalid_error remains set after TLB exception",
    ),
    Quirk(
        "MIPS: the end of a run looks up a page",
        "when emulation ends, the page before `until` is translated once more",
        "(an engine's own affair)",
        "`mips.py` refuses that lookup without asking anyone",
        "test_the_page_of_until_is_looked_up_at_the_end",
        (2376,),
    ),
    Quirk(
        "MIPS: EBase numbers the processor 3FFH",
        "EBase.CPUNum, and so RDHWR $0, is 3FFH after a reset",
        "the only processor is number 0",
        "`mips_confirm.py` writes EBase when the engine opens",
        "test_the_processor_is_number_3ff",
        searched="MIPS EBase CPUNum wrong reset value; CP0 EBase",
    ),
)
"""Every departure that this project knows of and a test can show."""
