/* i386, para-virtual: the form of page tables, and what user code's registers are. */
#include "kernel.h"
#include "pv.h"

typedef unsigned long long entry;
extern entry kernel_pdpt[4], kernel_pd[512], image_pt[512];
extern char __text_start[], __text_end[], __rodata_end[];
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE)

static word boot_parameters;

const char *arch_command_line(void)
{
	word address = *(u32 *)DIRECT(boot_parameters + 0x228);
	return address && address < 0x4000000 ? DIRECT(address) : "";
}

/* ---- page tables ---- */
static void set_rights(char *start, char *end, entry clear, entry set)
{
	for (word a = (word)start; a < (word)end; a += PAGE) {
		entry *found = &image_pt[a >> 12 & 511];
		pv_set_entry(PHYSICAL(found), (*found & ~clear) | set);
	}
}

void arch_start(word boot)
{
	boot_parameters = boot;
	pv_start();
	pv_set_entry_now(PHYSICAL(kernel_pdpt), 0); /* the loader's view */
	set_rights(__text_start, __text_end, PTE_W, 0);
	set_rights(__text_end, __rodata_end, PTE_W, PTE_NX);
	set_rights(__rodata_end, __volatile_end, 0, PTE_NX);
	set_rights(__volatile_end, __text_start + 0x200000, ~0ull, 0);
	arch_root_switch(0);
}

word pv_kernel_root(void) { return PHYSICAL(kernel_pdpt); }

/* A root is a page that begins with its four pointers; the last, to the kernel's directory, all share.
 * The directories of a root are there from the start. Physical address of the last-level entry; 0: no table. */
static word entry_of(word root, word address, bool create)
{
	entry *pointers = root ? DIRECT(root) : kernel_pdpt;
	word directory = address >> 30 == 3 ? PHYSICAL(kernel_pd) : (word)(pointers[address >> 30] & PTE_ADDRESS);
	word at = directory + (address >> 21 & 511) * 8;
	entry found = *(entry *)DIRECT(at);
	if (!(found & PTE_P)) {
		if (!create)
			return 0;
		found = page_new() | PTE_P | PTE_W | PTE_A | (root ? PTE_U : 0);
		pv_set_entry_now(at, found);
	}
	return (word)(found & PTE_ADDRESS) + (address >> 12 & 511) * 8;
}

void arch_map(word root, word address, word page, word rights)
{
	pv_set_entry(entry_of(root, address, true), page | PTE_P | (rights & RIGHT_WRITE ? PTE_W : 0) |
		(rights & RIGHT_EXECUTE ? 0 : PTE_NX) | (rights & RIGHT_USER ? PTE_U : 0));
}

void arch_unmap(word root, word address)
{
	word found = entry_of(root, address, false);
	if (found)
		pv_set_entry(found, 0);
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

static void drop_tables(word directory, u32 first, u32 count)
{
	for (u32 i = first; i < first + count; i++) {
		entry found = ((entry *)DIRECT(directory))[i];
		if (!(found & PTE_P))
			continue;
		pv_set_entry_now(directory + 8 * i, 0);
		page_drop(found & PTE_ADDRESS);
	}
}

void arch_root_drop(word root)
{
	entry *pointers = DIRECT(root);
	pv_drain();
	for (u32 i = 0; i < 3; i++) {
		word directory = pointers[i] & PTE_ADDRESS;
		drop_tables(directory, 0, 512);
		page_drop(directory);
	}
	page_drop(root);
}

void arch_scratch_drop(void)
{
	pv_drain();
	drop_tables(PHYSICAL(kernel_pd), SCRATCH_AREA >> 21 & 511, 8);
	arch_flush_all();
}

/* ---- processes ---- */
word stack_for(struct frame *frame)
{
	word *stack = (word *)frame;
	*--stack = (word)RETRAP_RETURN; /* where switch_stacks returns to, below four zeros */
	return (word)(stack - 4);
}

word frame_argument(const struct frame *f, word n)
{
	return n < 4 ? (const word[]){f->r.ebx, f->r.esi, f->r.edi, f->r.ebp}[n] : *(const word *)f->r.esp;
}

bool pv_system_call(struct frame *frame) { return (void)frame, false; }

/* ---- floating point ---- */
void fpu_save(void *to) { asm volatile("fxsave (%0)" : : "r"(to) : "memory"); }
void fpu_load(const void *from) { asm volatile("fxrstor (%0)" : : "r"(from) : "memory"); }

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
