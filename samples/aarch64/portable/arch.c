/* AArch64: exceptions, the GICv2 and the virtual timer, the PL011, four levels of 4 KiB tables. */
#include "kernel.h"

struct frame {
	word x[31], sp, pc, spsr, kind, unused;
};
_Static_assert(sizeof(struct frame) == FRAME_BYTES, "FRAME_BYTES");

extern word kernel_table[512], kernel_middle[512], image_tables[1024], empty_table[512];
extern char __text_start[], __text_end[], __rodata_end[], vectors[];
word load_as_user(word address), store_as_user(word address), return_by_eret(void);
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE + PHYSICAL_BASE)

#define READ(name) \
	static inline word read_##name(void) { word v; asm volatile("mrs %0, " #name : "=r"(v) : : "memory"); return v; }
#define WRITE(name) \
	static inline void write_##name(word v) { asm volatile("msr " #name ", %0\n\tisb" : : "r"(v) : "memory"); }
#define BOTH(name) READ(name) WRITE(name)
BOTH(cpacr_el1) BOTH(ttbr0_el1) READ(ttbr1_el1) READ(tcr_el1) READ(sctlr_el1) READ(mair_el1) READ(vbar_el1)
READ(esr_el1) READ(far_el1) BOTH(contextidr_el1) BOTH(tpidr_el1) BOTH(tpidr_el0) BOTH(tpidrro_el0) BOTH(sp_el0)
BOTH(elr_el1) BOTH(spsr_el1) READ(cntfrq_el0) WRITE(cntv_ctl_el0) WRITE(cntv_tval_el0) READ(midr_el1) READ(ctr_el0)
READ(currentel) BOTH(daif) READ(spsel) BOTH(nzcv) BOTH(par_el1)

static inline void barrier(void) { asm volatile("dsb sy\n\tisb" : : : "memory"); }

/* ---- the machine ---- */
#define UART(offset) (*(volatile u32 *)(DEVICES + 0x200000 + (offset)))
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
	register word function asm("x0") = failed ? 0x84000009 : 0x84000008; /* PSCI: SYSTEM_RESET, SYSTEM_OFF */
	asm volatile("hvc #0" : "+r"(function) : : "x1", "x2", "x3", "memory");
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

void interrupts_on(void) { asm volatile("msr daifclr, #2" : : : "memory"); }
void interrupts_off(void) { asm volatile("msr daifset, #2" : : : "memory"); }
bool interrupts_enabled(void) { return !(read_daif() & DAIF_I); }
void interrupts_wait(void) { asm volatile("dsb sy\n\twfi\n\tmsr daifclr, #2\n\tisb\n\tmsr daifset, #2" : : : "memory"); }
void interrupts_restore(word saved) { asm volatile("msr daif, %0" : : "r"(saved) : "memory"); }

word interrupts_save(void)
{
	word saved;
	asm volatile("mrs %0, daif\n\tmsr daifset, #2" : "=r"(saved) : : "memory");
	return saved;
}

void interrupts_million_pairs(word pairs, volatile word *inside)
{
	word one = 1;
	asm volatile("1: msr daifset, #2\n\tstr %2, [%1]\n\tstr xzr, [%1]\n\tmsr daifclr, #2\n\tsubs %0, %0, #1\n\tb.ne 1b"
		     : "+r"(pairs)
		     : "r"(inside), "r"(one)
		     : "memory", "cc");
}

void timer_stop(void)
{
	write_cntv_ctl_el0(2);
	period = 0;
	barrier();
}

void timer_start(word hertz)
{
	timer_stop();
	period = read_cntfrq_el0() / hertz;
	write_cntv_tval_el0(period);
	write_cntv_ctl_el0(1);
}

void timer_once(word microseconds)
{
	timer_stop();
	write_cntv_tval_el0(read_cntfrq_el0() / 1000 * microseconds / 1000);
	write_cntv_ctl_el0(1);
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
		write_cntv_tval_el0(period);
	else
		write_cntv_ctl_el0(2);
	barrier();
	INTERFACE(0x10) = line;
	timer_interrupt(frame, from_user);
}

/* ---- exceptions ---- */
static word kind_of(word status)
{
	switch (status & 0x3c) {
	case 0x04: return FAULT_ABSENT;
	case 0x0c: return FAULT_PROTECTION;
	}
	return FAULT_OTHER;
}

