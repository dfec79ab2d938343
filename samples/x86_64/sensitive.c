/* Instructions that are sensitive without being privileged. These checks are the negative
 * controls: left unvirtualised at CPL 3, each instruction fails its check here, before anything
 * depends on it. Interrupts stay masked in the PIC, and no exception is left by IRETQ. */
#include "kernel.h"

static u64 seen[6] VOLATILE_DATA;

#define READ_SELECTOR(reg) ({ u64 v_; asm volatile("mov %%" reg ", %0" : "=r"(v_)); v_ & 0xffff; })

static void check_mov_from_cs(void) { WANT(READ_SELECTOR("cs"), KERNEL_CS); }
static void check_mov_from_ss(void) { WANT(READ_SELECTOR("ss"), KERNEL_DS); }

static void check_cli_pushf(void)
{
	cli();
	WANT(read_flags() & FLAG_IF, 0);
}

static void check_sti_pushf(void)
{
	sti();
	u64 flags = read_flags();
	cli();
	WANT(flags & FLAG_IF, FLAG_IF);
	WANT(read_flags() & FLAG_IF, 0);
}

static NOINLINE void undefined(u64 unused)
{
	(void)unused;
	asm volatile("ud2");
}

/* The flags by an exception's frame: what they are, whatever PUSHF shows. Leaves IF clear. */
static u64 flags_in_frame(void)
{
	catch_fault(undefined, 0);
	return caught.rflags;
}

static void check_popf_sets_if(void)
{
	cli();
	write_flags(2 | FLAG_IF);
	WANT(flags_in_frame() & FLAG_IF, FLAG_IF);
	write_flags(2 | FLAG_IF);
	u64 flags = read_flags();
	cli();
	WANT(flags & FLAG_IF, FLAG_IF);
}

static void check_popf_clears_if(void)
{
	sti();
	write_flags(2);
	WANT(flags_in_frame() & FLAG_IF, 0);
	sti();
	write_flags(2);
	u64 flags = read_flags();
	cli();
	WANT(flags & FLAG_IF, 0);
}

/* At CPL 0 POPF also sets the I/O privilege level; the arithmetic flags come through as well. */
static void check_popf_sets_iopl(void)
{
	write_flags(0x3000 | 0x8d7);
	u64 flags = read_flags();
	write_flags(2);
	WANT(flags & 0x3ad7, 0x38d7);
	WANT(read_flags() & 0x3000, 0);
}

static void check_sgdt(void)
{
	struct table_register r = {0, 0};
	asm volatile("sgdt %0" : "=m"(r));
	WANT(r.base, gdt);
	WANT(r.limit, GDT_BYTES - 1);
}

static void check_sidt(void)
{
	struct table_register r = {0, 0};
	asm volatile("sidt %0" : "=m"(r));
	WANT(r.base, idt);
	WANT(r.limit, sizeof(idt) - 1);
}

static void check_str(void)
{
	u64 v = 0;
	asm volatile("str %w0" : "+r"(v));
	WANT(v, TSS_SELECTOR);
}

static void check_sldt(void)
{
	u64 v = 0;
	asm volatile("sldt %w0" : "+r"(v));
	WANT(v, LDT_SELECTOR);
	asm volatile("lldt %w0" : : "r"(0));
	asm volatile("sldt %w0" : "+r"(v));
	WANT(v, 0);
	asm volatile("lldt %w0" : : "r"(LDT_SELECTOR));
}

static void check_smsw(void)
{
	u64 v = 0;
	asm volatile("smsw %w0" : "+r"(v));
	WANT(v, CR0_VALUE & 0xffff);
	write_cr0(CR0_VALUE | CR0_TS | 4);
	asm volatile("smsw %w0" : "+r"(v));
	write_cr0(CR0_VALUE);
	WANT(v, (CR0_VALUE | CR0_TS | 4) & 0xffff);
}

static u64 access_rights(u64 selector)
{
	u64 rights = 0;
	bool valid;
	asm volatile("lar %2, %0" : "+r"(rights), "=@ccz"(valid) : "r"(selector));
	return valid ? rights & 0xffffff : 0;
}

static void check_lar(void)
{
	WANT(access_rights(KERNEL_CS) & 0xf0ff00, 0xa09b00);
	WANT(access_rights(KERNEL_DS) & 0xf0ff00, 0xc09300);
	WANT(access_rights(USER_CS) & 0xf0ff00, 0xa0fb00);
	WANT(access_rights(GDT_BYTES), 0);
}

