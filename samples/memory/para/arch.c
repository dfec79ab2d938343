/* The memory workload's para-virtual port. How it changes page tables is up to what the hypervisor does
 * with them (a word of the shared page): SHADOWED, it stores into them itself; DIRECT, each store is a call, and each
 * load; BATCHED, stores are queued, a table that gets many is opened and edited as memory, and loads are translated
 * here. A page that becomes a table loses its right to be written first. */
#include "kernel.h"
#include "retrap.h"

struct frame { struct retrap_frame r; };

enum { SHADOWED, DIRECT_WAY, BATCHED };
#define WAY (*(volatile word *)(RETRAP_SHARED + 0xc00))
#define FIRST_FRAME (*(volatile word *)(RETRAP_SHARED + 0xc08))
#define NUMBERS (*(u32 *volatile *)(RETRAP_SHARED + 0xc18))
#define MANY 32 /* stores into one table from which on it is opened */

extern word KERNEL_ROOT[512];
extern char page_tables[], page_tables_end[];
void arch_end(word status) NORETURN;

static struct retrap_update queue[256] VOLATILE_DATA;
static struct retrap_element calls[512] VOLATILE_DATA;
static word queued VOLATILE_DATA, in_one VOLATILE_DATA, root_in_use VOLATILE_DATA;
/* Tables that are edited as memory: one that was unhooked, or one that was never hooked in, with where it will be. */
static struct { word table, pointer, value; } opened[96] VOLATILE_DATA;
static word open_count VOLATILE_DATA, recent[2] VOLATILE_DATA;
static struct retrap_update links[LENGTH(opened)] VOLATILE_DATA;
static u8 trap_stack[8192] VOLATILE_DATA __attribute__((aligned(16)));
static char line[128] VOLATILE_DATA;
static u32 line_length VOLATILE_DATA;

static void fail(const char *what, word value)
{
	(void)value;
	retrap_console_write((word)what, 24);
	arch_end(1);
}

void arch_put_char(char c)
{
	line[line_length++] = c;
	if (c != '\n' && line_length < sizeof(line))
		return;
	retrap_console_write((word)line, line_length);
	line_length = 0;
}

/* ---- entries: by the physical address of each ---- */
static word direct_entry(word page) { return PHYSICAL(page_tables_end) - 0x20000 + PAGE_NUMBER(page) * 8; }

static void drain(void);
static word get_entry(word pointer);

static void call_many(word count)
{
	word n = count;
	if (n && retrap_multicall((word)calls, n) != n)
		fail("FAIL multicall         \n", n);
	for (word i = 0; i < n; i++)
		if ((long)calls[i].result < 0)
			fail("FAIL call of many      \n", i);
}

static word element(word at, word number, word first, word second)
{
	calls[at] = (struct retrap_element){number, 0, {first, second, 0, 0}};
	return at + 1;
}

/* Opened tables are tables again. */
static void close_tables(void)
{
	word n = 0, fresh = 0;
	for (word i = 0; i < open_count; i++) {
		word table = opened[i].table, entry = get_entry(direct_entry(table));
		n = element(n, RETRAP_CALL_PTE_UPDATE_PAGE, (word)DIRECT(table), CLOSED(entry));
		if (opened[i].pointer)
			links[fresh++] = (struct retrap_update){opened[i].pointer, opened[i].value};
		else
			n = element(n, RETRAP_CALL_TABLE_CLOSE, table, 0);
	}
	if (fresh)
		n = element(n, RETRAP_CALL_PTE_UPDATE, (word)links, fresh);
	open_count = recent[0] = recent[1] = 0;
	call_many(n);
}

static void drain(void)
{
	word count = queued;
	queued = in_one = 0;
	if (count && retrap_pte_update((word)queue, count) != count)
		fail("FAIL update            \n", count);
	if (open_count)
		close_tables();
}

/* The two that were asked for last are found at once: fork goes through two processes together. */
static bool is_open(word table)
{
	if (recent[0] == table || recent[1] == table)
		return true;
	for (word i = 0; i < open_count; i++) {
		if (opened[i].table == table) {
			recent[0] = recent[1];
			recent[1] = table;
			return true;
		}
	}
	return false;
}

