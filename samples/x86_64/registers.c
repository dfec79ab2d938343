/* Control, debug and model-specific registers, descriptor tables, CPUID: what is loaded reads
 * back, and what it selects is in force. */
#include "kernel.h"


static void check_control(void)
{
	WANT(read_cr0(), CR0_VALUE);
	WANT(read_cr4(), CR4_VALUE);
	WANT(read_cr3(), PHYSICAL(kernel_pml4));
	write_cr2(0x123456789abcd000);
	WANT(read_cr2(), 0x123456789abcd000);
	write_cr2(0);
	WANT(read_cr2(), 0);
	write_cr0(CR0_VALUE | CR0_TS);
	WANT(read_cr0(), CR0_VALUE | CR0_TS);
	clts();
	WANT(read_cr0(), CR0_VALUE);
	asm volatile("lmsw %w0" : : "r"((CR0_VALUE & 0xffff) | CR0_TS));
	WANT(read_cr0(), CR0_VALUE | CR0_TS);
	write_cr0(CR0_VALUE);
	write_cr3(PHYSICAL(kernel_pml4) | 0x18); /* PWT, PCD */
	WANT(read_cr3(), PHYSICAL(kernel_pml4) | 0x18);
	write_cr3(PHYSICAL(kernel_pml4));
}

static void check_task_priority(void)
{
	write_cr8(0); /* Unicorn has no local APIC to keep another value: see the manifest */
	WANT(read_cr8(), 0);
}

static void check_debug(void)
{
	write_dr0(0xffffffff81234567);
	write_dr1(0x1111);
	write_dr2(0x2222222222);
	write_dr3(0xffff888000003333);
	WANT(read_dr0(), 0xffffffff81234567);
	WANT(read_dr1(), 0x1111);
	WANT(read_dr2(), 0x2222222222);
	WANT(read_dr3(), 0xffff888000003333);
	write_dr7(0x400);
	WANT(read_dr7(), 0x400);
	write_dr7(0xd0d0402); /* breakpoint 0: writes to an address never written */
	WANT(read_dr7(), 0xd0d0402);
	write_dr7(0x400);
	write_dr6(0xffff0ff0);
	WANT(read_dr6(), 0xffff0ff0);
	write_dr0(0);
	write_dr1(0);
	write_dr2(0);
	write_dr3(0);
}

static void check_model_specific(void)
{
	WANT(rdmsr(MSR_EFER), 0xd01); /* NXE LMA LME SCE */
	WANT(rdmsr(MSR_STAR), (u64)USER32_CS << 48 | (u64)KERNEL_CS << 32);
	WANT(rdmsr(MSR_LSTAR), syscall_entry);
	WANT(rdmsr(MSR_SFMASK), 0x47700);
	wrmsr(MSR_CSTAR, 0xffffffff81555555);
	WANT(rdmsr(MSR_CSTAR), 0xffffffff81555555);
	wrmsr(MSR_CSTAR, 0);
	wrmsr(MSR_EFER, 0xd00);
	WANT(rdmsr(MSR_EFER), 0xd00);
	wrmsr(MSR_EFER, 0xd01);
}

static NOINLINE void syscall_disabled(u64 unused)
{
	(void)unused;
	asm volatile("syscall" : : : "rcx", "r11", "memory");
}

static void check_syscall_enable(void)
{
	wrmsr(MSR_EFER, 0xd00);
	WANT(catch_fault(syscall_disabled, 0), true);
	WANT(caught.vector, 6);
	wrmsr(MSR_EFER, 0xd01);
}

static void check_bases(void)
{
	u64 v;
	static const u64 words[4] = {11, 22, 33, 44};
	wrmsr(MSR_FS_BASE, (u64)words);
	asm volatile("movq %%fs:8, %0" : "=r"(v));
	WANT(v, 22);
	WANT(rdmsr(MSR_FS_BASE), words);
	wrmsr(MSR_FS_BASE, (u64)(words + 2));
	asm volatile("movq %%fs:8, %0" : "=r"(v));
	WANT(v, 44);
	wrmsr(MSR_FS_BASE, 0);
	asm volatile("movq %%gs:0, %0" : "=r"(v));
	WANT(v, cpu.kernel_stack);
}

static void check_swapgs(void)
{
	u64 v;
	static const u64 words[2] = {55, 66};
	wrmsr(MSR_KERNEL_GS_BASE, (u64)words);
	asm volatile("swapgs; movq %%gs:8, %0" : "=r"(v) : : "memory");
	WANT(v, 66);
	WANT(rdmsr(MSR_GS_BASE), words);
	WANT(rdmsr(MSR_KERNEL_GS_BASE), &cpu);
	asm volatile("swapgs; movq %%gs:0, %0" : "=r"(v) : : "memory");
	WANT(v, cpu.kernel_stack);
	WANT(rdmsr(MSR_GS_BASE), &cpu);
	wrmsr(MSR_KERNEL_GS_BASE, 0);
}

/* A selector of the LDT brings its descriptor's base into FS. */
static void check_local_table(void)
{
	u64 root = root_new(), page = page_new(), v = 0;
	((u64 *)direct(page))[3] = 0xfeed;
	*page_entry(root, 0x500000, PTE_P | PTE_W | PTE_U | PTE_A) = page | PTE_P | PTE_W | PTE_NX;
	write_cr3(root);
	asm volatile("mov %0, %%fs" : : "r"(7));
	WANT(rdmsr(MSR_FS_BASE), 0x500000);
	asm volatile("movq %%fs:24, %0" : "=r"(v));
	WANT(v, 0xfeed);
	asm volatile("mov %%fs, %0" : "=r"(v));
	WANT(v & 0xffff, 7);
	asm volatile("mov %0, %%fs" : : "r"(0));
	wrmsr(MSR_FS_BASE, 0);
	write_cr3(PHYSICAL(kernel_pml4));
	root_drop(root);
}

