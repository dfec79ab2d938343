/* What user mode must not do, what it sees of the kernel's tables, and how it comes back from
 * the kernel. */
#include "user.h"

#define DECLARE(name) void name(u64);
#define KERNEL_TEXT 0xffffffff81000000

DECLARE(do_inb) DECLARE(do_outb) DECLARE(do_insb) DECLARE(do_outsb) DECLARE(do_cli) DECLARE(do_sti) DECLARE(do_hlt)
DECLARE(do_read_cr0) DECLARE(do_write_cr3) DECLARE(do_read_dr7) DECLARE(do_rdmsr) DECLARE(do_wrmsr) DECLARE(do_lgdt)
DECLARE(do_lidt) DECLARE(do_lldt) DECLARE(do_ltr) DECLARE(do_lmsw) DECLARE(do_clts) DECLARE(do_invlpg)
DECLARE(do_wbinvd) DECLARE(do_swapgs) DECLARE(do_sysretq) DECLARE(do_rdpmc) DECLARE(do_xgetbv) DECLARE(do_int_33)
DECLARE(do_int_14) DECLARE(do_int_13) DECLARE(do_int_8) DECLARE(do_int_255) DECLARE(do_int_3) DECLARE(do_int_4)
DECLARE(do_ud2) DECLARE(do_read) DECLARE(do_write) DECLARE(do_jump) DECLARE(do_load_ss) DECLARE(do_load_ds)
DECLARE(do_rdtsc) DECLARE(do_divide) DECLARE(do_divide_at) DECLARE(do_lretq) DECLARE(do_lretq_at) DECLARE(do_iretq)
DECLARE(do_iretq_at) DECLARE(do_step) DECLARE(do_step_at) DECLARE(do_x87_divide) DECLARE(do_x87_divide_at)
u64 iret_in_user(u64 flags);

struct expected {
	const char *name;
	void (*run)(u64);
	u64 argument, vector, error, rip; /* rip 0: the function's first instruction */
};

static const struct expected faults[] = {
	{"user.in", do_inb, 0, 13, 0, 0},
	{"user.out", do_outb, 0, 13, 0, 0},
	{"user.ins", do_insb, HEAP, 13, 0, 0},
	{"user.outs", do_outsb, HEAP, 13, 0, 0},
	{"user.cli", do_cli, 0, 13, 0, 0},
	{"user.sti", do_sti, 0, 13, 0, 0},
	{"user.hlt", do_hlt, 0, 13, 0, 0},
	{"user.mov-from-cr0", do_read_cr0, 0, 13, 0, 0},
	{"user.mov-to-cr3", do_write_cr3, 0, 13, 0, 0},
	{"user.mov-from-dr7", do_read_dr7, 0, 13, 0, 0},
	{"user.rdmsr", do_rdmsr, 0, 13, 0, 0},
	{"user.wrmsr", do_wrmsr, 0, 13, 0, 0},
	{"user.lgdt", do_lgdt, HEAP, 13, 0, 0},
	{"user.lidt", do_lidt, HEAP, 13, 0, 0},
	{"user.lldt", do_lldt, 0, 13, 0, 0},
	{"user.ltr", do_ltr, 0, 13, 0, 0},
	{"user.lmsw", do_lmsw, 0, 13, 0, 0},
	{"user.clts", do_clts, 0, 13, 0, 0},
	{"user.invlpg", do_invlpg, HEAP, 13, 0, 0},
	{"user.wbinvd", do_wbinvd, 0, 13, 0, 0},
	{"user.swapgs", do_swapgs, 0, 13, 0, 0},
	{"user.sysretq", do_sysretq, 0, 13, 0, 0},
	{"user.rdpmc", do_rdpmc, 0, 13, 0, 0},
	{"user.xgetbv", do_xgetbv, 0, 6, 0, 0},
	{"user.int-to-privileged-gate", do_int_33, 0, 13, 33 * 8 + 2, 0},
	{"user.int-14", do_int_14, 0, 13, 14 * 8 + 2, 0},
	{"user.int-13", do_int_13, 0, 13, 13 * 8 + 2, 0},
	{"user.int-8", do_int_8, 0, 13, 8 * 8 + 2, 0},
	{"user.int-255", do_int_255, 0, 13, 255 * 8 + 2, 0},
	{"user.int3", do_int_3, 0, 3, 0, (u64)do_int_3 + 1},
	{"user.int-4", do_int_4, 0, 4, 0, (u64)do_int_4 + 2},
	{"user.undefined-opcode", do_ud2, 0, 6, 0, 0},
	{"user.divide", do_divide, 0, 0, 0, (u64)do_divide_at},
	{"user.x87-error", do_x87_divide, 0, 16, 0, (u64)do_x87_divide_at},
	{"user.single-step", do_step, 0, 1, 0, (u64)do_step_at},
	{"user.noncanonical-address", do_read, 0x8000000000000000, 13, 0, 0},
	{"user.stack-from-kernel-selector", do_load_ss, 0x18, 13, 0x18, 0},
	{"user.stack-from-null-selector", do_load_ss, 0, 13, 0, 0},
	{"user.data-from-kernel-selector", do_load_ds, 0x18, 13, 0x18, 0},
	{"user.data-beyond-table", do_load_ds, 0x1003, 13, 0x1000, 0},
	{"user.lretq-to-kernel", do_lretq, 0x10, 13, 0x10, (u64)do_lretq_at},
	{"user.iretq-to-kernel", do_iretq, 0x10, 13, 0x10, (u64)do_iretq_at},
	{"user.iretq-to-null", do_iretq, 0, 13, 0, (u64)do_iretq_at},
};

