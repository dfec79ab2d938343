/* MIPS32: exceptions, the 8259 and 8254 behind the GT-64120, the 16550, a software-filled TLB. */
#include "kernel.h"

struct frame {
	word r[32], hi, lo, status, cause, epc, bad_v_addr;
};
_Static_assert(sizeof(struct frame) == FRAME_BYTES, "FRAME_BYTES");

extern word kernel_root[TABLE_ENTRIES], empty_table[TABLE_ENTRIES], user_root, kernel_stack;
extern char refill_vector[], refill_vector_end[], general_vector[], general_vector_end[], wait_begin[], wait_end[];

#define READ(register, select) \
	({ word v_; asm volatile("mfc0 %0, $" #register ", " #select : "=r"(v_) : : "memory"); v_; })
#define WRITE(register, select, value) \
	asm volatile("mtc0 %0, $" #register ", " #select "; ehb" : : "r"((word)(value)) : "memory")
#define INDEX 0, 0
#define ENTRY_LO0 2, 0
#define ENTRY_LO1 3, 0
#define CONTEXT 4, 0
#define USER_LOCAL 4, 2
#define PAGE_MASK 5, 0
#define WIRED 6, 0
#define HWRENA 7, 0
#define ENTRY_HI 10, 0
#define STATUS 12, 0
#define CAUSE 13, 0
#define EPC 14, 0
#define PRID 15, 0
#define EBASE 15, 1
#define CONFIG1 16, 1
#define CONFIG3 16, 3
#define GET(...) READ_(__VA_ARGS__)
#define READ_(register, select) READ(register, select)
#define SET(...) WRITE_(__VA_ARGS__)
#define WRITE_(register, select, value) WRITE(register, select, value)

/* ---- the machine ---- */
#define PORTS (KSEG1 + 0x18000000)
#define ACKNOWLEDGE (*(volatile u32 *)(KSEG1 + 0x1be00c34))
#define UART 0x3f8
static void outb(u32 port, u8 value) { *(volatile u8 *)(PORTS + port) = value; }
static u8 inb(u32 port) { return *(volatile u8 *)(PORTS + port); }
static word *arguments;

static void write_pci(u32 address, u32 value)
{
	*(volatile u32 *)(KSEG1 + 0x1be00cf8) = 0x80000000 | address;
	*(volatile u32 *)(KSEG1 + 0x1be00cfc) = value;
}

void arch_put_char(char c)
{
	for (u32 i = 0; i < 1000000 && !(inb(UART + 5) & 0x20); i++)
		;
	outb(UART, c);
}

static void uart_start(void)
{
	static const u8 setup[][2] = {{1, 0}, {3, 0x80}, {0, 1}, {1, 0}, {3, 3}, {2, 7}, {4, 3}};
	for (u32 i = 0; i < LENGTH(setup); i++)
		outb(UART + setup[i][0], setup[i][1]);
}

const char *arch_command_line(void)
{
	return arguments && arguments[0] && arguments[1] ? (const char *)arguments[1] : "";
}

void arch_power_off(bool failed)
{
	outb(0xf4, failed);
	/* Where there is no such port: the power management of the PIIX4, suspend to off. */
	write_pci(10 << 11 | 3 << 8 | 0x40, 0x1001);
	write_pci(10 << 11 | 3 << 8 | 0x80, 1);
	*(volatile u16 *)(PORTS + 0x1004) = 0x2000;
	for (;;)
		asm volatile("di; ehb; wait");
}

/* ---- interrupts ---- */
static void pic_start(void)
{
	static const u8 words[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28}, {0x21, 4}, {0xa1, 2},
				      {0x21, 1}, {0xa1, 1}, {0x21, 0xff}, {0xa1, 0xff}};
	for (u32 i = 0; i < LENGTH(words); i++)
		outb(words[i][0], words[i][1]);
}

void interrupts_on(void) { asm volatile("ei; ehb" : : : "memory"); }
void interrupts_off(void) { asm volatile("di; ehb" : : : "memory"); }
bool interrupts_enabled(void) { return GET(STATUS) & STATUS_IE; }

word interrupts_save(void)
{
	word flags;
	asm volatile(".set noreorder; di %0; andi %0, %0, 1; ehb; .set reorder" : "=r"(flags) : : "memory");
	return flags;
}

void interrupts_restore(word saved)
{
	asm volatile(".set noreorder; beqz %0, 1f; di; ei; 1: ehb; .set reorder" : : "r"(saved) : "memory");
}

void interrupts_million_pairs(word pairs, volatile word *inside)
{
	do {
		asm volatile("di; ehb" : : : "memory");
		*inside = 1;
		*inside = 0;
		asm volatile("ei" : : : "memory");
	} while (--pairs);
}

static void timer_count(u32 count)
{
	outb(0x40, count);
	outb(0x40, count >> 8);
}

/* Masks the line, takes it low by a one-shot that is far away, and has the controller forget what it
 * saw of earlier counts. */
void timer_stop(void)
{
	outb(0x21, 0xff);
	outb(0x43, 0x30);
	timer_count(0xffff);
	pic_start();
}

void timer_start(word hertz)
{
	timer_stop();
	outb(0x43, 0x34);
	timer_count(1193182 / hertz);
	outb(0x21, 0xfe);
}

void timer_once(word microseconds)
{
	timer_stop();
	timer_count(microseconds * 1193 / 1000);
	outb(0x21, 0xfe);
}

bool timer_pending(void)
{
	outb(0x20, 0x0a);
	return inb(0x20) & 1;
}

/* ---- exceptions ---- */
enum { INT, MOD, TLBL, TLBS, ADEL, ADES, IBE, DBE, SYS, BP, RI, CPU, OV, TR };
static word thread;
static bool has_user_local;

static struct fault describe(const struct frame *frame)
{
	word code = frame->cause >> 2 & 31;
	struct fault fault = {FAULT_OTHER, 0, frame->bad_v_addr, frame->epc + (frame->cause & CAUSE_BD ? 4 : 0)};
	if (code >= MOD && code <= ADES) {
		fault.kind = code == TLBL || code == TLBS ? FAULT_ABSENT : FAULT_PROTECTION;
		fault.access = code == MOD || code == TLBS || code == ADES ? ACCESS_WRITE :
			fault.address == fault.pc ? ACCESS_EXECUTE : ACCESS_READ;
	} else if (code == RI) {
		fault.kind = FAULT_UNDEFINED;
	} else if (code == BP) {
		fault.kind = FAULT_BREAKPOINT;
	} else if (code == CPU) {
		fault.kind = frame->cause >> 28 & 3 ? FAULT_FLOATING_POINT : FAULT_PRIVILEGED;
	}
	return fault;
}

/* RDHWR $3, $29 on a processor without UserLocal. */
static bool emulated(struct frame *frame)
{
	if (frame->cause >> 31 || *(u32 *)frame->epc != 0x7c03e83b)
		return false;
	frame->r[3] = thread;
	frame->epc += 4;
	return true;
}

/* Whether the tables allow by now what the TLB, which keeps invalid pages as well, did not. */
#define LOW_VALID 0x02
#define LOW_DIRTY 0x04
#define LOW_CACHED 0x18
#define LOW_GLOBAL 0x01
static bool outdated(word address, word wanted)
{
	word *directory = address >> 31 ? kernel_root : (word *)user_root, *table = (word *)directory[address >> 22];
	return table && table[address >> 12 & (TABLE_ENTRIES - 1)] & wanted;
}

void arch_trap(struct frame *frame)
{
	word code = frame->cause >> 2 & 31;
	bool from_user = frame->status & STATUS_UM;
	if (code == INT) {
		if (frame->epc >= (word)wait_begin && frame->epc < (word)wait_end)
			frame->epc = (word)wait_end;
		if ((ACKNOWLEDGE & 0xff) == 0x27) { /* spurious unless in service */
			outb(0x20, 0x0b);
			if (!(inb(0x20) & 0x80))
				return;
		}
		outb(0x20, 0x20);
		timer_interrupt(frame, from_user);
		return;
	}
	if (code == SYS) {
		frame->epc += 4;
		system_call(frame);
		return;
	}
	if (code == RI && from_user && emulated(frame))
		return;
	if (code >= MOD && code <= TLBS && outdated(frame->bad_v_addr, code == MOD ? LOW_DIRTY : LOW_VALID)) {
		arch_flush(frame->bad_v_addr);
		return;
	}
	struct fault fault = describe(frame);
	trap(frame, &fault, from_user);
}

/* ---- page tables: a directory and tables of EntryLo words; the kernel's are global ---- */
#define ASIDS 256
static word root_of_asid[ASIDS];

static word asid_of(word root)
{
	for (word i = 1; root && i < ASIDS; i++)
		if (root_of_asid[i] == root)
			return i;
	return 0;
}

static word tlb_size(void) { return (GET(CONFIG1) >> 25 & 63) + 1; }

static void tlb_clear(word index)
{
	SET(INDEX, index);
	SET(ENTRY_HI, KSEG0 + index * 2 * PAGE); /* matches nothing */
	SET(ENTRY_LO0, 0);
	SET(ENTRY_LO1, 0);
	asm volatile("tlbwi; ehb" : : : "memory");
}

void arch_flush(word address)
{
	word before = GET(ENTRY_HI);
	SET(ENTRY_HI, (address & -(2 * PAGE)) | (before & 0xff));
	asm volatile("tlbp; ehb" : : : "memory");
	if (!(GET(INDEX) >> 31))
		tlb_clear(GET(INDEX));
	SET(ENTRY_HI, before & 0xff);
}

void arch_flush_all(void)
{
	word before = GET(ENTRY_HI);
	for (word i = 0; i < tlb_size(); i++)
		tlb_clear(i);
	SET(ENTRY_HI, before & 0xff);
}

static void copy_vector(word at, const char *from, const char *end)
{
	memcpy((void *)at, from, end - from);
	sync_code(at, end - from);
}

void arch_start(word boot)
{
	arguments = (word *)boot;
	uart_start();
	SET(STATUS, STATUS_IM);
	SET(CAUSE, 0);
	SET(PAGE_MASK, 0);
	SET(WIRED, 0);
	copy_vector(KSEG0, refill_vector, refill_vector_end);
	copy_vector(KSEG0 + 0x180, general_vector, general_vector_end);
	has_user_local = GET(CONFIG3) >> 13 & 1;
	SET(HWRENA, 2 | (has_user_local ? 1u << 29 : 0)); /* SYNCI_Step and UserLocal */
	user_root = (word)kernel_root;
	arch_flush_all();
	SET(ENTRY_HI, 0);
	pic_start();
}

static word *entry_of(word root, word address, bool create)
{
	word *directory = root ? DIRECT(root) : kernel_root, *slot = &directory[address >> 22];
	if (!*slot) {
		if (!create)
			return NULL;
		word *table = DIRECT(page_new());
		for (word i = 0; i < TABLE_ENTRIES; i++)
			table[i] = root ? 0 : LOW_GLOBAL;
		*slot = (word)table;
	}
	return &((word *)*slot)[address >> 12 & (TABLE_ENTRIES - 1)];
}

void arch_map(word root, word address, word page, word rights)
{
	*entry_of(root, address, true) =
		page >> 6 | LOW_CACHED | LOW_VALID | (rights & RIGHT_WRITE ? LOW_DIRTY : 0) | (root ? 0 : LOW_GLOBAL);
}

void arch_unmap(word root, word address)
{
	word *entry = entry_of(root, address, false);
	if (entry)
		*entry = root ? 0 : LOW_GLOBAL;
}

void arch_root_switch(word root)
{
	user_root = root ? (word)DIRECT(root) : (word)kernel_root;
	SET(ENTRY_HI, asid_of(root));
}

word arch_root_read(void) { return root_of_asid[GET(ENTRY_HI) & 0xff]; }

word arch_root_new(void)
{
	word root = page_new();
	for (word i = 1; i < ASIDS; i++) {
		if (!root_of_asid[i]) {
			root_of_asid[i] = root;
			return root;
		}
	}
	print("FAIL memory: no address space left\n");
	checks_failed++;
	finish();
}

static void drop_tables(word *directory, word first, word end)
{
	for (word i = first; i < end; i++) {
		if (directory[i])
			page_drop(directory[i] - KSEG0);
		directory[i] = 0;
	}
}

void arch_root_drop(word root)
{
	root_of_asid[asid_of(root)] = 0;
	drop_tables(DIRECT(root), 0, TABLE_ENTRIES / 2);
	page_drop(root);
	arch_flush_all();
}

void arch_scratch_drop(void)
{
	drop_tables(kernel_root, 0, TABLE_ENTRIES);
	arch_flush_all();
}

/* ---- processes ---- */
void arch_enter_process(word stack_top) { kernel_stack = stack_top; }

word stack_for(struct frame *frame)
{
	word *stack = (word *)frame - 10;
	stack[9] = (word)trap_return; /* RA, above eight saved registers and FP */
	return (word)stack;
}

void frame_start(struct frame *frame, word pc, word stack, word first, word second)
{
	*frame = (struct frame){.epc = pc, .status = STATUS_UM | STATUS_IE | STATUS_IM};
	frame->r[29] = stack;
	frame->r[4] = first;
	frame->r[5] = second;
}

word frame_number(const struct frame *f) { return f->r[2]; }
word frame_argument(const struct frame *f, word n) { return f->r[4 + n]; }
void frame_result(struct frame *f, word value) { f->r[2] = value; }
word frame_get_result(const struct frame *f) { return f->r[2]; }
word frame_pc(const struct frame *f) { return f->epc; }
bool frame_from_kernel_would_interrupt(const struct frame *f) { return f->status & STATUS_IE; }

void frame_catch(struct frame *f, word pc, word stack, const struct fault *fault)
{
	frame_start(f, pc, stack, fault->kind, fault->access);
	f->r[6] = fault->address;
	f->r[7] = fault->pc;
}

void thread_register_set(word value)
{
	thread = value;
	if (has_user_local)
		SET(USER_LOCAL, value);
}

/* ---- floating point ---- */
void fpu_enable(void) { SET(STATUS, GET(STATUS) | STATUS_CU1); }
void fpu_disable(void) { SET(STATUS, GET(STATUS) & ~STATUS_CU1); }

/* ---- code ---- */
void sync_code(word address, word bytes)
{
	word step, end = address + bytes;
	asm volatile("rdhwr %0, $1" : "=r"(step));
	for (; address < end; address += step)
		asm volatile("synci 0(%0)" : : "r"(address) : "memory");
	asm volatile("sync; .set noreorder; la $2, 1f; jr.hb $2; nop; 1: .set reorder" : : : "$2", "memory");
}

static word put(void *to, const u32 *from, word count)
{
	for (word i = 0; i < count; i++)
		((volatile u32 *)to)[i] = from[i];
	return 4 * count;
}

word code_set_value(void *to, word value)
{
	put(to, (const u32[]){0x3c020000 | value >> 16, 0x34420000 | (value & 0xffff)}, 2);
	return 16;
}

word code_return(void *to, word value)
{
	put((u8 *)to + 8, (const u32[]){0x03e00008, 0}, 2);
	return code_set_value(to, value);
}

#define JR_RA 0x03e00008
#define EHB 0x000000c0
static const struct { u32 code[8]; word mask, value; } variants[] = {
	{{0x41606000, EHB, 0x40026000, JR_RA, 0}, STATUS_IE, 0},                           /* di; mfc0 Status */
	{{0x41606020, EHB, 0x40026000, 0x41606000, EHB, JR_RA, 0}, STATUS_IE, STATUS_IE},  /* ei; mfc0 Status; di */
	{{0x40027800, JR_RA, 0}, 0xff00, 0x9300},                                          /* mfc0 PRId */
	{{0x2402002a, JR_RA, 0}, ~0ul, 0x2a},                                              /* nothing sensitive */
	{{0x41626000, 0x30420001, EHB, JR_RA, 0}, ~0ul, 0},                                /* di v0; andi v0, v0, 1 */
	{{0x3c020012, 0x40821000, EHB, 0x40021000, JR_RA, 0}, ~0ul, 0x120000},             /* mtc0, mfc0 EntryLo0 */
	{{0x24020070, 0x40827000, EHB, 0x40027000, JR_RA, 0}, ~0ul, 0x70},                 /* mtc0, mfc0 EPC */
	{{0x41606000, JR_RA, 0x40026000}, STATUS_IE, 0},                                   /* mfc0 in a delay slot */
};

word code_variants(void) { return LENGTH(variants); }
bool code_variant_right(word which, word result) { return (result & variants[which].mask) == variants[which].value; }
word code_variant(void *to, word which) { return put(to, variants[which].code, LENGTH(variants[which].code)); }

/* ---- what is MIPS32's own ---- */
void arch_check_mode(void)
{
	WANT(GET(STATUS) & 0x1e, 0); /* kernel mode, no exception, no error */
}

void arch_check_status_word(void)
{
	SET(STATUS, 0x5a00);
	word seen = GET(STATUS);
	SET(STATUS, STATUS_IM);
	WANT(seen & 0xff01, 0x5a00);
	WANT(GET(STATUS) & 0xff01, STATUS_IM);
	fpu_enable();
	WANT(GET(STATUS) & STATUS_CU1, STATUS_CU1);
	fpu_disable();
	WANT(GET(STATUS) & STATUS_CU1, 0);
}

void arch_check_system_registers(void)
{
	SET(ENTRY_HI, 0x12345678);
	WANT(GET(ENTRY_HI), 0x12344078);
	SET(ENTRY_HI, 0);
	SET(CONTEXT, ~0ul);
	WANT(GET(CONTEXT) & 0xff800000, 0xff800000);
	SET(CONTEXT, 0);
	SET(EPC, 0x12345678);
	WANT(GET(EPC), 0x12345678);
	SET(EPC, 0);
	WANT(GET(EBASE) & 0xfffff000, KSEG0);
	SET(ENTRY_LO0, LOW_VALID | LOW_DIRTY);
	WANT(GET(ENTRY_LO0), LOW_VALID | LOW_DIRTY);
	SET(ENTRY_LO0, 0);
	SET(WIRED, 3);
	WANT(GET(WIRED), 3);
	SET(WIRED, 0);
	WANT(GET(CONFIG1) & 1, 1); /* floating point */
	WANT(GET(PRID) & 0xff00, 0x9300);
}

/* MIPS32 has no access that is made as user mode makes it; the same memory through another segment, past
 * the cache, comes nearest. */
void arch_check_user_access(void)
{
	word page = page_new();
	volatile word *cached = DIRECT(page), *plain = (volatile word *)(KSEG1 + page);
	for (word i = 1; i < 100; i++) {
		*cached = i;
		asm volatile("cache 0x15, 0(%0); sync" : : "r"(cached) : "memory"); /* write back, invalidate */
		WANT(*plain, i);
		*plain = ~i;
		WANT(*cached, ~i);
		asm volatile("cache 0x15, 0(%0); sync" : : "r"(cached) : "memory");
	}
	page_drop(page);
}

static void after_return(word unused)
{
	word status;
	(void)unused;
	asm volatile(".set noreorder; la $2, 1f; mtc0 $2, $14; mfc0 $2, $12; ori $2, $2, 2; mtc0 $2, $12; ehb; eret; break;"
		     "1: mfc0 %0, $12; .set reorder"
		     : "=r"(status)
		     :
		     : "$2", "memory");
	if (status & STATUS_EXL)
		asm volatile("break");
}

void arch_check_return(void)
{
	return_broken = catch_fault(after_return, 0);
	WANT(return_broken, false);
}

void arch_raise_undefined(word unused)
{
	(void)unused;
	asm volatile(".word 0x0000002d");
}

void arch_raise_breakpoint(word unused)
{
	(void)unused;
	asm volatile("break");
}