static NOINLINE void load_ds(u64 selector) { asm volatile("mov %w0, %%ds" : : "r"(selector)); }

/* LGDT of a copy with one descriptor more: its limit and its contents are in force at once. */
static void check_load_gdt(void)
{
	u64 page = page_new(), *copy = direct(page);
	memcpy(copy, gdt, sizeof(gdt));
	copy[GDT_BYTES / 8] = gdt[KERNEL_DS / 8];
	struct table_register r = {GDT_BYTES + 7, (u64)copy};
	WANT(catch_fault(load_ds, GDT_BYTES), true);
	WANT(caught.error, GDT_BYTES);
	asm volatile("lgdt %0" : : "m"(r));
	r = (struct table_register){0, 0};
	asm volatile("sgdt %0" : "=m"(r));
	WANT(r.base, copy);
	WANT(r.limit, GDT_BYTES + 7);
	WANT(catch_fault(load_ds, GDT_BYTES), false);
	copy[GDT_BYTES / 8] = gdt[ABSENT_SELECTOR / 8]; /* the table is memory: no LGDT needed */
	WANT(catch_fault(load_ds, GDT_BYTES), true);
	WANT(caught.vector, 11);
	r = (struct table_register){sizeof(gdt) - 1, (u64)gdt};
	asm volatile("lgdt %0" : : "m"(r));
	load_ds(0);
	page_drop(page);
}

static NOINLINE void interrupt_0x51(u64 unused)
{
	(void)unused;
	asm volatile("int $0x51");
}

/* LIDT of a shorter copy: a vector beyond its limit is #GP with the IDT bit. */
static void check_load_idt(void)
{
	u64 page = page_new();
	struct table_register r = {0x51 * 16 - 1, (u64)direct(page)};
	memcpy(direct(page), idt, 4096);
	asm volatile("lidt %0" : : "m"(r));
	bool faulted = catch_fault(interrupt_0x51, 0);
	r = (struct table_register){0, 0};
	asm volatile("sidt %0" : "=m"(r));
	WANT(r.base, direct(page));
	WANT(r.limit, 0x51 * 16 - 1);
	r = (struct table_register){sizeof(idt) - 1, (u64)idt};
	asm volatile("lidt %0" : : "m"(r));
	WANT(faulted, true);
	WANT(caught.vector, 13);
	WANT_GATE_ERROR(caught.error, 0x51);
	page_drop(page);
}

/* LTR makes the descriptor busy, and refuses a busy one. */
static NOINLINE void load_task(u64 selector) { asm volatile("ltr %w0" : : "r"(selector)); }
static void check_load_task(void)
{
	WANT(gdt[TSS_SELECTOR / 8] >> 40 & 0xf, 0xb);
	WANT(catch_fault(load_task, TSS_SELECTOR), true);
	WANT(caught.vector, 13);
	WANT(caught.error, TSS_SELECTOR);
	reload_tss();
	WANT(gdt[TSS_SELECTOR / 8] >> 40 & 0xf, 0xb);
}

static void check_cpuid(void)
{
	u32 r[4];
	cpuid(0, r);
	WANT(r[0] >= 1, true);
	for (u32 i = 1; i < 4; i++)
		for (u32 shift = 0; shift < 32; shift += 8)
			WANT((r[i] >> shift & 0xff) >= 0x20 && (r[i] >> shift & 0xff) < 0x7f, true); /* the vendor's name */
	cpuid(1, r);
	WANT(r[3] & 0x07002161, 0x07002161); /* FPU MSR PAE CX8 PGE FXSR SSE SSE2 */
	cpuid(0x80000000, r);
	WANT(r[0] >= 0x80000008, true);
	cpuid(0x80000001, r);
	WANT(r[3] & 0x20100800, 0x20100800); /* SYSCALL NX LM */
	cpuid(0x80000008, r);
	WANT((r[0] & 0xff) >= 36 && (r[0] & 0xff) <= 52, true);
	WANT((r[0] >> 8 & 0xff) == 48 || (r[0] >> 8 & 0xff) == 57, true);
}

/* Never backwards; not even tried where CPUID says there is none. */
static void check_time_stamp(void)
{
	u32 r[4], low, high;
	u64 last = 0;
	cpuid(1, r);
	for (u32 i = 0; i < 1000 && (r[3] & 0x10); i++) {
		asm volatile("rdtsc" : "=a"(low), "=d"(high));
		u64 now = (u64)high << 32 | low;
		WANT(now >= last, true);
		last = now;
	}
}

static const struct check checks[] = {
	{"registers.control", check_control, 0, 0},
	{"registers.task-priority", check_task_priority, 0, 0},
	{"registers.debug", check_debug, 0, 0},
	{"registers.model-specific", check_model_specific, 0, 0},
	{"registers.syscall-enable", check_syscall_enable, 0, 0},
	{"registers.segment-bases", check_bases, 0, 0},
	{"registers.swapgs", check_swapgs, 0, 0},
	{"registers.cpuid", check_cpuid, 0, 0},
	{"registers.time-stamp", check_time_stamp, 0, 0},
	{"tables.local-descriptors", check_local_table, 0, 0},
	{"tables.load-gdt", check_load_gdt, 0, 0},
	{"tables.load-idt", check_load_idt, 0, 0},
	{"tables.load-task", check_load_task, 0, 0},
};

void check_registers(void)
{
	run_checks(checks, LENGTH(checks));
}