static struct fault describe(const struct frame *frame, word syndrome)
{
	struct fault fault = {FAULT_OTHER, 0, 0, frame->pc};
	switch (syndrome >> 26) {
	case 0x00: case 0x18:
		fault.kind = FAULT_UNDEFINED;
		break;
	case 0x07:
		fault.kind = FAULT_FLOATING_POINT;
		break;
	case 0x20: case 0x21:
		fault.kind = kind_of(syndrome);
		fault.access = ACCESS_EXECUTE;
		fault.address = read_far_el1();
		break;
	case 0x24: case 0x25:
		fault.kind = kind_of(syndrome);
		fault.access = syndrome & 0x40 ? ACCESS_WRITE : ACCESS_READ;
		fault.address = read_far_el1();
		break;
	case 0x3c:
		fault.kind = FAULT_BREAKPOINT;
		break;
	}
	return fault;
}

void arch_trap(struct frame *frame)
{
	bool from_user = (frame->spsr & 0xf) == 0;
	if (frame->kind == KIND_INTERRUPT) {
		interrupt(frame, from_user);
		return;
	}
	word syndrome = read_esr_el1();
	if (syndrome >> 26 == 0x15) {
		system_call(frame);
	} else {
		struct fault fault = describe(frame, syndrome);
		trap(frame, &fault, from_user);
	}
}

/* ---- page tables ---- */
static void set_rights(char *start, char *end, word rights)
{
	for (word a = (word)start; a < (word)end; a += PAGE)
		image_tables[(a - KERNEL_BASE) / PAGE] = PHYSICAL(a) | PTE_PAGE | PTE_UXN | rights;
}

void arch_start(word boot)
{
	device_tree = boot;
	uart_start();
	set_rights((char *)KERNEL_BASE, __text_start, PTE_PXN);
	set_rights(__text_start, __text_end, PTE_READ_ONLY);
	set_rights(__text_end, __rodata_end, PTE_READ_ONLY | PTE_PXN);
	set_rights(__rodata_end, (char *)KERNEL_BASE + 0x400000, PTE_PXN);
	write_ttbr0_el1(PHYSICAL(empty_table));
	arch_flush_all();
	write_cpacr_el1(3 << 20);
	gic_start();
	timer_stop();
}

static word *entry_of(word root, word address, bool create)
{
	word *table = address >> 63 ? kernel_table : root ? DIRECT(root) : empty_table;
	for (u32 shift = 39; shift > 12; shift -= 9) {
		word *entry = &table[address >> shift & 511];
		if (!*entry) {
			if (!create)
				return NULL;
			*entry = page_new() | PTE_TABLE;
		}
		table = DIRECT(*entry & PTE_ADDRESS);
	}
	return &table[address >> 12 & 511];
}

void arch_map(word root, word address, word page, word rights)
{
	word no_execute = PTE_PXN | PTE_UXN;
	if (rights & RIGHT_EXECUTE)
		no_execute = rights & RIGHT_USER ? PTE_PXN : PTE_UXN;
	*entry_of(root, address, true) = page | PTE_PAGE | no_execute | (address >> 63 ? 0 : PTE_NOT_GLOBAL) |
		(rights & RIGHT_USER ? PTE_USER : 0) | (rights & RIGHT_WRITE ? 0 : PTE_READ_ONLY);
	barrier();
}

void arch_unmap(word root, word address)
{
	word *entry = entry_of(root, address, false);
	if (entry)
		*entry = 0;
}

void arch_flush(word address)
{
	barrier();
	asm volatile("tlbi vaae1is, %0" : : "r"(address >> 12 & 0xfffffffffff) : "memory");
	barrier();
}

void arch_flush_all(void)
{
	barrier();
	asm volatile("tlbi vmalle1is" : : : "memory");
	barrier();
}

void arch_root_switch(word root)
{
	write_ttbr0_el1(root ? root : PHYSICAL(empty_table));
	arch_flush_all();
}

word arch_root_read(void)
{
	word root = read_ttbr0_el1();
	return root == PHYSICAL(empty_table) ? 0 : root;
}

word arch_root_new(void) { return page_new(); }

static void drop_tables(word *table, word first, word end, u32 levels)
{
	for (word i = first; i < end; i++) {
		if ((table[i] & 3) == PTE_TABLE) {
			word below = table[i] & PTE_ADDRESS;
			if (levels > 1)
				drop_tables(DIRECT(below), 0, 512, levels - 1);
			page_drop(below);
		}
		table[i] = 0;
	}
}

