/* x86-64: descriptors, exceptions, the 8259 and 8254, the 16550, page tables. Descriptors have their
 * accessed bit set from the start, so that loading a segment changes no memory. */
#include "kernel.h"

struct frame {
	word r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
	word vector, error, rip, cs, rflags, rsp, ss;
};
_Static_assert(sizeof(struct frame) == FRAME_BYTES, "FRAME_BYTES");

extern word kernel_pml4[512], identity_pdpt[512], identity_pd[512], image_pt[512];
extern char __text_start[], __text_end[], __rodata_end[], vector_stubs[], syscall_entry[];
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE)

static inline void outb(u16 port, u8 v) { asm volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline word read_flags(void) { word v; asm volatile("pushfq; popq %0" : "=r"(v) : : "memory"); return v; }
static inline word read_cr0(void) { word v; asm volatile("mov %%cr0, %0" : "=r"(v) : : "memory"); return v; }
static inline void write_cr0(word v) { asm volatile("mov %0, %%cr0" : : "r"(v) : "memory"); }
static inline word read_cr2(void) { word v; asm volatile("mov %%cr2, %0" : "=r"(v) : : "memory"); return v; }
static inline word read_cr3(void) { word v; asm volatile("mov %%cr3, %0" : "=r"(v) : : "memory"); return v; }
static inline void write_cr3(word v) { asm volatile("mov %0, %%cr3" : : "r"(v) : "memory"); }
static inline word read_cr4(void) { word v; asm volatile("mov %%cr4, %0" : "=r"(v) : : "memory"); return v; }
static inline void write_cr4(word v) { asm volatile("mov %0, %%cr4" : : "r"(v) : "memory"); }
static inline word rdmsr(u32 msr)
{
	u32 low, high;
	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return (word)high << 32 | low;
}
static inline void wrmsr(u32 msr, word v)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}

/* ---- the machine ---- */
#define UART 0x3f8
static word boot_parameters;

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
	word address = *(u32 *)DIRECT(boot_parameters + 0x228);
	return address && address < 0x4000000 ? DIRECT(address) : "";
}

void arch_power_off(bool failed)
{
	outb(0xf4, failed);
	for (;;)
		asm volatile("cli; hlt");
}

/* ---- descriptors ---- */
#define DESCRIPTOR(access, flags) (0xfffful | (access##ul) << 40 | 0xful << 48 | (flags##ul) << 52)
word gdt[GDT_BYTES / 8] = {
	[KERNEL_CS / 8] = DESCRIPTOR(0x9b, 0xa),
	[KERNEL_DS / 8] = DESCRIPTOR(0x93, 0xc),
	[4] = DESCRIPTOR(0xfb, 0xc), /* 0x20: what SYSRET would load for 32-bit code */
	[USER_DS / 8] = DESCRIPTOR(0xf3, 0xc),
	[USER_CS / 8] = DESCRIPTOR(0xfb, 0xa),
};
static word idt[2 * 49] __attribute__((aligned(16)));
static struct { u32 reserved; word rsp[3], zero, ist[7], zero2; u16 zero3, io_map; } __attribute__((packed, aligned(16))) tss;
static struct { word kernel_stack, user_stack; } cpu;
static u8 trap_stack[8192] VOLATILE_DATA __attribute__((aligned(16)));
struct table_register { u16 limit; word base; } __attribute__((packed));

static void descriptors_start(void)
{
	for (word v = 0; v < 49; v++) {
		word handler = (word)vector_stubs + 16 * v, level = v == 3 ? 0xee : 0x8e;
		idt[2 * v] = (handler & 0xffff) | (word)KERNEL_CS << 16 | level << 40 | (handler >> 16 & 0xffff) << 48;
		idt[2 * v + 1] = handler >> 32;
	}
	word base = (word)&tss, limit = sizeof(tss) - 1;
	tss.io_map = sizeof(tss); /* beyond the limit: no port for user mode */
	gdt[TSS_SELECTOR / 8] = limit | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
	gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
	arch_enter_process((word)trap_stack + sizeof(trap_stack));
	struct table_register r = {sizeof(gdt) - 1, (word)gdt};
	asm volatile("lgdt %0" : : "m"(r) : "memory");
	r = (struct table_register){sizeof(idt) - 1, (word)idt};
	asm volatile("lidt %0" : : "m"(r) : "memory");
	asm volatile("ltr %w0" : : "r"(TSS_SELECTOR) : "memory");
	wrmsr(0xc0000101, (word)&cpu); /* GS base */
	wrmsr(0xc0000102, 0);
	wrmsr(0xc0000081, 0x23ul << 48 | (word)KERNEL_CS << 32); /* STAR */
	wrmsr(0xc0000082, (word)syscall_entry);
	wrmsr(0xc0000084, 0x47700);
}

