/* x86-64, para-virtual: the form of page tables, and what user code's registers are. */
#include "kernel.h"
#include "pv.h"

extern word kernel_pml4[512];
extern char __text_start[], __text_end[], __rodata_end[];
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE)

static word boot_parameters;

const char *arch_command_line(void)
{
	word address = *(u32 *)DIRECT(boot_parameters + 0x228);
	return address && address < 0x4000000 ? DIRECT(address) : "";
}

/* ---- page tables ---- */
extern word image_pt[512];

static void set_rights(char *start, char *end, word clear, word set)
{
	for (word a = (word)start; a < (word)end; a += PAGE) {
		word *entry = &image_pt[a >> 12 & 511];
		pv_set_entry(PHYSICAL(entry), (*entry & ~clear) | set);
	}
}

void arch_start(word boot)
{
	boot_parameters = boot;
	pv_start();
	pv_set_entry_now(PHYSICAL(kernel_pml4), 0); /* the loader's view */
	set_rights(__text_start, __text_end, PTE_W, 0);
	set_rights(__text_end, __rodata_end, PTE_W, PTE_NX);
	set_rights(__rodata_end, __volatile_end, 0, PTE_NX);
	set_rights(__volatile_end, __text_start + 0x200000, ~0ul, 0);
	/* The scratch area's top entry exists from the start, so that every root has it. */
	pv_set_entry_now(PHYSICAL(kernel_pml4 + (SCRATCH_AREA >> 39 & 511)), page_new() | PTE_P | PTE_W | PTE_A);
	arch_flush_all();
}

word pv_kernel_root(void) { return PHYSICAL(kernel_pml4); }

/* Physical address of the last-level entry; 0 where there is no table. */
static word entry_of(word root, word address, bool create)
{
	word table = root ? root : PHYSICAL(kernel_pml4);
	for (u32 shift = 39; shift > 12; shift -= 9) {
		word at = table + (address >> shift & 511) * 8, entry = *(word *)DIRECT(at);
		if (!(entry & PTE_P)) {
			if (!create)
				return 0;
			entry = page_new() | PTE_P | PTE_W | PTE_A | (root ? PTE_U : 0);
			pv_set_entry_now(at, entry);
		}
		table = entry & PTE_ADDRESS;
	}
	return table + (address >> 12 & 511) * 8;
}

void arch_map(word root, word address, word page, word rights)
{
	pv_set_entry(entry_of(root, address, true), page | PTE_P | (rights & RIGHT_WRITE ? PTE_W : 0) |
		(rights & RIGHT_EXECUTE ? 0 : PTE_NX) | (rights & RIGHT_USER ? PTE_U : 0));
}

void arch_unmap(word root, word address)
{
	word entry = entry_of(root, address, false);
	if (entry)
		pv_set_entry(entry, 0);
}

word arch_root_new(void)
{
	word root = page_new();
	memcpy((word *)DIRECT(root) + 256, kernel_pml4 + 256, 2048);
	return root;
}

static void drop_tables(word table, u32 level, u32 last)
{
	for (u32 i = 0; i < last; i++) {
		word entry = ((word *)DIRECT(table))[i];
		if (!(entry & PTE_P))
			continue;
		if (level)
			drop_tables(entry & PTE_ADDRESS, level - 1, 512);
		pv_set_entry_now(table + 8 * i, 0);
		page_drop(entry & PTE_ADDRESS);
	}
}

void arch_root_drop(word root)
{
	pv_drain();
	drop_tables(root, 2, 256);
	page_drop(root);
}

void arch_scratch_drop(void)
{
	word at = PHYSICAL(kernel_pml4 + (SCRATCH_AREA >> 39 & 511)), table = *(word *)DIRECT(at) & PTE_ADDRESS;
	pv_drain();
	drop_tables(table, 1, 512);
	pv_set_entry_now(at, 0);
	page_drop(table);
	arch_flush_all();
}

/* ---- processes ---- */
word stack_for(struct frame *frame)
{
	word *stack = (word *)frame;
	*--stack = (word)RETRAP_RETURN; /* where switch_stacks returns to, below six zeros */
	return (word)(stack - 6);
}

word frame_argument(const struct frame *f, word n)
{
	return (const word[]){f->r.rdi, f->r.rsi, f->r.rdx, f->r.r10, f->r.r8}[n];
}

bool pv_system_call(struct frame *frame) { return (void)frame, false; }

/* ---- floating point ---- */
void fpu_save(void *to) { asm volatile("fxsave64 (%0)" : : "r"(to) : "memory"); }
void fpu_load(const void *from) { asm volatile("fxrstor64 (%0)" : : "r"(from) : "memory"); }

void fpu_reset(void)
{
	static const u32 mxcsr = 0x1f80;
	asm volatile("fninit; ldmxcsr %0" : : "m"(mxcsr));
}

/* ---- code: nothing to maintain ---- */
void pv_code_changed(word address, word bytes) { (void)address, (void)bytes; }

word code_return(void *to, word value)
{
	volatile u8 *code = to;
	code[0] = 0xb8; /* mov $value, %eax; ret */
	code_set_value(to, value);
	code[5] = 0xc3;
	return 6;
}

word code_set_value(void *to, word value)
{
	*(volatile u32 *)((u8 *)to + 1) = value;
	return 6;
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