void arch_root_drop(word root)
{
	drop_tables(DIRECT(root), 0, 512, 3);
	page_drop(root);
}

void arch_scratch_drop(void)
{
	word first = SCRATCH_AREA >> 21 & 511;
	drop_tables(kernel_middle, first, first + 8, 1);
	drop_tables(empty_table, 0, 512, 3);
	arch_flush_all();
}

/* ---- processes ---- */
word stack_for(struct frame *frame)
{
	word *stack = (word *)frame - 12; /* X19-X30, as switch_stacks loads them */
	stack[11] = (word)trap_return;
	return (word)stack;
}

void arch_enter_process(word stack_top) { (void)stack_top; } /* SP_EL1 is there by then */

void frame_start(struct frame *frame, word pc, word stack, word first, word second)
{
	*frame = (struct frame){.pc = pc, .sp = stack, .x = {first, second}};
}

word frame_number(const struct frame *f) { return f->x[8]; }
word frame_argument(const struct frame *f, word n) { return f->x[n]; }
void frame_result(struct frame *f, word value) { f->x[0] = value; }
word frame_get_result(const struct frame *f) { return f->x[0]; }
word frame_pc(const struct frame *f) { return f->pc; }
bool frame_from_kernel_would_interrupt(const struct frame *f) { return !(f->spsr & DAIF_I); }

void frame_catch(struct frame *f, word pc, word stack, const struct fault *fault)
{
	frame_start(f, pc, stack, fault->kind, fault->access);
	f->x[2] = fault->address;
	f->x[3] = fault->pc;
}

void thread_register_set(word value) { write_tpidrro_el0(value); }

/* ---- floating point: never disabled ---- */
void fpu_enable(void) { write_cpacr_el1(3 << 20); }
void fpu_disable(void) { }

/* ---- code ---- */
void sync_code(word address, word bytes)
{
	word type = read_ctr_el0(), data = 4ul << (type >> 16 & 15), code = 4ul << (type & 15), end = address + bytes;
	for (word line = address & -data; line < end; line += data)
		asm volatile("dc cvau, %0" : : "r"(line) : "memory");
	asm volatile("dsb ish" : : : "memory");
	for (word line = address & -code; line < end; line += code)
		asm volatile("ic ivau, %0" : : "r"(line) : "memory");
	asm volatile("dsb ish\n\tisb" : : : "memory");
}

static void put(void *to, const u32 *from, word count)
{
	for (word i = 0; i < count; i++)
		((volatile u32 *)to)[i] = from[i];
}

word code_set_value(void *to, word value)
{
	u32 low = 0x52800000 | (value & 0xffff) << 5, high = 0x72a00000 | (value >> 16 & 0xffff) << 5; /* movz, movk w0 */
	put(to, (const u32[]){low, high}, 2);
	return 12;
}

word code_return(void *to, word value)
{
	put((u32 *)to + 2, (const u32[]){0xd65f03c0}, 1); /* ret */
	return code_set_value(to, value);
}

static const struct { u32 words[7]; word mask, value; } variants[] = {
	{{0xd50342df, 0xd53b4220, 0xd65f03c0}, DAIF_I, DAIF_I},                 /* daifset #2; mrs x0, daif; ret */
	{{0xd50342ff, 0xd53b4220, 0xd50342df, 0xd65f03c0}, DAIF_I, 0},          /* daifclr #2; mrs; daifset #2; ret */
	{{0xd5384240, 0xd65f03c0}, ~0ul, 4},                                    /* mrs x0, currentel; ret */
	{{0x52800540, 0xd65f03c0}, ~0ul, 0x2a},                                 /* nothing sensitive */
	{{0xd53b4220, 0x9278f800, 0xd51b4220, 0xd53b4220, 0xd50342df, 0xd65f03c0}, DAIF_I, 0}, /* mrs; and; msr daif, x0 ... */
	{{0xd5381000, 0xd65f03c0}, 0x1005, 0x1005},                             /* mrs x0, sctlr_el1; ret */
	{{0xd538d080, 0xd65f03c0}, ~0ul, 0},                                    /* mrs x0, tpidr_el1; ret */
};

word code_variants(void) { return LENGTH(variants); }
bool code_variant_right(word which, word result) { return (result & variants[which].mask) == variants[which].value; }

