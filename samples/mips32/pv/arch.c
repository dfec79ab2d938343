/* MIPS32, para-virtual: the form of page tables, and what user code's registers are. */
#include "kernel.h"
#include "pv.h"

extern word kernel_root[TABLE_ENTRIES];
#define PHYSICAL(symbol) ((word)(symbol) - KSEG0)

static word *arguments;

const char *arch_command_line(void)
{
	return arguments && arguments[0] && arguments[1] ? (const char *)arguments[1] : "";
}

/* ---- page tables: a directory and tables of EntryLo words ---- */
#define LOW_VALID 0x02
#define LOW_DIRTY 0x04
#define LOW_CACHED 0x18
#define TABLE 1

void arch_start(word boot)
{
	arguments = (word *)boot;
	pv_start();
	retrap_new_base(PHYSICAL(kernel_root), 1);
	arch_root_switch(0);
}

word pv_kernel_root(void) { return PHYSICAL(kernel_root); }

/* Physical address of the last-level entry; 0 where there is no table. */
static word entry_of(word root, word address, bool create)
{
	word at = (root ? root : PHYSICAL(kernel_root)) + (address >> 22) * 4, table = *(word *)DIRECT(at);
	if (!table) {
		if (!create)
			return 0;
		table = page_new() | TABLE;
		pv_set_entry_now(at, table);
	}
	return (table & -(word)PAGE) + (address >> 12 & (TABLE_ENTRIES - 1)) * 4;
}

void arch_map(word root, word address, word page, word rights)
{
	pv_set_entry(entry_of(root, address, true),
		     page >> 6 | LOW_CACHED | LOW_VALID | (rights & RIGHT_WRITE ? LOW_DIRTY : 0));
}

void arch_unmap(word root, word address)
{
	word entry = entry_of(root, address, false);
	if (entry)
		pv_set_entry(entry, 0);
}

word arch_root_new(void) { return page_new(); }

static void drop_tables(word directory)
{
	pv_drain();
	for (word i = 0; i < TABLE_ENTRIES; i++) {
		word table = ((word *)DIRECT(directory))[i];
		if (!table)
			continue;
		pv_set_entry_now(directory + 4 * i, 0);
		page_drop(table & -(word)PAGE);
	}
}

void arch_root_drop(word root)
{
	drop_tables(root);
	page_drop(root);
}

void arch_scratch_drop(void)
{
	drop_tables(PHYSICAL(kernel_root));
	arch_flush_all();
}

/* ---- processes ---- */
word stack_for(struct frame *frame)
{
	word *stack = (word *)((word)frame - RETRAP_ROOM) - 10;
	stack[9] = (word)RETRAP_RETURN; /* RA, above eight saved registers and FP */
	return (word)stack;
}

word frame_argument(const struct frame *f, word n) { return (&f->r.r4)[n]; }
bool pv_system_call(struct frame *frame) { return (void)frame, false; }

/* ---- code: as user code maintains it ---- */
void pv_code_changed(word address, word bytes)
{
	static word step; /* asked for once: reading it is not free */
	word end = address + bytes;
	if (!step)
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
