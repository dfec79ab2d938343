/* ARMv7-A, para-virtual: the form of page tables, and what user code's registers are. */
#include "kernel.h"
#include "pv.h"

extern u32 kernel_table[4096], image_tables[512], empty_table[2048];
extern char __text_start[], __text_end[], __rodata_end[];
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE + PHYSICAL_BASE)

#include "device_tree.h"

/* ---- page tables ---- */
#define SMALL 0x44e /* TEX 001 C B, S */
#define READ_ONLY 0x200
#define KERNEL_ONLY 0x10
#define USER_TOO 0x30

static void set_rights(char *start, char *end, u32 rights)
{
	for (word a = (word)start; a < (word)end; a += PAGE)
		pv_set_entry(PHYSICAL(&image_tables[(a - IMAGE_BASE) / PAGE]), PHYSICAL(a) | rights);
}

void arch_start(word boot)
{
	device_tree = boot;
	pv_start();
	set_rights(__text_start, __text_end, SMALL | KERNEL_ONLY | READ_ONLY);
	set_rights(__text_end, __rodata_end, SMALL | KERNEL_ONLY | READ_ONLY | 1);
	set_rights(__rodata_end, __volatile_end, SMALL | KERNEL_ONLY | 1);
	set_rights(__volatile_end, (char *)IMAGE_BASE + 0x200000, SMALL | KERNEL_ONLY | 1); /* the device tree is there */
	pv_set_entry(PHYSICAL(&kernel_table[0x401]), 0);
	pv_set_entry(PHYSICAL(&kernel_table[0x402]), 0);
	arch_root_switch(0);
	arch_flush_all();
}

word pv_kernel_root(void) { return PHYSICAL(empty_table); }

/* Physical address of the last-level entry; 0 where there is no table. */
static word entry_of(word root, word address, bool create)
{
	word table = address >= KERNEL_BASE ? PHYSICAL(kernel_table) : root ? root : PHYSICAL(empty_table);
	word at = table + (address >> 20) * 4, first = *(word *)DIRECT(at);
	if (!first) {
		if (!create)
			return 0;
		first = page_new() | 1;
		pv_set_entry_now(at, first);
	}
	return (first & ~0x3fful) + (address >> 12 & 255) * 4;
}

void arch_map(word root, word address, word page, word rights)
{
	pv_set_entry(entry_of(root, address, true), page | SMALL | (rights & RIGHT_USER ? USER_TOO : KERNEL_ONLY) |
		(rights & RIGHT_WRITE ? 0 : READ_ONLY) | (rights & RIGHT_EXECUTE ? 0 : 1));
}

void arch_unmap(word root, word address)
{
	word entry = entry_of(root, address, false);
	if (entry)
		pv_set_entry(entry, 0);
}

/* Two pages side by side, at a multiple of 8 KiB: 2048 entries for 2 GiB. */
word arch_root_new(void)
{
	word held[8];
	for (u32 count = 0; count < LENGTH(held);) {
		word page = held[count++] = page_new();
		if (page & PAGE)
			continue;
		word next = held[count++] = page_new();
		if (next != page + PAGE)
			continue;
		for (count -= 2; count;)
			page_drop(held[--count]);
		return page;
	}
	print("FAIL memory: no two pages side by side\n");
	checks_failed++;
	finish();
}

static void drop_tables(word table, word first, word end)
{
	for (word i = first; i < end; i++) {
		word entry = ((word *)DIRECT(table))[i];
		if (!entry)
			continue;
		pv_set_entry_now(table + 4 * i, 0);
		if ((entry & 3) == 1)
			page_drop(entry & -(word)PAGE);
	}
}

void arch_root_drop(word root)
{
	pv_drain();
	drop_tables(root, 0, 2048);
	page_drop(root);
	page_drop(root + PAGE);
}

void arch_scratch_drop(void)
{
	pv_drain();
	drop_tables(PHYSICAL(kernel_table), SCRATCH_AREA >> 20, (SCRATCH_AREA >> 20) + 16);
	drop_tables(PHYSICAL(empty_table), 0, 2048);
	arch_flush_all();
}

/* ---- processes ---- */
word stack_for(struct frame *frame)
{
	word *stack = (word *)frame - 10; /* R4-R12 and LR, as switch_stacks pops them */
	stack[9] = (word)RETRAP_RETURN;
	return (word)stack;
}

word frame_argument(const struct frame *f, word n) { return (&f->r.r0)[n]; }

bool pv_system_call(struct frame *frame)
{
	if (frame->r.r7 != SYS_SYNC)
		return false;
	pv_code_changed(frame->r.r0, frame->r.r1);
	return true;
}

/* ---- code: maintenance is privileged, and so a call ---- */
void pv_code_changed(word address, word bytes) { retrap_code_changed(address, bytes); }

static void put(void *to, const u32 *from, word count)
{
	for (word i = 0; i < count; i++)
		((volatile u32 *)to)[i] = from[i];
}

word code_set_value(void *to, word value)
{
	u32 low = 0xe3000000 | (value & 0xf000) << 4 | (value & 0xfff); /* movw r0 */
	u32 high = 0xe3400000 | (value >> 28) << 16 | (value >> 16 & 0xfff); /* movt r0 */
	put(to, (const u32[]){low, high}, 2);
	return 12;
}

word code_return(void *to, word value)
{
	put((u32 *)to + 2, (const u32[]){0xe12fff1e}, 1); /* bx lr */
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
	asm volatile("bkpt #0");
}