word code_variant(void *to, word which)
{
	put(to, variants[which].words, LENGTH(variants[which].words));
	return sizeof(variants[which].words);
}

/* ---- what is AArch64's own ---- */
void arch_check_mode(void)
{
	WANT(read_currentel(), 4);
	WANT(read_midr_el1() >> 24, 0x41);
	WANT(read_spsel(), 1);
}

void arch_check_status_word(void)
{
	word before = read_daif(), stack, chosen;
	write_daif(0x340); /* D, A, F */
	word inside = read_daif();
	write_daif(before);
	WANT(inside, 0x340);
	WANT(read_daif(), before);
	write_nzcv(0xa0000000);
	WANT(read_nzcv(), 0xa0000000);
	/* The other stack pointer: SP is SP_EL0 while SPSel is 0. */
	write_sp_el0(0x123450);
	asm volatile("mov x2, sp\n\tmsr spsel, #0\n\tmov %0, sp\n\tmrs %1, spsel\n\tmov x3, #0x6780\n\tmov sp, x3\n\tmsr spsel, #1\n\tmov x3, sp"
		     "\n\tcmp x2, x3\n\tcsinv %1, %1, xzr, eq"
		     : "=&r"(stack), "=&r"(chosen)
		     :
		     : "x2", "x3", "memory", "cc");
	WANT(stack, 0x123450);
	WANT(chosen, 0);
	WANT(read_sp_el0(), 0x6780);
}

void arch_check_system_registers(void)
{
	WANT(read_vbar_el1(), vectors);
	WANT(read_sctlr_el1(), SCTLR_VALUE);
	WANT(read_ttbr1_el1(), PHYSICAL(kernel_table));
	WANT(read_tcr_el1(), TCR_VALUE);
	WANT(read_mair_el1(), MAIR_VALUE);
#define KEEPS(name, value) write_##name(value), WANT(read_##name(), value), write_##name(0)
	KEEPS(contextidr_el1, 0x1234);
	KEEPS(tpidr_el1, 0x5678123456789abc);
	KEEPS(tpidr_el0, 0x9abc);
	KEEPS(tpidrro_el0, 0xdef0);
	KEEPS(sp_el0, 0x13570);
	KEEPS(elr_el1, 0xffff800012345678);
	KEEPS(spsr_el1, 0x60000005);
	KEEPS(par_el1, 0x1000);
	/* Each of the thread registers is a register of its own. */
	write_tpidr_el1(1), write_tpidr_el0(2), write_tpidrro_el0(3), write_sp_el0(16);
	WANT(read_tpidr_el1() | read_tpidr_el0() << 8 | read_tpidrro_el0() << 16 | read_sp_el0() << 24, 0x10030201);
	write_tpidr_el1(0), write_tpidr_el0(0), write_tpidrro_el0(0), write_sp_el0(0);
	/* AT: the translation of an address, and that there is none. */
	asm volatile("at s1e1r, %0\n\tisb" : : "r"(vectors) : "memory");
	WANT(read_par_el1() & (PTE_ADDRESS | 1), PHYSICAL(vectors) & PTE_ADDRESS);
	asm volatile("at s1e1r, %0\n\tisb" : : "r"(SCRATCH_AREA) : "memory");
	WANT(read_par_el1() & 1, 1);
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
	/* Of a page of the kernel's in the lower half they are not, and what user mode may execute the kernel may not. */
	arch_map(root, 0x20001000, page, RIGHT_WRITE);
	WANT(catch_fault(load_kernel_as_user, 0x20001000), true);
	WANT(caught.kind, FAULT_PROTECTION);
	arch_map(root, 0x20002000, page, RIGHT_EXECUTE | RIGHT_USER);
	code_return(DIRECT(page), 3);
	WANT(catch_fault((void (*)(word))0x20002000, 0), true);
	WANT(caught.kind, FAULT_PROTECTION);
	WANT(caught.access, ACCESS_EXECUTE);
	arch_root_switch(0);
	arch_root_drop(root);
	page_drop(page);
}

static void after_return(word unused)
{
	(void)unused;
	if (return_by_eret() || read_currentel() != 4)
		asm volatile("udf #0");
}

void arch_check_return(void)
{
	return_broken = catch_fault(after_return, 0);
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
	asm volatile("brk #0");
}
