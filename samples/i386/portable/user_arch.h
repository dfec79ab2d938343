/* i386's part of the user programs: which instructions are privileged, and how code is written. */
#define USER_PRIVILEGED_KIND FAULT_PRIVILEGED
#define USER_BREAKPOINT_KIND FAULT_BREAKPOINT
#define USER_NO_EXECUTE 1
#define PRIVILEGED(X) \
	X(do_inb) X(do_outb) X(do_insb) X(do_outsb) X(do_cli) X(do_sti) X(do_hlt) X(do_read_cr0) X(do_write_cr3) \
	X(do_read_dr7) X(do_rdmsr) X(do_wrmsr) X(do_lgdt) X(do_lidt) X(do_lldt) X(do_ltr) X(do_lmsw) X(do_clts) \
	X(do_invlpg) X(do_wbinvd) X(do_sysexit) X(do_rdpmc) X(do_kernel_ds) X(do_kernel_pop) X(do_int) X(do_far_jump)