void arch_enter_process(word stack_top)
{
	tss.rsp[0] = cpu.kernel_stack = stack_top;
}

/* ---- interrupts ---- */
static void pic_start(void)
{
	static const u8 words[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28}, {0x21, 4}, {0xa1, 2},
				      {0x21, 1}, {0xa1, 1}, {0x21, 0xff}, {0xa1, 0xff}};
	for (u32 i = 0; i < LENGTH(words); i++)
		outb(words[i][0], words[i][1]);
}

void interrupts_on(void) { asm volatile("sti; nop" : : : "memory"); }
void interrupts_off(void) { asm volatile("cli" : : : "memory"); }
bool interrupts_enabled(void) { return read_flags() & FLAG_IF; }
void interrupts_wait(void) { asm volatile("sti; hlt; cli" : : : "memory"); }
void interrupts_restore(word saved) { asm volatile("pushq %0; popfq" : : "r"(saved) : "memory", "cc"); }

word interrupts_save(void)
{
	word flags;
	asm volatile("pushfq; popq %0; cli" : "=r"(flags) : : "memory");
	return flags;
}

void interrupts_million_pairs(word pairs, volatile word *inside)
{
	asm volatile("1: cli; movq $1, %1; movq $0, %1; sti; decq %0; jnz 1b" : "+r"(pairs), "+m"(*inside) : : "memory", "cc");
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
static struct fault describe(const struct frame *frame)
{
	static const u8 kinds[20] = {[3] = FAULT_BREAKPOINT, [6] = FAULT_UNDEFINED, [7] = FAULT_FLOATING_POINT,
				     [13] = FAULT_PRIVILEGED};
	struct fault fault = {frame->vector < 20 ? kinds[frame->vector] : 0, 0, 0, frame->rip};
	if (!fault.kind)
		fault.kind = FAULT_OTHER;
	if (frame->vector == 3)
		fault.pc--;
	if (frame->vector == 14) {
		fault.kind = frame->error & 1 ? FAULT_PROTECTION : FAULT_ABSENT;
		fault.access = frame->error & 16 ? ACCESS_EXECUTE : frame->error & 2 ? ACCESS_WRITE : ACCESS_READ;
		fault.address = read_cr2();
	}
	return fault;
}

void arch_trap(struct frame *frame)
{
	if (frame->vector == 0x27) { /* spurious unless in service */
		outb(0x20, 0x0b);
		if (!(inb(0x20) & 0x80))
			return;
	}
	if (frame->vector >= 0x20) {
		if (frame->vector >= 0x28)
			outb(0xa0, 0x20);
		outb(0x20, 0x20);
		timer_interrupt(frame, frame->cs & 3);
		return;
	}
	struct fault fault = describe(frame);
	trap(frame, &fault, frame->cs & 3);
}

/* ---- page tables ---- */
static void set_rights(char *start, char *end, word clear, word set)
{
	for (word a = (word)start; a < (word)end; a += PAGE)
		image_pt[a >> 12 & 511] = (image_pt[a >> 12 & 511] & ~clear) | set;
}

void arch_start(word boot)
{
	boot_parameters = boot;
	uart_start();
	kernel_pml4[0] = 0;
	memset(identity_pdpt, 0, PAGE);
	memset(identity_pd, 0, PAGE);
	set_rights(__text_start, __text_end, PTE_W, 0);
	set_rights(__text_end, __rodata_end, PTE_W, PTE_NX);
	set_rights(__rodata_end, __volatile_end, 0, PTE_NX);
	set_rights(__volatile_end, __text_start + 0x200000, ~0ul, 0);
	/* The scratch area's top entry exists from the start, so that every root has it. */
	kernel_pml4[SCRATCH_AREA >> 39 & 511] = page_new() | PTE_P | PTE_W | PTE_A;
	write_cr3(PHYSICAL(kernel_pml4));
	write_cr4(CR4_VALUE);
	write_cr0(CR0_VALUE);
	descriptors_start();
	pic_start();
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
}

static word *entry_of(word root, word address, bool create)
{
	word *table = root ? DIRECT(root) : kernel_pml4;
	for (u32 shift = 39; shift > 12; shift -= 9) {
		word *entry = &table[address >> shift & 511];
		if (!(*entry & PTE_P)) {
			if (!create)
				return NULL;
			*entry = page_new() | PTE_P | PTE_W | PTE_A | (root ? PTE_U : 0);
		}
		table = DIRECT(*entry & PTE_ADDRESS);
	}
	return &table[address >> 12 & 511];
}

void arch_map(word root, word address, word page, word rights)
{
	*entry_of(root, address, true) = page | PTE_P | (rights & RIGHT_WRITE ? PTE_W : 0) |
		(rights & RIGHT_EXECUTE ? 0 : PTE_NX) | (rights & RIGHT_USER ? PTE_U : 0);
}

void arch_unmap(word root, word address)
{
	word *entry = entry_of(root, address, false);
	if (entry)
		*entry = 0;
}

void arch_flush(word address) { asm volatile("invlpg (%0)" : : "r"(address) : "memory"); }
void arch_flush_all(void) { write_cr3(read_cr3()); }
void arch_root_switch(word root) { write_cr3(root ? root : PHYSICAL(kernel_pml4)); }

word arch_root_read(void)
{
	word root = read_cr3();
	return root == PHYSICAL(kernel_pml4) ? 0 : root;
}

word arch_root_new(void)
{
	word root = page_new();
	memcpy((word *)DIRECT(root) + 256, kernel_pml4 + 256, 2048);
	return root;
}

static void drop_tables(word *entries, u32 level, u32 last)
{
	for (u32 i = 0; i < last; i++) {
		if (!(entries[i] & PTE_P))
			continue;
		if (level)
			drop_tables(DIRECT(entries[i] & PTE_ADDRESS), level - 1, 512);
		page_drop(entries[i] & PTE_ADDRESS);
		entries[i] = 0;
	}
}

void arch_root_drop(word root)
{
	drop_tables(DIRECT(root), 2, 256);
	page_drop(root);
}

void arch_scratch_drop(void)
{
	word *entry = &kernel_pml4[SCRATCH_AREA >> 39 & 511];
	drop_tables(DIRECT(*entry & PTE_ADDRESS), 1, 512);
	page_drop(*entry & PTE_ADDRESS);
	*entry = 0;
	arch_flush_all();
}

/* ---- processes ---- */
word stack_for(struct frame *frame)
{
	word *stack = (word *)frame;
	*--stack = (word)trap_return; /* where switch_stacks returns to, below six zeros */
	return (word)(stack - 6);
}

void frame_start(struct frame *frame, word pc, word stack, word first, word second)
{
	*frame = (struct frame){.rip = pc, .cs = USER_CS, .rflags = 2 | FLAG_IF, .rsp = stack, .ss = USER_DS,
				.rdi = first, .rsi = second};
}

word frame_number(const struct frame *f) { return f->rax; }
word frame_argument(const struct frame *f, word n) { return (const word[]){f->rdi, f->rsi, f->rdx, f->r10, f->r8}[n]; }
void frame_result(struct frame *f, word value) { f->rax = value; }
word frame_get_result(const struct frame *f) { return f->rax; }
word frame_pc(const struct frame *f) { return f->rip; }
bool frame_from_kernel_would_interrupt(const struct frame *f) { return f->rflags & FLAG_IF; }

void frame_catch(struct frame *f, word pc, word stack, const struct fault *fault)
{
	frame_start(f, pc, stack, fault->kind, fault->access);
	f->rdx = fault->address;
	f->r8 = fault->pc;
}

void thread_register_set(word value) { wrmsr(0xc0000100, value); }

/* ---- floating point ---- */
void fpu_enable(void) { asm volatile("clts" : : : "memory"); }
void fpu_disable(void) { write_cr0(CR0_VALUE | CR0_TS); }
void fpu_save(void *to) { asm volatile("fxsave64 (%0)" : : "r"(to) : "memory"); }
void fpu_load(const void *from) { asm volatile("fxrstor64 (%0)" : : "r"(from) : "memory"); }

void fpu_reset(void)
{
	static const u32 mxcsr = 0x1f80;
	asm volatile("fninit; ldmxcsr %0" : : "m"(mxcsr));
}

/* ---- code: nothing to maintain but the instruction stream after writes through another address ---- */
void sync_code(word address, word bytes)
{
	u32 a = 0, b, c, d;
	(void)address, (void)bytes;
	asm volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d) : "c"(0) : "memory");
}

