/* AArch64, para-virtual: the form of page tables, and what user code's registers are. */
#include "kernel.h"
#include "pv.h"

extern word kernel_table[512], kernel_middle[512], empty_table[512], direct_tables[DIRECT_PAGES];
extern char __text_start[], __text_end[], __rodata_end[], page_tables[], page_tables_end[];
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE + PHYSICAL_BASE)

#include "device_tree.h"

/* ---- page tables ---- */
/* What the hypervisor does with them is a word of the shared page: it keeps others in their place, and they are memory;
 * or the processor walks them as they are. Then a page that is to be one loses its right to be written first, and what an
 * entry in use holds is the machine's frame number, which is asked for, or looked up in a table of ours. */
enum { SHADOWED, ASKED_FOR, LOOKED_UP };
#define WAY RETRAP_SHARED_WORD(RETRAP_SHARED + 0xc00)
#define FIRST_FRAME RETRAP_SHARED_WORD(RETRAP_SHARED + 0xc08)
#define NUMBERS ((const u32 *)RETRAP_SHARED_WORD(RETRAP_SHARED + 0xc18))
#define KEPT 49 /* our user bit is so many bits higher: every page is open to EL0, which our kernel runs at */
#define OPENED (1ul << 56) /* and what the kernel may execute EL0 may: this says that UXN was ours */
#define HYPERVISOR_SLOT(i) ((i) >= 448 && (i) < 456) /* of a root */
#define OF_MEMORY(page) PHYSICAL(&direct_tables[((page) - PHYSICAL_BASE) / PAGE])

static word get_entry(word pointer)
{
	word entry = *(volatile word *)DIRECT(pointer), frame = (entry & PTE_ADDRESS) >> 12;
	if (WAY == SHADOWED || !(entry & 1) || frame < FIRST_FRAME)
		return entry;
	if (WAY == LOOKED_UP) {
		if (entry & OPENED)
			entry ^= OPENED | PTE_UXN;
		return (entry & ~(PTE_ADDRESS | PTE_USER | (word)PTE_USER << KEPT)) | (entry >> KEPT & PTE_USER) |
			(word)NUMBERS[frame - FIRST_FRAME] << 12;
	}
	struct retrap_update one = {pointer, 0};
	retrap_pte_read((word)&one, 1);
	return one.value;
}

/* The kernel's own mapping of a page, before it becomes a table and when it is none any more. */
static void may_write(word page, bool writable)
{
	if (WAY != SHADOWED)
		pv_set_entry(OF_MEMORY(page), page | PTE_PAGE | PTE_PXN | PTE_UXN | (writable ? 0 : PTE_READ_ONLY));
}

static void set_rights(char *start, char *end, word rights)
{
	for (word a = (word)start; a < (word)end; a += PAGE) {
		word table = a >= (word)page_tables && a < (word)page_tables_end ? PTE_READ_ONLY : 0;
		pv_set_entry(OF_MEMORY(PHYSICAL(a)), PHYSICAL(a) | PTE_PAGE | PTE_UXN | rights | table);
	}
}

/* A page that is a table as soon as its entry is stored. */
static word table_new(void)
{
	word page = page_new();
	may_write(page, false);
	return page | PTE_TABLE;
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
	device_tree = boot;
	pv_start();
	set_rights(__text_start, __text_end, PTE_READ_ONLY);
	set_rights(__text_end, __rodata_end, PTE_READ_ONLY | PTE_PXN);
	root_is_one(PHYSICAL(empty_table));
	arch_root_switch(0);
	arch_flush_all();
}

word pv_kernel_root(void) { return PHYSICAL(empty_table); }

/* The table that was found last: many an entry follows another of it. */
static struct { word root, area, table; } known VOLATILE_DATA;

/* Physical address of the last-level entry; 0 where there is no table. */
static word entry_of(word root, word address, bool create)
{
	word table = address >> 63 ? PHYSICAL(kernel_table) : root ? root : PHYSICAL(empty_table);
	if (known.table && known.root == root && known.area == address >> 21)
		return known.table + (address >> 12 & 511) * 8;
	for (u32 shift = 39; shift > 12; shift -= 9) {
		word at = table + (address >> shift & 511) * 8, entry = get_entry(at);
		if (!entry) {
			if (!create)
				return 0;
			entry = table_new();
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
	word no_execute = PTE_PXN | PTE_UXN;
	if (rights & RIGHT_EXECUTE)
		no_execute = rights & RIGHT_USER ? PTE_PXN : PTE_UXN;
	pv_set_entry(entry_of(root, address, true), page | PTE_PAGE | no_execute | (address >> 63 ? 0 : PTE_NOT_GLOBAL) |
		(rights & RIGHT_USER ? PTE_USER : 0) | (rights & RIGHT_WRITE ? 0 : PTE_READ_ONLY));
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
	may_write(root, false);
	root_is_one(root);
	return root;
}

static void drop_tables(word table, word first, word end, u32 levels)
{
	known.table = 0;
	for (word i = first; i < end; i++) {
		word entry = levels == 3 && HYPERVISOR_SLOT(i) ? 0 : get_entry(table + 8 * i);
		if ((entry & 3) != PTE_TABLE)
			continue;
		if (levels > 1)
			drop_tables(entry & PTE_ADDRESS, 0, 512, levels - 1);
		pv_set_entry_now(table + 8 * i, 0);
		table_drop(entry & PTE_ADDRESS);
	}
}

void arch_root_drop(word root)
{
	pv_drain();
	drop_tables(root, 0, 512, 3);
	if (WAY != SHADOWED)
		retrap_unpin(root);
	table_drop(root);
}

void arch_scratch_drop(void)
{
	word first = SCRATCH_AREA >> 21 & 511;
	pv_drain();
	drop_tables(PHYSICAL(kernel_middle), first, first + 8, 1);
	drop_tables(PHYSICAL(empty_table), 0, 512, 3);
	arch_flush_all();
}

/* ---- processes ---- */
word stack_for(struct frame *frame)
{
	word *stack = (word *)frame - 12; /* X19-X30, as switch_stacks loads them */
	stack[11] = (word)RETRAP_RETURN;
	return (word)stack;
}

word frame_argument(const struct frame *f, word n) { return (&f->r.x0)[n]; }
bool pv_system_call(struct frame *frame) { return (void)frame, false; }

/* ---- code: as user code maintains it, but where it runs from our own pages ---- */
void pv_code_changed(word address, word bytes)
{
	word type;
	if (WAY != SHADOWED) {
		retrap_code_changed(address, bytes);
		return;
	}
	asm volatile("mrs %0, ctr_el0" : "=r"(type));
	word data = 4ul << (type >> 16 & 15), code = 4ul << (type & 15), end = address + bytes;
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