static const struct { const char *name; void (*run)(u64); u64 address, error; } page_faults[] = {
	{"user.read-absent-page", do_read, 0x50000008, 4},
	{"user.write-absent-page", do_write, 0x50000010, 6},
	{"user.execute-absent-page", do_jump, 0x50000020, 0x14},
	{"user.write-read-only-page", do_write, USER_CODE + 8, 7},
	{"user.execute-no-execute-page", do_jump, HEAP + 0x40, 0x15},
	{"user.read-kernel-page", do_read, KERNEL_TEXT + 8, 5},
	{"user.write-kernel-page", do_write, KERNEL_TEXT + 16, 7},
	{"user.execute-kernel-page", do_jump, KERNEL_TEXT + 32, 0x15},
};

static void check_fault(struct check *check, const struct expected *e)
{
	struct fault fault = {0, 0, 0, 0, 0};
	WANT(catch_fault(e->run, e->argument, &fault), 1);
	WANT(fault.vector, e->vector);
	u64 error = fault.error;
	if (e->error > 0 && (e->error & 7) == 2 && error == 2 * e->error - 2)
		error = e->error; /* QEMU's doubled index, see WANT_GATE_ERROR */
	WANT(error, e->error);
	WANT(fault.rip, e->rip ? e->rip : (u64)e->run);
	WANT(fault.cs, 0x33);
}

static void check_page_fault(struct check *check, void (*run)(u64), u64 address, u64 error)
{
	struct fault fault = {0, 0, 0, 0, 0};
	WANT(catch_fault(run, address, &fault), 1);
	WANT(fault.vector, 14);
	WANT(fault.error, error);
	WANT(fault.cr2, address);
	WANT(fault.rip, run == do_jump ? address : (u64)run);
}

static inline u64 flags_after_popf(u64 value)
{
	u64 after;
	asm volatile("pushq %1; popfq; pushfq; popq %0; pushq $0x202; popfq" : "=r"(after) : "r"(value) : "memory", "cc");
	return after;
}

static void check_popf(struct check *check)
{
	WANT(flags_after_popf(0x2) & 0x3200, 0x200); /* IF stays */
	WANT(flags_after_popf(0x3202) & 0x3200, 0x200); /* and IOPL */
	WANT(flags_after_popf(0x8d7) & 0xcd5, 0x8d5);
	WANT(flags_after_popf(0x402) & 0x400, 0x400);
	WANT(iret_in_user(2) & 0x3200, 0x200); /* IRETQ within user mode changes as little */
	WANT(iret_in_user(0x32d7) & 0x32d5, 0x2d5);
}

static void check_tables(struct check *check)
{
	struct { u16 limit; u64 base; } __attribute__((packed)) r = {0, 0};
	u64 v = 0;
	asm volatile("sgdt %0" : "=m"(r));
	WANT(r.base, SYS(SYS_QUERY, QUERY_GDT));
	WANT(r.limit, 0x6f);
	asm volatile("sidt %0" : "=m"(r));
	WANT(r.base, SYS(SYS_QUERY, QUERY_IDT));
	WANT(r.limit, 0xfff);
	asm volatile("str %w0" : "+r"(v));
	WANT(v, 0x40);
	asm volatile("sldt %w0" : "+r"(v));
	WANT(v, 0x50);
}

static void check_smsw(struct check *check)
{
	u64 v = 0;
	asm volatile("smsw %w0" : "+r"(v));
	WANT(v, SYS(SYS_QUERY, QUERY_CR0) & 0xffff);
	WANT(v & ~8ul, 0x33);
}

static void check_segments(struct check *check)
{
	u64 cs, ss, rights = 0;
	bool readable, valid;
	asm volatile("mov %%cs, %0; mov %%ss, %1" : "=r"(cs), "=r"(ss));
	WANT(cs & 0xffff, 0x33);
	WANT(ss & 0xffff, 0x2b);
	asm volatile("lar %2, %0" : "+r"(rights), "=@ccz"(valid) : "r"(0x33ul));
	WANT(valid, 1);
	WANT(rights & 0xf0ff00, 0xa0fb00);
	asm volatile("lar %2, %0" : "+r"(rights), "=@ccz"(valid) : "r"(0x10ul));
	WANT(valid, 0); /* more privileged: not visible */
	asm volatile("verr %w1" : "=@ccz"(readable) : "r"(0x18));
	WANT(readable, 0);
	asm volatile("verr %w1" : "=@ccz"(readable) : "r"(0x2b));
	WANT(readable, 1);
}