static void put(u8 *to, const u8 *from, word bytes)
{
	for (word i = 0; i < bytes; i++)
		((volatile u8 *)to)[i] = from[i];
}

word code_return(void *to, word value)
{
	put(to, (const u8[]){0xb8, value, value >> 8, value >> 16, value >> 24, 0xc3}, 6);
	return 6;
}

word code_set_value(void *to, word value)
{
	*(volatile u32 *)((u8 *)to + 1) = value;
	return 6;
}

static const struct { u8 bytes[12]; word mask, value; } variants[] = {
	{{0xfa, 0x9c, 0x58, 0xc3}, FLAG_IF, 0},                                              /* cli; pushf; pop */
	{{0xfb, 0x9c, 0x58, 0xfa, 0xc3}, FLAG_IF, FLAG_IF},                                  /* sti; pushf; pop; cli */
	{{0x8c, 0xc8, 0xc3}, 0xffff, KERNEL_CS},                                             /* mov %cs, %eax */
	{{0x31, 0xc0, 0xb0, 0x2a, 0xc3}, ~0ul, 0x2a},                                        /* nothing sensitive */
	{{0x68, 2, 2, 0, 0, 0x9d, 0x9c, 0x58, 0xfa, 0xc3}, FLAG_IF, FLAG_IF},                /* push; popf; pushf; pop; cli */
	{{0x0f, 0x01, 0xe0, 0xc3}, 0xffff, CR0_VALUE & 0xffff},                              /* smsw */
	{{0x0f, 0x20, 0xc0, 0xc3}, ~0ul, CR0_VALUE},                                         /* mov %cr0, %rax */
};

