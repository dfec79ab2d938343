/* MIPS32's part of the user programs: which instructions are privileged. */
#define USER_PRIVILEGED_KIND FAULT_PRIVILEGED
#define USER_BREAKPOINT_KIND FAULT_BREAKPOINT
#define USER_NO_EXECUTE 0
#define PRIVILEGED(X) \
	X(do_read_status) X(do_write_status) X(do_read_count) X(do_read_prid) X(do_write_compare) X(do_di) X(do_ei) \
	X(do_tlbr) X(do_tlbwi) X(do_tlbwr) X(do_tlbp) X(do_eret) X(do_wait) X(do_cache) X(do_rdpgpr) X(do_wrpgpr)
