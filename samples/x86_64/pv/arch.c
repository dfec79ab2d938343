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
/* What the hypervisor does with them is a word of the shared page: it keeps others in their place, and they are memory;
 * or the processor walks them as they are. Then a page that is to be one loses its right to be written first, and what an
 * entry in use holds is the machine's frame number, which is asked for, or looked up in a table of ours. */
enum { SHADOWED, ASKED_FOR, LOOKED_UP };
#define WAY RETRAP_SHARED_WORD(RETRAP_SHARED + 0xc00)
#define FIRST_FRAME RETRAP_SHARED_WORD(RETRAP_SHARED + 0xc08)
#define NUMBERS ((const u32 *)RETRAP_SHARED_WORD(RETRAP_SHARED + 0xc18))
#define KEPT 50 /* our user and global bits are so many bits higher, since theirs are the hypervisor's */
#define OURS 0x104ul
#define HYPERVISOR_SLOT(i) ((i) >= 256 && (i) < 272)

extern word image_pt[512], direct_pt[];
extern char page_tables[], page_tables_end[];

static word get_entry(word pointer)
{
	word entry = *(volatile word *)DIRECT(pointer), frame = (entry & PTE_ADDRESS) >> 12;
	if (WAY == SHADOWED || !(entry & PTE_P) || frame < FIRST_FRAME)
		return entry;
	if (WAY == LOOKED_UP)
		return (entry & ~(PTE_ADDRESS | OURS | OURS << KEPT)) | (entry >> KEPT & OURS) |
			(word)NUMBERS[frame - FIRST_FRAME] << 12;
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

static void set_rights(char *start, char *end, word rights)
{
	for (word a = (word)start; a < (word)end; a += PAGE) {
		bool table = a >= (word)page_tables && a < (word)page_tables_end;
		pv_set_entry(PHYSICAL(&image_pt[a >> 12 & 511]),
			rights ? (a - KERNEL_BASE) | PTE_A | PTE_D | (table ? rights & ~(word)PTE_W : rights) : 0);
	}
}

/* A page that is a table as soon as its entry is stored. */
static word table_new(word rights)
{
	word page = page_new();
	may_write(page, false);
	return page | PTE_P | PTE_W | PTE_A | rights;
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
		retrap_pin(root, 4);
}

void arch_start(word boot)
{
	boot_parameters = boot;
	pv_start();
	set_rights(__text_start, __text_end, PTE_P);
	set_rights(__text_end, __rodata_end, PTE_P | PTE_NX);
	set_rights(__rodata_end, __volatile_end, PTE_P | PTE_W | PTE_NX);
	set_rights(__volatile_end, __text_start + 0x200000, 0);
	/* The scratch area's top entry exists from the start, so that every root has it. */
	pv_set_entry_now(PHYSICAL(kernel_pml4 + (SCRATCH_AREA >> 39 & 511)), table_new(0));
	root_is_one(PHYSICAL(kernel_pml4));
	arch_flush_all();
}

word pv_kernel_root(void) { return PHYSICAL(kernel_pml4); }

/* The table that was found last: many an entry follows another of it. */
static struct { word root, area, table; } known VOLATILE_DATA;

/* Physical address of the last-level entry; 0 where there is no table. */
static word entry_of(word root, word address, bool create)
{
	word table = root ? root : PHYSICAL(kernel_pml4);
	if (known.table && known.root == root && known.area == address >> 21)
		return known.table + (address >> 12 & 511) * 8;
	for (u32 shift = 39; shift > 12; shift -= 9) {
		word at = table + (address >> shift & 511) * 8, entry = get_entry(at);
		if (!(entry & PTE_P)) {
			if (!create)
				return 0;
			entry = table_new(root ? PTE_U : 0);
			pv_set_entry_now(at, entry);
		}
		table = entry & PTE_ADDRESS;
	}
	known.root = root;
	known.area = address >> 21;
	known.table = table;
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
	for (u32 i = 256; i < 512; i++)
		if (!HYPERVISOR_SLOT(i))
			((word *)DIRECT(root))[i] = get_entry(PHYSICAL(kernel_pml4 + i));
	may_write(root, false);
	root_is_one(root);
	return root;
}

static void drop_tables(word table, u32 level, u32 last)
{
	known.table = 0;
	for (u32 i = 0; i < last; i++) {
		word page = get_entry(table + 8 * i);
		if (!(page & PTE_P))
			continue;
		page &= PTE_ADDRESS;
		if (level)
			drop_tables(page, level - 1, 512);
		pv_set_entry_now(table + 8 * i, 0);
		table_drop(page);
	}
}

void arch_root_drop(word root)
{
	pv_drain();
	drop_tables(root, 2, 256);
	if (WAY != SHADOWED)
		retrap_unpin(root);
	table_drop(root);
}

void arch_scratch_drop(void)
{
	word at = PHYSICAL(kernel_pml4 + (SCRATCH_AREA >> 39 & 511)), table = get_entry(at) & PTE_ADDRESS;
	pv_drain();
	drop_tables(table, 1, 512);
	pv_set_entry_now(at, 0);
	table_drop(table);
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
