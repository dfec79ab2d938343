/* i386, para-virtual: the form of page tables, and what user code's registers are. */
#include "kernel.h"
#include "pv.h"

typedef unsigned long long entry;
extern entry kernel_pdpt[4], kernel_pd[512], image_pt[512], direct_pt[];
extern char __text_start[], __text_end[], __rodata_end[], page_tables[], page_tables_end[];
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE)

static word boot_parameters;

const char *arch_command_line(void)
{
	word address = *(u32 *)DIRECT(boot_parameters + 0x228);
	return address && address < 0x4000000 ? DIRECT(address) : "";
}

/* ---- page tables ---- */
/* What the hypervisor does with them is a word of the shared page: it keeps others in their place, and they are memory;
 * or the processor walks them as they are. Then a page that is to be one loses its right to be written first, and what an
 * entry in use holds is the machine's frame number, which is asked for, or looked up in a table of ours. */
enum { SHADOWED, ASKED_FOR, LOOKED_UP };
#define WAY RETRAP_SHARED_WORD(RETRAP_SHARED + 0xc00)
#define FIRST_FRAME RETRAP_SHARED_WORD(RETRAP_SHARED + 0xc04)
#define NUMBERS ((const u32 *)RETRAP_SHARED_WORD(RETRAP_SHARED + 0xc0c))
#define KEPT 50 /* our user and global bits are so many bits higher, since theirs are the hypervisor's */
#define OURS 0x104ull

static entry get_entry(word pointer)
{
	entry found = *(volatile entry *)DIRECT(pointer);
	word frame = (found & PTE_ADDRESS) >> 12;
	if (WAY == SHADOWED || !(found & PTE_P) || frame < FIRST_FRAME)
		return found;
	if (WAY == LOOKED_UP)
		return (found & ~(PTE_ADDRESS | OURS | OURS << KEPT)) | (found >> KEPT & OURS) |
			(entry)NUMBERS[frame - FIRST_FRAME] << 12;
	struct retrap_update one = {pointer, 0};
	retrap_pte_read((word)&one, 1);
	return one.value;
}

/* The kernel's own mapping of a page, before it becomes a table and when it is none any more. */
static void may_write(word page, bool writable)
{
	if (WAY != SHADOWED)
		pv_set_entry(PHYSICAL(direct_pt) + page / PAGE * 8,
			page | PTE_P | PTE_A | PTE_D | PTE_NX | (writable ? PTE_W : 0));
}

static void set_rights(char *start, char *end, entry rights)
{
	for (word a = (word)start; a < (word)end; a += PAGE) {
		bool table = a >= (word)page_tables && a < (word)page_tables_end;
		pv_set_entry(PHYSICAL(&image_pt[a >> 12 & 511]),
			rights ? (a - KERNEL_BASE) | PTE_A | PTE_D | (table ? rights & ~(entry)PTE_W : rights) : 0);
	}
}

/* A page that is a table as soon as its entry is stored. */
static word table_new(void)
{
	word page = page_new();
	may_write(page, false);
	return page;
}

/* Nothing leads to a table any more. */
static void table_drop(word page)
{
	may_write(page, true);
	pv_drain();
	page_drop(page);
}

/* A root stays a table while others are in use, so that it is not looked through each time. */
static void root_is_one(word root)
{
	pv_drain();
	if (WAY != SHADOWED)
		retrap_pin(root, 3);
}

void arch_start(word boot)
{
	boot_parameters = boot;
	pv_start();
	set_rights(__text_start, __text_end, PTE_P);
	set_rights(__text_end, __rodata_end, PTE_P | PTE_NX);
	set_rights(__rodata_end, __volatile_end, PTE_P | PTE_W | PTE_NX);
	set_rights(__volatile_end, __text_start + 0x200000, 0);
	root_is_one(PHYSICAL(kernel_pdpt));
	arch_root_switch(0);
}

word pv_kernel_root(void) { return PHYSICAL(kernel_pdpt); }

/* A root is a page that begins with its four pointers; the last, to the kernel's directory, all share.
 * The directories of a root are there from the start. Physical address of the last-level entry; 0: no table. */
static word entry_of(word root, word address, bool create)
{
	word pointers = root ? root : PHYSICAL(kernel_pdpt);
	word directory = address >> 30 == 3 ? PHYSICAL(kernel_pd) :
		(word)(get_entry(pointers + 8 * (address >> 30)) & PTE_ADDRESS);
	word at = directory + (address >> 21 & 511) * 8;
	entry found = get_entry(at);
	if (!(found & PTE_P)) {
		if (!create)
			return 0;
		found = table_new() | PTE_P | PTE_W | PTE_A | (root ? PTE_U : 0);
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
		pointers[i] = table_new() | PTE_P;
	pointers[3] = get_entry(PHYSICAL(kernel_pdpt + 3));
	may_write(root, false);
	root_is_one(root);
	return root;
}

static void drop_tables(word directory, u32 first, u32 count)
{
	for (u32 i = first; i < first + count; i++) {
		entry found = get_entry(directory + 8 * i);
		if (!(found & PTE_P))
			continue;
		pv_set_entry_now(directory + 8 * i, 0);
		table_drop(found & PTE_ADDRESS);
	}
}

void arch_root_drop(word root)
{
	pv_drain();
	for (u32 i = 0; i < 3; i++) {
		word directory = get_entry(root + 8 * i) & PTE_ADDRESS;
		drop_tables(directory, 0, 512);
		pv_set_entry_now(root + 8 * i, 0);
		table_drop(directory);
	}
	if (WAY != SHADOWED)
		retrap_unpin(root);
	table_drop(root);
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

/* ---- code: nothing to maintain but where it runs from our own pages ---- */
void pv_code_changed(word address, word bytes)
{
	if (WAY != SHADOWED)
		retrap_code_changed(address, bytes);
}

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