word code_variants(void) { return LENGTH(variants); }
bool code_variant_right(word which, word result) { return (result & variants[which].mask) == variants[which].value; }

word code_variant(void *to, word which)
{
	put(to, variants[which].bytes, sizeof(variants[which].bytes));
	return sizeof(variants[which].bytes);
}

/* ---- what is x86-64's own ---- */
void arch_check_mode(void)
{
	u16 cs, ss;
	asm volatile("mov %%cs, %0; mov %%ss, %1" : "=r"(cs), "=r"(ss));
	WANT(cs, KERNEL_CS);
	WANT(ss & 3, 0);
}

void arch_check_status_word(void)
{
	interrupts_restore(2 | 3 << 12); /* IOPL 3 */
	word flags = read_flags();
	interrupts_restore(2);
	WANT(flags & 3 << 12, 3 << 12);
	WANT(read_flags() & 3 << 12, 0);
}

void arch_check_system_registers(void)
{
	struct table_register r;
	word status;
	u16 task;
	asm volatile("sgdt %0" : "=m"(r));
	WANT(r.base, gdt);
	WANT(r.limit, sizeof(gdt) - 1);
	asm volatile("sidt %0" : "=m"(r));
	WANT(r.base, idt);
	asm volatile("str %0" : "=r"(task));
	WANT(task, TSS_SELECTOR);
	asm volatile("smsw %0" : "=r"(status));
	WANT(status & 0xffff, CR0_VALUE & 0xffff);
	WANT(read_cr0(), CR0_VALUE);
	WANT(read_cr4(), CR4_VALUE);
	wrmsr(0xc0000102, 0x1234);
	WANT(rdmsr(0xc0000102), 0x1234);
	wrmsr(0xc0000102, 0);
}

/* x86-64 has no access that is made as user mode makes it; what may be known of a segment comes nearest. */
void arch_check_user_access(void)
{
	u32 rights = 0;
	bool may;
	asm volatile("lar %2, %1" : "=@ccz"(may), "+r"(rights) : "r"(KERNEL_DS));
	WANT(may, true);
	WANT(rights >> 8 & 0xff, 0x93);
	asm volatile("verw %w1" : "=@ccz"(may) : "r"(KERNEL_DS));
	WANT(may, true);
}

static void after_return(word unused)
{
	word cs;
	(void)unused;
	asm volatile("movq %%rsp, %%rcx; pushq %1; pushq %%rcx; pushq $0x2; pushq %2; pushq $1f; iretq; 1: mov %%cs, %0"
		     : "=r"(cs)
		     : "i"(KERNEL_DS), "i"(KERNEL_CS)
		     : "rcx", "memory", "cc");
	if (cs != KERNEL_CS)
		asm volatile("ud2");
}

void arch_check_return(void)
{
	return_broken = catch_fault(after_return, 0);
	WANT(return_broken, false);
}

void arch_raise_undefined(word unused)
{
	(void)unused;
	asm volatile("ud2");
}

void arch_raise_breakpoint(word unused)
{
	(void)unused;
	asm volatile("int3");
}
