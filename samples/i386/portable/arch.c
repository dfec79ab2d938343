/* i386: descriptors, exceptions, the 8259 and 8254, the 16550, page tables. Descriptors have their
 * accessed bit set from the start, so that loading a segment changes no memory. */
#include "kernel.h"

typedef unsigned long long entry;

struct frame { /* the last two only where it came from user mode */
	word edi, esi, ebp, unused, ebx, edx, ecx, eax, es, ds;
	word vector, error, eip, cs, eflags, esp, ss;
};
_Static_assert(sizeof(struct frame) == FRAME_BYTES, "FRAME_BYTES");

extern entry kernel_pdpt[512], identity_pd[512], kernel_pd[512], image_pt[512];
extern char __text_start[], __text_end[], __rodata_end[], vector_stubs[], call_entry[], sysenter_entry[];
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE)

static inline void outb(u16 port, u8 v) { asm volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline word read_flags(void) { word v; asm volatile("pushfl; popl %0" : "=r"(v) : : "memory"); return v; }
static inline word read_cr0(void) { word v; asm volatile("mov %%cr0, %0" : "=r"(v) : : "memory"); return v; }
static inline void write_cr0(word v) { asm volatile("mov %0, %%cr0" : : "r"(v) : "memory"); }
static inline word read_cr2(void) { word v; asm volatile("mov %%cr2, %0" : "=r"(v) : : "memory"); return v; }
static inline word read_cr3(void) { word v; asm volatile("mov %%cr3, %0" : "=r"(v) : : "memory"); return v; }
static inline void write_cr3(word v) { asm volatile("mov %0, %%cr3" : : "r"(v) : "memory"); }
static inline word read_cr4(void) { word v; asm volatile("mov %%cr4, %0" : "=r"(v) : : "memory"); return v; }
static inline void write_cr4(word v) { asm volatile("mov %0, %%cr4" : : "r"(v) : "memory"); }
static inline u32 rdmsr(u32 msr)
{
	u32 low, high;
	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return low;
}
static inline void wrmsr(u32 msr, u32 v)
{
	asm volatile("wrmsr" : : "c"(msr), "a"(v), "d"(0) : "memory");
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
#define DESCRIPTOR(access, flags) (0xffffull | (access##ull) << 40 | 0xfull << 48 | (flags##ull) << 52)
entry gdt[GDT_BYTES / 8] = {
	[KERNEL_CS / 8] = DESCRIPTOR(0x9b, 0xc),
	[KERNEL_DS / 8] = DESCRIPTOR(0x93, 0xc),
	[USER_CS / 8] = DESCRIPTOR(0xfb, 0xc),
	[USER_DS / 8] = DESCRIPTOR(0xf3, 0xc),
	[THREAD_SELECTOR / 8] = DESCRIPTOR(0xf3, 0xc),
};
static entry idt[129] __attribute__((aligned(16)));
static struct {
	word link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, registers[8], segments[6], ldt;
	u16 trap, io_map;
} __attribute__((packed, aligned(16))) tss;
static struct { word kernel_stack; } cpu; /* where IA32_SYSENTER_ESP points to */
static u8 trap_stack[8192] VOLATILE_DATA __attribute__((aligned(16)));
struct table_register { u16 limit; word base; } __attribute__((packed));

static void set_gate(u32 vector, const char *handler, u32 access)
{
	word at = (word)handler;
	idt[vector] = (at & 0xffff) | (u32)KERNEL_CS << 16 | (entry)access << 40 | (entry)(at >> 16) << 48;
}

static entry with_base(entry descriptor, word base)
{
	descriptor &= ~(0xffffffull << 16 | 0xffull << 56);
	return descriptor | (entry)(base & 0xffffff) << 16 | (entry)(base >> 24) << 56;
}

static void descriptors_start(void)
{
	for (u32 v = 0; v < 49; v++)
		set_gate(v, vector_stubs + 16 * v, v == 3 ? 0xee : 0x8e);
	set_gate(0x80, call_entry, 0xee);
	tss.io_map = sizeof(tss); /* beyond the limit: no port for user mode */
	tss.ss0 = KERNEL_DS;
	gdt[TSS_SELECTOR / 8] = with_base((sizeof(tss) - 1) | 0x89ull << 40, (word)&tss);
	arch_enter_process((word)trap_stack + sizeof(trap_stack));
	struct table_register r = {sizeof(gdt) - 1, (word)gdt};
	asm volatile("lgdt %0" : : "m"(r) : "memory");
	r = (struct table_register){sizeof(idt) - 1, (word)idt};
	asm volatile("lidt %0" : : "m"(r) : "memory");
	asm volatile("ltr %w0" : : "r"(TSS_SELECTOR) : "memory");
	thread_register_set(0);
	wrmsr(0x174, KERNEL_CS);
	wrmsr(0x175, (word)&cpu.kernel_stack);
	wrmsr(0x176, (word)sysenter_entry);
}

void arch_enter_process(word stack_top)
{
	tss.esp0 = cpu.kernel_stack = stack_top;
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
void interrupts_restore(word saved) { asm volatile("pushl %0; popfl" : : "r"(saved) : "memory", "cc"); }

word interrupts_save(void)
{
	word flags;
	asm volatile("pushfl; popl %0; cli" : "=r"(flags) : : "memory");
	return flags;
}

void interrupts_million_pairs(word pairs, volatile word *inside)
{
	asm volatile("1: cli; movl $1, %1; movl $0, %1; sti; decl %0; jnz 1b" : "+r"(pairs), "+m"(*inside) : : "memory", "cc");
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
	struct fault fault = {frame->vector < 20 ? kinds[frame->vector] : 0, 0, 0, frame->eip};
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
static void set_rights(char *start, char *end, entry clear, entry set)
{
	for (word a = (word)start; a < (word)end; a += PAGE)
		image_pt[a >> 12 & 511] = (image_pt[a >> 12 & 511] & ~clear) | set;
}

void arch_start(word boot)
{
	boot_parameters = boot;
	uart_start();
	kernel_pdpt[0] = 0;
	memset(identity_pd, 0, PAGE);
	set_rights(__text_start, __text_end, PTE_W, 0);
	set_rights(__text_end, __rodata_end, PTE_W, PTE_NX);
	set_rights(__rodata_end, __volatile_end, 0, PTE_NX);
	set_rights(__volatile_end, __text_start + 0x200000, ~0ull, 0);
	write_cr3(PHYSICAL(kernel_pdpt));
	write_cr4(CR4_VALUE);
	write_cr0(CR0_VALUE);
	descriptors_start();
	pic_start();
}

/* A root is a page that begins with its four pointers; the last, to the kernel's directory, all share.
 * The directories of a root are there from the start: a processor reads the pointers when CR3 is loaded. */
static entry *entry_of(word root, word address, bool create)
{
	entry *pointers = root ? DIRECT(root) : kernel_pdpt;
	entry *directory = address >> 30 == 3 ? kernel_pd : DIRECT((word)(pointers[address >> 30] & PTE_ADDRESS));
	entry *found = &directory[address >> 21 & 511];
	if (!(*found & PTE_P)) {
		if (!create)
			return NULL;
		*found = page_new() | PTE_P | PTE_W | PTE_A | (root ? PTE_U : 0);
	}
	return (entry *)DIRECT((word)(*found & PTE_ADDRESS)) + (address >> 12 & 511);
}

void arch_map(word root, word address, word page, word rights)
{
	*entry_of(root, address, true) = page | PTE_P | (rights & RIGHT_WRITE ? PTE_W : 0) |
		(rights & RIGHT_EXECUTE ? 0 : PTE_NX) | (rights & RIGHT_USER ? PTE_U : 0);
}

void arch_unmap(word root, word address)
{
	entry *found = entry_of(root, address, false);
	if (found)
		*found = 0;
}

void arch_flush(word address) { asm volatile("invlpg (%0)" : : "r"(address) : "memory"); }
void arch_flush_all(void) { write_cr3(read_cr3()); }
void arch_root_switch(word root) { write_cr3(root ? root : PHYSICAL(kernel_pdpt)); }

word arch_root_read(void)
{
	word root = read_cr3();
	return root == PHYSICAL(kernel_pdpt) ? 0 : root;
}

word arch_root_new(void)
{
	word root = page_new();
	entry *pointers = DIRECT(root);
	for (u32 i = 0; i < 3; i++)
		pointers[i] = page_new() | PTE_P;
	pointers[3] = kernel_pdpt[3];
	return root;
}

static void drop_tables(entry *directory, u32 first, u32 count)
{
	for (u32 i = first; i < first + count; i++) {
		if (directory[i] & PTE_P)
			page_drop(directory[i] & PTE_ADDRESS);
		directory[i] = 0;
	}
}

void arch_root_drop(word root)
{
	entry *pointers = DIRECT(root);
	for (u32 i = 0; i < 3; i++) {
		word directory = pointers[i] & PTE_ADDRESS;
		drop_tables(DIRECT(directory), 0, 512);
		page_drop(directory);
	}
	page_drop(root);
}

void arch_scratch_drop(void)
{
	drop_tables(kernel_pd, SCRATCH_AREA >> 21 & 511, 8);
	arch_flush_all();
}

/* ---- processes ---- */
word stack_for(struct frame *frame)
{
	word *stack = (word *)frame;
	*--stack = (word)trap_return; /* where switch_stacks returns to, below four zeros */
	return (word)(stack - 4);
}

void frame_start(struct frame *frame, word pc, word stack, word first, word second)
{
	*frame = (struct frame){.eip = pc, .cs = USER_CS, .eflags = 2 | FLAG_IF, .esp = stack, .ss = USER_DS,
				.ds = USER_DS, .es = USER_DS, .edi = first, .esi = second};
}

word frame_number(const struct frame *f) { return f->eax; }

word frame_argument(const struct frame *f, word n)
{
	return n < 4 ? (const word[]){f->ebx, f->esi, f->edi, f->ebp}[n] : *(const word *)f->esp;
}

void frame_result(struct frame *f, word value) { f->eax = value; }
word frame_get_result(const struct frame *f) { return f->eax; }
word frame_pc(const struct frame *f) { return f->eip; }
bool frame_from_kernel_would_interrupt(const struct frame *f) { return f->eflags & FLAG_IF; }

void frame_catch(struct frame *f, word pc, word stack, const struct fault *fault)
{
	frame_start(f, pc, stack, fault->kind, fault->access);
	f->edx = fault->address;
	f->ebx = fault->pc;
}

/* User mode finds its thread by the base of GS. */
void thread_register_set(word value)
{
	gdt[THREAD_SELECTOR / 8] = with_base(gdt[THREAD_SELECTOR / 8], value);
	asm volatile("movl %0, %%gs" : : "r"(THREAD_SELECTOR) : "memory");
}

/* ---- floating point ---- */
void fpu_enable(void) { asm volatile("clts" : : : "memory"); }
void fpu_disable(void) { write_cr0(CR0_VALUE | CR0_TS); }
void fpu_save(void *to) { asm volatile("fxsave (%0)" : : "r"(to) : "memory"); }
void fpu_load(const void *from) { asm volatile("fxrstor (%0)" : : "r"(from) : "memory"); }

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
	{{0x0e, 0x58, 0xc3}, 0xffff, KERNEL_CS},                                             /* push %cs; pop %eax */
	{{0x31, 0xc0, 0xb0, 0x2a, 0xc3}, ~0ul, 0x2a},                                        /* nothing sensitive */
	{{0x68, 2, 2, 0, 0, 0x9d, 0x9c, 0x58, 0xfa, 0xc3}, FLAG_IF, FLAG_IF},                /* push; popf; pushf; pop; cli */
	{{0x0f, 0x01, 0xe0, 0xc3}, 0xffff, CR0_VALUE & 0xffff},                              /* smsw */
	{{0x0f, 0x20, 0xc0, 0xc3}, ~0ul, CR0_VALUE},                                         /* mov %cr0, %eax */
};

word code_variants(void) { return LENGTH(variants); }
bool code_variant_right(word which, word result) { return (result & variants[which].mask) == variants[which].value; }

word code_variant(void *to, word which)
{
	put(to, variants[which].bytes, sizeof(variants[which].bytes));
	return sizeof(variants[which].bytes);
}

/* ---- what is i386's own ---- */
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
	WANT(rdmsr(0x176), sysenter_entry);
	wrmsr(0x176, 0x1234);
	WANT(rdmsr(0x176), 0x1234);
	wrmsr(0x176, (word)sysenter_entry);
}

/* i386 has no access that is made as user mode makes it; what may be known of a segment comes nearest. */
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
	asm volatile("pushfl; pushl %%cs; pushl $1f; iretl; 1: mov %%cs, %0" : "=r"(cs) : : "memory", "cc");
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
