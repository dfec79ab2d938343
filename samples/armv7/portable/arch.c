/* ARMv7-A: exceptions, the GICv2 and the virtual timer, the PL011, short-descriptor tables. */
#include "kernel.h"

struct frame {
	word kind, unused, user_sp, user_lr, r[13], lr, pc, cpsr;
};
_Static_assert(sizeof(struct frame) == FRAME_BYTES, "FRAME_BYTES");

extern u32 kernel_table[4096], image_tables[512], empty_table[2048];
extern char __text_start[], __text_end[], __rodata_end[], vectors[];
word load_as_user(word address), store_as_user(word address);
word return_by_rfe(void), return_by_movs(void), return_by_ldm(void);
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE + PHYSICAL_BASE)

#define READ(name, opc1, crn, crm, opc2) \
	static inline word read_##name(void) \
	{ word v; asm volatile("mrc p15, " #opc1 ", %0, " #crn ", " #crm ", " #opc2 : "=r"(v) : : "memory"); return v; }
#define WRITE(name, opc1, crn, crm, opc2) \
	static inline void write_##name(word v) \
	{ asm volatile("mcr p15, " #opc1 ", %0, " #crn ", " #crm ", " #opc2 "\n\tisb" : : "r"(v) : "memory"); }
#define BOTH(name, ...) READ(name, __VA_ARGS__) WRITE(name, __VA_ARGS__)
BOTH(sctlr, 0, c1, c0, 0) BOTH(cpacr, 0, c1, c0, 2) BOTH(ttbr0, 0, c2, c0, 0) BOTH(ttbr1, 0, c2, c0, 1)
BOTH(ttbcr, 0, c2, c0, 2) BOTH(dacr, 0, c3, c0, 0) READ(dfsr, 0, c5, c0, 0) READ(ifsr, 0, c5, c0, 1)
READ(dfar, 0, c6, c0, 0) READ(ifar, 0, c6, c0, 2) READ(vbar, 0, c12, c0, 0) BOTH(contextidr, 0, c13, c0, 1)
WRITE(tpidruro, 0, c13, c0, 3) BOTH(tpidrprw, 0, c13, c0, 4) BOTH(tpidrurw, 0, c13, c0, 2)
READ(cntfrq, 0, c14, c0, 0) BOTH(cntv_ctl, 0, c14, c3, 1) WRITE(cntv_tval, 0, c14, c3, 0) READ(midr, 0, c0, c0, 0)
WRITE(tlbiall, 0, c8, c7, 0) WRITE(tlbimva, 0, c8, c7, 1) WRITE(dccmvau, 0, c7, c11, 1) WRITE(icimvau, 0, c7, c5, 1)
WRITE(bpiall, 0, c7, c5, 6)

static inline word read_cpsr(void) { word v; asm volatile("mrs %0, cpsr" : "=r"(v) : : "memory"); return v; }
static inline void barrier(void) { asm volatile("dsb\n\tisb" : : : "memory"); }

/* ---- the machine ---- */
#define UART(offset) (*(volatile u32 *)(DEVICES + 0x100000 + (offset)))
#define DISTRIBUTOR(offset) (*(volatile u32 *)(DEVICES + (offset)))
#define INTERFACE(offset) (*(volatile u32 *)(DEVICES + 0x10000 + (offset)))
#define TIMER_LINE 27

void arch_put_char(char c)
{
	for (u32 i = 0; i < 1000000 && (UART(0x18) & 0x20); i++)
		;
	UART(0) = c;
}

static void uart_start(void)
{
	UART(0x30) = 0;
	UART(0x2c) = 0x70;
	UART(0x30) = 0x301;
}

#include "device_tree.h"

void arch_power_off(bool failed)
{
	register u32 function asm("r0") = failed ? 0x84000009 : 0x84000008; /* PSCI: SYSTEM_RESET, SYSTEM_OFF */
	asm volatile(".inst 0xe1400070" : "+r"(function) : : "r1", "r2", "r3", "memory"); /* hvc #0 */
	for (;;)
		asm volatile("wfi");
}

/* ---- interrupts ---- */
static word period VOLATILE_DATA;

static void gic_start(void)
{
	DISTRIBUTOR(0) = 1;
	for (u32 i = 0; i < 8; i++)
		DISTRIBUTOR(0x400 + 4 * i) = 0xa0a0a0a0;
	DISTRIBUTOR(0x100) = 1u << TIMER_LINE;
	INTERFACE(4) = 0xff;
	INTERFACE(0) = 1;
}

void interrupts_on(void) { asm volatile("cpsie i\n\tnop" : : : "memory"); }
void interrupts_off(void) { asm volatile("cpsid i" : : : "memory"); }
bool interrupts_enabled(void) { return !(read_cpsr() & CPSR_I); }
void interrupts_wait(void) { asm volatile("dsb\n\twfi\n\tcpsie i\n\tnop\n\tisb\n\tcpsid i" : : : "memory"); }
void interrupts_restore(word saved) { asm volatile("msr cpsr_c, %0" : : "r"(saved) : "memory"); }

word interrupts_save(void)
{
	word saved;
	asm volatile("mrs %0, cpsr\n\tcpsid i" : "=r"(saved) : : "memory");
	return saved;
}

void interrupts_million_pairs(word pairs, volatile word *inside)
{
	word one = 1, zero = 0;
	asm volatile("1: cpsid i\n\tstr %2, [%1]\n\tstr %3, [%1]\n\tcpsie i\n\tsubs %0, %0, #1\n\tbne 1b"
		     : "+r"(pairs)
		     : "r"(inside), "r"(one), "r"(zero)
		     : "memory", "cc");
}

void timer_stop(void)
{
	write_cntv_ctl(2);
	period = 0;
	barrier();
}

void timer_start(word hertz)
{
	timer_stop();
	period = read_cntfrq() / hertz;
	write_cntv_tval(period);
	write_cntv_ctl(1);
}

void timer_once(word microseconds)
{
	timer_stop();
	write_cntv_tval(read_cntfrq() / 1000 * microseconds / 1000);
	write_cntv_ctl(1);
}

bool timer_pending(void)
{
	return DISTRIBUTOR(0x200) >> TIMER_LINE & 1;
}

static void interrupt(struct frame *frame, bool from_user)
{
	u32 line = INTERFACE(0xc);
	if ((line & 0x3ff) == 0x3ff)
		return; /* spurious */
	if (period)
		write_cntv_tval(period);
	else
		write_cntv_ctl(2);
	barrier();
	INTERFACE(0x10) = line;
	timer_interrupt(frame, from_user);
}

/* ---- exceptions ---- */
static bool is_floating_point(word pc)
{
	u32 instruction = *(u32 *)pc, space = instruction >> 24 & 15, coprocessor = instruction >> 8 & 15;
	return ((space == 12 || space == 13 || space == 14) && (coprocessor == 10 || coprocessor == 11)) ||
		(instruction >> 25 == 0x79) || (instruction >> 24 == 0xf4 && !(instruction & 0x100000));
}

static word read_fpexc(void)
{
	word v;
	asm volatile(".inst 0xeef80a10 | 0 << 12\n\tmov %0, r0" : "=r"(v) : : "r0"); /* vmrs r0, fpexc */
	return v;
}

static word kind_of(word status)
{
	switch (status & 0x40f) {
	case 0x2: return FAULT_BREAKPOINT;
	case 0x5: case 0x7: return FAULT_ABSENT;
	case 0xd: case 0xf: return FAULT_PROTECTION;
	}
	return FAULT_OTHER;
}

static struct fault describe(const struct frame *frame)
{
	struct fault fault = {FAULT_UNDEFINED, 0, 0, frame->pc};
	if (frame->kind == ENTRY_UNDEFINED) {
		if (is_floating_point(frame->pc) && !(read_fpexc() & 0x40000000))
			fault.kind = FAULT_FLOATING_POINT;
	} else if (frame->kind == ENTRY_PREFETCH) {
		fault.kind = kind_of(read_ifsr());
		fault.access = ACCESS_EXECUTE;
		fault.address = read_ifar();
	} else {
		fault.kind = kind_of(read_dfsr());
		fault.access = read_dfsr() & 0x800 ? ACCESS_WRITE : ACCESS_READ;
		fault.address = read_dfar();
	}
	return fault;
}

void arch_trap(struct frame *frame)
{
	bool from_user = (frame->cpsr & 0x1f) == MODE_USR;
	if (frame->kind == ENTRY_SVC) {
		if (frame->r[7] == SYS_SYNC)
			sync_code(frame->r[0], frame->r[1]);
		else
			system_call(frame);
	} else if (frame->kind == ENTRY_IRQ) {
		interrupt(frame, from_user);
	} else {
		struct fault fault = describe(frame);
		trap(frame, &fault, from_user);
	}
}

/* ---- page tables ---- */
#define SMALL 0x44e /* TEX 001 C B, S */
#define READ_ONLY 0x200
#define KERNEL_ONLY 0x10
#define USER_TOO 0x30

static void set_rights(char *start, char *end, u32 rights)
{
	for (word a = (word)start; a < (word)end; a += PAGE)
		image_tables[(a - IMAGE_BASE) / PAGE] = PHYSICAL(a) | rights;
}

void arch_start(word boot)
{
	device_tree = boot;
	kernel_table[DEVICES >> 20] = 0x08000416; /* device, XN, kernel only */
	kernel_table[(DEVICES >> 20) + 1] = 0x09000416;
	barrier();
	uart_start();
	set_rights(__text_start, __text_end, SMALL | KERNEL_ONLY | READ_ONLY);
	set_rights(__text_end, __rodata_end, SMALL | KERNEL_ONLY | READ_ONLY | 1);
	set_rights(__rodata_end, __volatile_end, SMALL | KERNEL_ONLY | 1);
	set_rights(__volatile_end, (char *)IMAGE_BASE + 0x200000, SMALL | KERNEL_ONLY | 1); /* the device tree is there */
	kernel_table[0x401] = kernel_table[0x402] = 0;
	write_ttbr1(PHYSICAL(kernel_table));
	write_ttbcr(1); /* TTBR0 has the same table, for the lower half alone */
	write_ttbr0(PHYSICAL(empty_table));
	arch_flush_all();
	write_cpacr(0xf00000);
	fpu_disable();
	gic_start();
	timer_stop();
}

static u32 *entry_of(word root, word address, bool create)
{
	u32 *table = address >= KERNEL_BASE ? kernel_table : root ? DIRECT(root) : empty_table;
	u32 *first = &table[address >> 20];
	if (!*first) {
		if (!create)
			return NULL;
		*first = page_new() | 1;
	}
	return (u32 *)DIRECT(*first & ~0x3ff) + (address >> 12 & 255);
}

void arch_map(word root, word address, word page, word rights)
{
	*entry_of(root, address, true) = page | SMALL | (rights & RIGHT_USER ? USER_TOO : KERNEL_ONLY) |
		(rights & RIGHT_WRITE ? 0 : READ_ONLY) | (rights & RIGHT_EXECUTE ? 0 : 1);
}

void arch_unmap(word root, word address)
{
	u32 *entry = entry_of(root, address, false);
	if (entry)
		*entry = 0;
}

void arch_flush(word address)
{
	barrier();
	write_tlbimva(address & -(word)PAGE);
	barrier();
}

void arch_flush_all(void)
{
	barrier();
	write_tlbiall(0);
	barrier();
}

void arch_root_switch(word root)
{
	write_ttbr0(root ? root : PHYSICAL(empty_table));
	arch_flush_all();
}

word arch_root_read(void)
{
	word root = read_ttbr0();
	return root == PHYSICAL(empty_table) ? 0 : root;
}

/* Two pages side by side, at a multiple of 8 KiB: 2048 entries for 2 GiB. */
word arch_root_new(void)
{
	word held[8];
	for (u32 count = 0; count < LENGTH(held);) {
		word page = held[count++] = page_new();
		if (page & PAGE)
			continue;
		word next = held[count++] = page_new();
		if (next != page + PAGE)
			continue;
		for (count -= 2; count;)
			page_drop(held[--count]);
		return page;
	}
	print("FAIL memory: no two pages side by side\n");
	checks_failed++;
	finish();
}

static void drop_tables(u32 *table, word first, word end)
{
	for (word i = first; i < end; i++) {
		if ((table[i] & 3) == 1)
			page_drop(table[i] & -(word)PAGE);
		table[i] = 0;
	}
}

void arch_root_drop(word root)
{
	drop_tables(DIRECT(root), 0, 2048);
	page_drop(root);
	page_drop(root + PAGE);
}

void arch_scratch_drop(void)
{
	drop_tables(kernel_table, SCRATCH_AREA >> 20, (SCRATCH_AREA >> 20) + 16);
	drop_tables(empty_table, 0, 2048);
	arch_flush_all();
}

/* ---- processes ---- */
word stack_for(struct frame *frame)
{
	word *stack = (word *)frame - 10; /* R4-R12 and LR, as switch_stacks pops them */
	stack[9] = (word)trap_return;
	return (word)stack;
}

void arch_enter_process(word stack_top) { (void)stack_top; } /* the Supervisor stack is there by then */

void frame_start(struct frame *frame, word pc, word stack, word first, word second)
{
	*frame = (struct frame){.pc = pc, .cpsr = MODE_USR, .user_sp = stack, .r = {first, second}};
}

word frame_number(const struct frame *f) { return f->r[7]; }
word frame_argument(const struct frame *f, word n) { return f->r[n]; }
void frame_result(struct frame *f, word value) { f->r[0] = value; }
word frame_get_result(const struct frame *f) { return f->r[0]; }
word frame_pc(const struct frame *f) { return f->pc; }
bool frame_from_kernel_would_interrupt(const struct frame *f) { return !(f->cpsr & CPSR_I); }

void frame_catch(struct frame *f, word pc, word stack, const struct fault *fault)
{
	frame_start(f, pc, stack, fault->kind, fault->access);
	f->r[2] = fault->address;
	f->r[3] = fault->pc;
}

void thread_register_set(word value) { write_tpidruro(value); }

/* ---- floating point ---- */
static void write_fpexc(word value)
{
	register word v asm("r0") = value;
	asm volatile(".inst 0xeee80a10\n\tisb" : : "r"(v) : "memory"); /* vmsr fpexc, r0 */
}

void fpu_enable(void) { write_fpexc(0x40000000); }
void fpu_disable(void) { write_fpexc(0); }

/* ---- code ---- */
void sync_code(word address, word bytes)
{
	word first = address & -32ul, end = address + bytes;
	for (word line = first; line < end; line += 32)
		write_dccmvau(line);
	barrier();
	for (word line = first; line < end; line += 32)
		write_icimvau(line);
	write_bpiall(0);
	barrier();
}

static void put(void *to, const u32 *from, word count)
{
	for (word i = 0; i < count; i++)
		((volatile u32 *)to)[i] = from[i];
}

word code_set_value(void *to, word value)
{
	u32 low = 0xe3000000 | (value & 0xf000) << 4 | (value & 0xfff); /* movw r0 */
	u32 high = 0xe3400000 | (value >> 28) << 16 | (value >> 16 & 0xfff); /* movt r0 */
	put(to, (const u32[]){low, high}, 2);
	return 12;
}

word code_return(void *to, word value)
{
	put((u32 *)to + 2, (const u32[]){0xe12fff1e}, 1); /* bx lr */
	return code_set_value(to, value);
}

static const struct { u32 words[7]; word mask, value; } variants[] = {
	{{0xf10c0080, 0xe10f0000, 0xe12fff1e}, CPSR_I, CPSR_I},                 /* cpsid i; mrs r0, cpsr; bx lr */
	{{0xf1080080, 0xe10f0000, 0xf10c0080, 0xe12fff1e}, CPSR_I, 0},          /* cpsie i; mrs; cpsid i; bx lr */
	{{0xe10f0000, 0xe200001f, 0xe12fff1e}, ~0ul, MODE_SVC},                 /* mrs r0, cpsr; and r0, r0, #31; bx lr */
	{{0xe3a0002a, 0xe12fff1e}, ~0ul, 0x2a},                                 /* nothing sensitive */
	{{0xe10f0000, 0xe3c00080, 0xe121f000, 0xe10f0000, 0xf10c0080, 0xe12fff1e}, CPSR_I, 0}, /* ... msr cpsr_c, r0 ... */
	{{0xee110f10, 0xe12fff1e}, 0x1805, 0x1805},                             /* mrc SCTLR; bx lr */
	{{0xee1d0f90, 0xe12fff1e}, ~0ul, 0},                                    /* mrc TPIDRPRW; bx lr */
};

word code_variants(void) { return LENGTH(variants); }
bool code_variant_right(word which, word result) { return (result & variants[which].mask) == variants[which].value; }

word code_variant(void *to, word which)
{
	put(to, variants[which].words, LENGTH(variants[which].words));
	return sizeof(variants[which].words);
}

/* ---- what is ARM's own ---- */
void arch_check_mode(void)
{
	WANT(read_cpsr() & 0x1f, MODE_SVC);
	WANT(read_midr() >> 24, 0x41);
}

void arch_check_status_word(void)
{
	word inside, flags, before = read_cpsr();
	asm volatile("cps #31\n\tmrs %0, cpsr\n\tcps #19" : "=r"(inside) : : "memory");
	WANT(inside & 0x1f, MODE_SYS);
	asm volatile("msr cpsr_f, %1\n\tmrs %0, cpsr" : "=r"(flags) : "r"(0xa0000000) : "cc");
	WANT(flags >> 28, 0xa);
	WANT(flags & 0x1f, MODE_SVC);
	asm volatile("msr cpsr_c, %0" : : "r"((before & ~0x1ful) | MODE_SYS) : "memory");
	inside = read_cpsr();
	asm volatile("msr cpsr_c, %0" : : "r"(before) : "memory");
	WANT(inside & 0x1f, MODE_SYS);
	WANT(read_cpsr() & 0xff, before & 0xff);
}

void arch_check_system_registers(void)
{
	word stack, saved;
	WANT(read_vbar(), vectors);
	WANT(read_sctlr() & 0x1805, 0x1805);
	WANT(read_ttbr1(), PHYSICAL(kernel_table));
	WANT(read_dacr(), 1);
	WANT(read_ttbcr(), 1);
	write_contextidr(0x1234);
	WANT(read_contextidr(), 0x1234);
	write_contextidr(0);
	write_tpidrprw(0x5678);
	WANT(read_tpidrprw(), 0x5678);
	write_tpidrprw(0);
	write_tpidrurw(0x9abc);
	WANT(read_tpidrurw(), 0x9abc);
	write_tpidrurw(0);
	/* Banked registers: those of Interrupt mode are not Supervisor mode's. */
	asm volatile("cps #18\n\tmrs %0, cpsr\n\tcps #19" : "=r"(saved) : : "memory");
	WANT(saved & 0x1f, MODE_IRQ);
	if ((saved & 0x1f) != MODE_IRQ)
		return;
	asm volatile("cps #18\n\tmov sp, %2\n\tmsr spsr_cxsf, %3\n\tcps #19\n\tcps #18\n\tmov %0, sp\n\tmrs %1, spsr\n\t"
		     "mov sp, #0\n\tcps #19"
		     : "=&r"(stack), "=&r"(saved)
		     : "r"(0x1111), "r"(MODE_USR | CPSR_I)
		     : "memory");
	WANT(stack, 0x1111);
	WANT(saved, MODE_USR | CPSR_I);
}

static void load_kernel_as_user(word address) { load_as_user(address); }
static void store_kernel_as_user(word address) { store_as_user(address); }

void arch_check_user_access(void)
{
	static word cell = 9;
	WANT(catch_fault(load_kernel_as_user, (word)&cell), true);
	WANT(caught.kind, FAULT_PROTECTION);
	WANT(caught.access, ACCESS_READ);
	WANT(caught.address, &cell);
	WANT(catch_fault(store_kernel_as_user, (word)&cell), true);
	WANT(caught.access, ACCESS_WRITE);
	WANT(cell, 9);
	/* On a page of user mode they are done. */
	word root = arch_root_new(), page = page_new();
	arch_map(root, 0x20000000, page, RIGHT_WRITE | RIGHT_USER);
	arch_root_switch(root);
	*(word *)DIRECT(page) = 77;
	WANT(load_as_user(0x20000000), 77);
	store_as_user(0x20000000);
	WANT(*(word *)DIRECT(page), 5);
	arch_root_switch(0);
	arch_root_drop(root);
	page_drop(page);
}

static void after_return(word unused)
{
	(void)unused;
	if (return_by_rfe() || return_by_movs() || return_by_ldm() || (read_cpsr() & 0x1f) != MODE_SVC)
		asm volatile("udf #0");
}

void arch_check_return(void)
{
	/* Where the mode cannot be told, it would not be this one that is returned to. */
	bool told = (read_cpsr() & 0x1f) == MODE_SVC;
	return_broken = told ? catch_fault(after_return, 0) : true;
	WANT(return_broken, false);
}

void arch_raise_undefined(word unused)
{
	(void)unused;
	asm volatile("udf #0");
}

void arch_raise_breakpoint(word unused)
{
	(void)unused;
	asm volatile("bkpt #0");
}