/* What is queued goes first, and no longer counts as a row of stores. */
static void open_table(word table)
{
	word n = 0, entry = get_entry(direct_entry(table));
	if (open_count == LENGTH(opened))
		drain();
	if (queued)
		n = element(n, RETRAP_CALL_PTE_UPDATE, (word)queue, queued);
	n = element(n, RETRAP_CALL_TABLE_OPEN, table, 0);
	n = element(n, RETRAP_CALL_PTE_UPDATE_PAGE, (word)DIRECT(table), OPEN(entry));
	call_many(n);
	queued = in_one = 0;
	opened[open_count].table = table;
	opened[open_count++].pointer = 0;
}

/* A table of pages that nothing leads to yet: filled as memory, and hooked in with the rest. */
static void hook_later(word table, word pointer, word value)
{
	if (open_count == LENGTH(opened))
		drain();
	opened[open_count].table = table;
	opened[open_count].pointer = pointer;
	opened[open_count++].value = value;
}

static void set_entry(word pointer, word value, bool last)
{
	word table = pointer & -(word)PAGE;
	if (WAY == SHADOWED) {
		*(volatile word *)DIRECT(pointer) = value;
	} else if (WAY == DIRECT_WAY) {
		struct retrap_update one = {pointer, value};
		if (retrap_pte_update((word)&one, 1) != 1)
			fail("FAIL store             \n", pointer);
	} else if (last && open_count && is_open(table)) {
		*(volatile word *)DIRECT(pointer) = value;
	} else {
		in_one = queued && (queue[queued - 1].pointer & -(word)PAGE) == table ? in_one + 1 : 0;
		if (last && in_one == MANY) {
			open_table(table);
			*(volatile word *)DIRECT(pointer) = value;
			return;
		}
		if (queued == LENGTH(queue))
			drain();
		queue[queued++] = (struct retrap_update){pointer, value};
	}
}

static word get_entry(word pointer)
{
	word entry, frame;
	if (WAY == DIRECT_WAY) {
		struct retrap_update one = {pointer, 0};
		if ((long)retrap_pte_read((word)&one, 1) < 0)
			fail("FAIL load              \n", pointer);
		return one.value;
	}
	for (word i = queued; i--;)
		if (queue[i].pointer == pointer)
			return queue[i].value;
	for (word i = 0; i < open_count; i++)
		if (opened[i].pointer == pointer)
			return opened[i].value;
	entry = *(volatile word *)DIRECT(pointer);
	frame = (entry & PTE_ADDRESS) >> 12;
	if (WAY == BATCHED && entry & PRESENT && frame >= FIRST_FRAME)
		entry = OWN_BITS(entry) | (word)NUMBERS[frame - FIRST_FRAME] << 12;
	return entry;
}

/* The kernel's own mapping of a page, and whether it may write by it. */
static void may_write(word page, bool writable)
{
	word at = direct_entry(page), entry = get_entry(at);
	set_entry(at, writable ? OPEN(entry) : CLOSED(entry), false);
}

/* ---- what the workload asks for ---- */
static word entry_of(word root, word address, bool create)
{
	word table = root ? root : PHYSICAL(KERNEL_ROOT);
	for (u32 shift = 39; shift > 12; shift -= 9) {
		word at = table + (address >> shift & 511) * 8, entry = get_entry(at);
		if (!(entry & PRESENT)) {
			if (!create)
				return 0;
			entry = TABLE_ENTRY(page_new(), root);
			if (WAY == BATCHED && shift == 21) {
				hook_later(entry & PTE_ADDRESS, at, entry);
			} else {
				if (WAY != SHADOWED)
					may_write(entry & PTE_ADDRESS, false);
				set_entry(at, entry, false);
			}
		}
		table = entry & PTE_ADDRESS;
	}
	return table + (address >> 12 & 511) * 8;
}

/* The tables that were found last, for the next page of a row; two, since fork goes through two processes at once. */
static struct { word root, area, table; } known[2] VOLATILE_DATA;
static word known_next VOLATILE_DATA;

