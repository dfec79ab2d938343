/* AArch64's part of the user programs: which instructions are privileged, and how code is written. */
#define USER_PRIVILEGED_KIND FAULT_UNDEFINED
#define USER_BREAKPOINT_KIND FAULT_BREAKPOINT
#define USER_NO_EXECUTE 1
#define PRIVILEGED(X) \
	X(do_read_sctlr) X(do_write_sctlr) X(do_read_midr) X(do_write_ttbr0) X(do_write_ttbr1) X(do_write_vbar) \
	X(do_read_esr) X(do_read_elr) X(do_read_sp_el0) X(do_read_tpidr) X(do_write_thread) X(do_daifset) X(do_daifclr) \
	X(do_read_daif) X(do_spsel) X(do_tlbi) X(do_at) X(do_ic) X(do_dc) X(do_eret) X(do_hvc) X(do_smc) X(do_counter)