static void check_lsl(void)
{
	u64 limit = 0;
	bool valid;
	asm volatile("lsl %2, %0" : "+r"(limit), "=@ccz"(valid) : "r"((u64)TSS_SELECTOR));
	WANT(valid, true);
	WANT(limit, sizeof(tss) - 1);
}

static void check_verr_verw(void)
{
	bool valid;
	asm volatile("verr %w1" : "=@ccz"(valid) : "r"(KERNEL_DS));
	WANT(valid, true);
	asm volatile("verw %w1" : "=@ccz"(valid) : "r"(KERNEL_DS));
	WANT(valid, true);
	asm volatile("verw %w1" : "=@ccz"(valid) : "r"(KERNEL_CS));
	WANT(valid, false);
}

static NOINLINE void load_segments(u64 unused)
{
	(void)unused;
	asm volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%ss" : : "r"(KERNEL_DS) : "memory");
	seen[0] = READ_SELECTOR("ds");
	seen[1] = READ_SELECTOR("ss");
	asm volatile("mov %0, %%ss" : : "r"(0) : "memory"); /* null, allowed at CPL 0 in 64-bit mode */
	seen[2] = READ_SELECTOR("ss");
	asm volatile("mov %0, %%ss; mov %1, %%ds; mov %1, %%es" : : "r"(KERNEL_DS), "r"(0) : "memory");
	seen[3] = READ_SELECTOR("es");
}

static void check_segment_loads(void)
{
	WANT(catch_fault(load_segments, 0), false);
	WANT(seen[0], KERNEL_DS);
	WANT(seen[1], KERNEL_DS);
	WANT(seen[2], 0);
	WANT(seen[3], 0);
}

static NOINLINE void far_return(u64 selector)
{
	asm volatile("pushq %0; pushq $1f; lretq; 1:" : : "r"(selector) : "memory");
	seen[0] = 1;
}

static void check_lretq(void)
{
	seen[0] = 0;
	WANT(catch_fault(far_return, KERNEL_CS), false);
	WANT(seen[0], 1);
	WANT(catch_fault(far_return, 0), true);
	WANT(caught.vector, 13);
	WANT(caught.error, 0);
	WANT(catch_fault(far_return, 0x1000), true);
	WANT(caught.vector, 13);
	WANT(caught.error, 0x1000);
}

static NOINLINE void iret_here(u64 flags)
{
	asm volatile("movq %%rsp, %%rcx; pushq %[ss]; pushq %%rcx; pushq %[flags]; pushq %[cs]; pushq $1f; iretq\n"
		     "1: ud2" /* its frame has the flags and the stack pointer */
		     :
		     : [flags] "r"(flags), [ss] "i"(KERNEL_DS), [cs] "i"(KERNEL_CS)
		     : "memory", "rcx");
}

/* The same with selectors as they are read, as kernels do that want to serialise. */
static NOINLINE void iret_to_own_selectors(u64 flags)
{
	asm volatile("movq %%rsp, %%rcx; mov %%ss, %%eax; pushq %%rax; pushq %%rcx; pushq %[flags]; mov %%cs, %%eax\n"
		     "pushq %%rax; pushq $1f; iretq\n"
		     "1: ud2"
		     :
		     : [flags] "r"(flags)
		     : "memory", "rax", "rcx");
}

static void expect_return(void (*run)(u64), u64 flags)
{
	WANT(catch_fault(run, flags | 2), true);
	WANT(caught.vector, 6);
	WANT(caught.cs, KERNEL_CS);
	WANT(caught.ss, KERNEL_DS);
	WANT(caught.rflags & (FLAG_IF | 0x8d5), flags);
}

static void check_iretq(void (*run)(u64))
{
	cli();
	expect_return(run, FLAG_IF | 0x8d5);
	expect_return(run, FLAG_IF);
	sti();
	expect_return(run, 0x855);
	sti();
	expect_return(run, 0);
}

static void check_iretq_kernel(void)
{
	check_iretq(iret_here);
	iret_broken = catch_fault(iret_here, 2) && caught.vector != 6;
}

static void check_iretq_own_selectors(void) { check_iretq(iret_to_own_selectors); }