/* SYSCALL leaves RIP in RCX and RFLAGS in R11, and SYSRETQ brings both back; the kernel runs with
 * interrupts off. */
static void check_syscall(struct check *check)
{
	u64 rax = SYS_QUERY, rcx, flags = QUERY_RETURN_RIP, behind;
	asm volatile("leaq 1f(%%rip), %[behind]\n"
		     "pushq $0xad7; popfq\n"
		     "syscall\n"
		     "1: pushfq; popq %%rdi; cld"
		     : "+a"(rax), "=&c"(rcx), [behind] "=&r"(behind), "+D"(flags)
		     :
		     : "r11", "memory", "cc");
	WANT(rax, behind);
	WANT(rcx, behind);
	WANT(flags & 0xad7, 0xad7);
	WANT(SYS(SYS_QUERY, QUERY_ENTRY_FLAGS) & 0x700, 0);
	WANT(SYS(SYS_QUERY, QUERY_RETURN_FLAGS) & 0x200, 0x200);
	WANT(call_by_int(SYS_QUERY, QUERY_ENTRY_FLAGS, 0) & 0x300, 0);
	WANT(SYS(SYS_CALLER_CS), 0x33);
	WANT(call_by_int(SYS_CALLER_CS, 0, 0), 0x33);
}

static void check_fs(struct check *check)
{
	u64 v;
	u64 words[2] = {0x1234, 0x5678};
	SYS(SYS_SET_FS, words);
	SYS(SYS_YIELD);
	asm volatile("movq %%fs:8, %0" : "=r"(v) : "m"(words));
	WANT(v, 0x5678);
	SYS(SYS_SET_FS, 0);
}

static void write_port(u64 port)
{
	asm volatile("outb %%al, %%dx" : : "a"(0x6b), "d"(port));
}

/* The TSS's I/O map lets user mode at one port, and at no other. */
static void check_io_map(struct check *check)
{
	struct fault fault;
	SYS(SYS_IO_MAP, 1);
	WANT(catch_fault(write_port, 0x3ff, &fault), 0);
	WANT(SYS(SYS_PORT_READ), 0x6b);
	WANT(catch_fault(write_port, 0x3f8, &fault), 1);
	WANT(fault.vector, 13);
	SYS(SYS_IO_MAP, 0);
	WANT(catch_fault(write_port, 0x3ff, &fault), 1);
}

/* With IOPL 3 user mode may touch ports and its interrupt flag. */
static void check_iopl(struct check *check)
{
	struct fault fault;
	u64 flags;
	SYS(SYS_SET_IOPL, 3);
	asm volatile("outb %%al, %%dx; cli; pushfq; popq %0; sti" : "=r"(flags) : "a"(0x7c), "d"(0x3ff) : "memory");
	SYS(SYS_SET_IOPL, 0);
	WANT(flags & 0x3200, 0x3000);
	WANT(SYS(SYS_PORT_READ), 0x7c);
	WANT(catch_fault(do_cli, 0, &fault), 1);
}

static void check_time_stamp_disable(struct check *check)
{
	struct fault fault;
	u32 a = 1, b, c, d;
	asm volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d) : "c"(0));
	if (!(d & 0x10))
		return; /* no time stamp counter to disable */
	SYS(SYS_TIME_STAMP_DISABLE, 1);
	WANT(catch_fault(do_rdtsc, 0, &fault), 1);
	WANT(fault.vector, 13);
	WANT(fault.error, 0);
	SYS(SYS_TIME_STAMP_DISABLE, 0);
	WANT(catch_fault(do_rdtsc, 0, &fault), 0);
}

u64 run_faults(void)
{
	*(volatile u64 *)HEAP = 0; /* a page to point at */
	for (u64 i = 0; i < LENGTH(faults); i++)
		CHECK(faults[i].name, check_fault(check, &faults[i]));
	for (u64 i = 0; i < LENGTH(page_faults); i++)
		CHECK(page_faults[i].name,
		      check_page_fault(check, page_faults[i].run, page_faults[i].address, page_faults[i].error));
	CHECK("user.popf-keeps-interrupt-flag", check_popf(check));
	CHECK("user.descriptor-tables", check_tables(check));
	CHECK("user.smsw", check_smsw(check));
	CHECK("user.segments", check_segments(check));
	CHECK("user.syscall-registers", check_syscall(check));
	CHECK("user.fs-base", check_fs(check));
	CHECK("user.io-permission-map", check_io_map(check));
	CHECK("user.io-privilege-level", check_iopl(check));
	CHECK("user.time-stamp-disable", check_time_stamp_disable(check));
	return 0;
}
