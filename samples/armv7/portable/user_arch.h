/* ARMv7's part of the user programs: which instructions are privileged, and how code is written. */
#define USER_PRIVILEGED_KIND FAULT_UNDEFINED
#define USER_BREAKPOINT_KIND FAULT_BREAKPOINT
#define USER_NO_EXECUTE 1
#define PRIVILEGED(X) \
	X(do_read_sctlr) X(do_write_sctlr) X(do_read_midr) X(do_write_ttbr0) X(do_write_dacr) X(do_write_vbar) \
	X(do_read_dfsr) X(do_tlbiall) X(do_tlbimva) X(do_iciallu) X(do_dccimvac) X(do_read_tpidrprw) \
	X(do_write_tpidruro) X(do_write_contextidr) X(do_read_fpexc) X(do_write_fpexc) X(do_hvc) X(do_smc)