static void user_breakpoint(struct frame *frame)
{
	seen[0] = frame->cs;
	seen[1] = frame->ss;
	seen[2] = frame->rax;
	seen[3] = frame->rsp;
	seen[4] = frame->rip;
	seen[5] = frame->rflags;
	catch_resume();
}

static NOINLINE void iret_to_user(u64 address)
{
	asm volatile("pushq %[ss]; pushq $0x12340; pushq $0x202; pushq %[cs]; pushq %[rip]; swapgs; iretq"
		     :
		     : [ss] "i"(USER_DS), [cs] "i"(USER_CS), [rip] "r"(address)
		     : "memory");
}

/* Enters a page of user code (mov %cs, %eax; int3) and looks at what the breakpoint reports. */
static void check_iretq_user(void)
{
	u64 root = root_new(), page = page_new();
	memcpy(direct(page), "\x8c\xc8\xcc", 3);
	*page_entry(root, 0x400000, PTE_P | PTE_W | PTE_U | PTE_A) = page | PTE_P | PTE_U | PTE_A;
	memset(seen, 0, sizeof(seen));
	trap_hook[3] = user_breakpoint;
	write_cr3(root);
	catch_fault(iret_to_user, 0x400000);
	cli();
	wrmsr(MSR_GS_BASE, (u64)&cpu); /* wherever SWAPGS was left */
	wrmsr(MSR_KERNEL_GS_BASE, 0);
	load_stack_segment(); /* the way in from user mode left it null */
	write_cr3(PHYSICAL(kernel_pml4));
	trap_hook[3] = NULL;
	root_drop(root);
	WANT(seen[0], USER_CS);
	WANT(seen[1], USER_DS);
	WANT(seen[2], USER_CS);
	WANT(seen[3], 0x12340);
	WANT(seen[4], 0x400003);
	WANT(seen[5] & (FLAG_IF | 0x3000), FLAG_IF);
	if (seen[0] != USER_CS)
		iret_broken = true;
}

static NOINLINE void iret_null_cs(u64 selector)
{
	asm volatile("movq %%rsp, %%rcx; pushq %[ss]; pushq %%rcx; pushq $2; pushq %[cs]; pushq $1f; iretq; 1:"
		     :
		     : [cs] "r"(selector), [ss] "i"(KERNEL_DS)
		     : "memory", "rcx");
}

static void check_iretq_selectors(void)
{
	WANT(catch_fault(iret_null_cs, 0), true);
	WANT(caught.vector, 13);
	WANT(caught.error, 0);
	WANT(catch_fault(iret_null_cs, KERNEL_DS), true); /* data is no code */
	WANT(caught.vector, 13);
	WANT(caught.error, KERNEL_DS);
}

static const struct check checks[] = {
	{"segments.mov-from-cs", check_mov_from_cs, 0, 0},
	{"segments.mov-from-ss", check_mov_from_ss, 0, 0},
	{"flags.pushf-after-cli", check_cli_pushf, 0, 0},
	{"flags.pushf-after-sti", check_sti_pushf, 0, 0},
	{"flags.popf-sets-if", check_popf_sets_if, 0, 0},
	{"flags.popf-clears-if", check_popf_clears_if, 0, 0},
	{"flags.popf-sets-iopl", check_popf_sets_iopl, 0, 0},
	{"tables.sgdt", check_sgdt, 0, 0},
	{"tables.sidt", check_sidt, 0, 0},
	{"tables.str", check_str, 0, 0},
	{"tables.sldt", check_sldt, 0, 0},
	{"tables.smsw", check_smsw, 0, 0},
	{"segments.lar", check_lar, 0, 0},
	{"segments.lsl", check_lsl, 0, 0},
	{"segments.verr-verw", check_verr_verw, 0, 0},
	{"segments.load", check_segment_loads, 0, 0},
	{"returns.lretq", check_lretq, 0, 0},
	{"returns.iretq-kernel", check_iretq_kernel, 0, 0},
	{"returns.iretq-own-selectors", check_iretq_own_selectors, 1, 0},
	{"returns.iretq-user", check_iretq_user, 1, 0},
	{"returns.iretq-selectors", check_iretq_selectors, 1, 0},
};

void check_sensitive(void)
{
	run_checks(checks, LENGTH(checks));
}