static void forget_known(void) { memset(known, 0, sizeof(known)); }

static word found(word root, word address, bool create)
{
	for (word i = 0; WAY == BATCHED && i < LENGTH(known); i++)
		if (known[i].table && known[i].root == root && known[i].area == address >> 21)
			return known[i].table + (address >> 12 & 511) * 8;
	word entry = entry_of(root, address, create);
	known[known_next].root = root;
	known[known_next].area = address >> 21;
	known[known_next].table = entry & -(word)PAGE;
	known_next ^= 1;
	return entry;
}

void arch_map(word root, word address, word page, word rights)
{
	set_entry(found(root, address, true), LEAF(page, rights), true);
}

void arch_unmap(word root, word address)
{
	word entry = found(root, address, false);
	if (entry)
		set_entry(entry, 0, true);
}

void arch_flush(word address)
{
	drain();
	retrap_flush_page(address);
}

void arch_flush_all(void)
{
	drain();
	retrap_flush_all();
}

void arch_root_switch(word root)
{
	drain();
	root_in_use = root;
	if (retrap_new_base(root ? root : PHYSICAL(KERNEL_ROOT), 0))
		fail("FAIL root              \n", root);
}

word arch_root_new(void)
{
	word root = page_new();
	for (word i = PROCESS_SLOTS; i < 512; i++)
		if (SHARED_SLOT(i) && KERNEL_ROOT[i] & PRESENT)
			((word *)DIRECT(root))[i] = get_entry(PHYSICAL(KERNEL_ROOT) + 8 * i);
	if (WAY != SHADOWED)
		may_write(root, false);
	return root;
}

static void drop_tables(word table, u32 level, u32 last, void (*drop)(word))
{
	for (u32 i = 0; i < last; i++) {
		word entry = get_entry(table + 8 * i);
		if (!(entry & PRESENT))
			continue;
		if (level)
			drop_tables(entry & PTE_ADDRESS, level - 1, 512, drop);
		drop(entry & PTE_ADDRESS);
	}
}

static void unprotect(word page) { may_write(page, true); }

/* The root is not in use: nothing is a table of it any more. */
void arch_root_drop(word root)
{
	drain();
	if (WAY != SHADOWED) {
		drop_tables(root, 2, PROCESS_SLOTS, unprotect);
		unprotect(root);
		drain();
	}
	drop_tables(root, 2, PROCESS_SLOTS, page_drop);
	page_drop(root);
	forget_known();
}

/* ---- exceptions: a handler is a function of a frame, and to return from it is RETURN ---- */
static void on_fault(struct frame *frame)
{
	if (queued || open_count) { /* what was missed may be there already */
		drain();
		return;
	}
	struct fault fault = {FAULT_OTHER, frame->r.detail & 3, frame->r.address, frame->r.pc};
	if (frame->r.trap == RETRAP_TRAP_PAGE_FAULT)
		fault.kind = frame->r.detail & RETRAP_ACCESS_PRESENT ? FAULT_PROTECTION : FAULT_ABSENT;
	trap(frame, &fault, frame->r.state & RETRAP_STATE_USER);
	drain();
}

void arch_start(word boot)
{
	static const word handlers[RETRAP_TRAPS] = {
		(word)on_fault, (word)on_fault, (word)on_fault, (word)on_fault,
		(word)on_fault, (word)on_fault, (word)on_fault, (word)on_fault,
	};
	(void)boot;
	retrap_interrupts_off();
	retrap_set_trap_table((word)handlers, RETRAP_TRAPS);
	retrap_stack_switch((word)trap_stack + sizeof(trap_stack));
}

bool timer_pending(void) { return retrap_version() == 0; }

/* All that depends on the way taken is forgotten: the memory that is left is the same. */
void arch_power_off(bool failed)
{
	drain();
	memset(queue, 0, sizeof(queue));
	memset(calls, 0, sizeof(calls));
	memset(opened, 0, sizeof(opened));
	memset(links, 0, sizeof(links));
	memset(trap_stack, 0, sizeof(trap_stack));
	forget_known();
	known_next = 0;
	arch_end(failed);
	for (;;)
		;
}
