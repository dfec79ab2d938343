/* A para-virtual guest whose own page tables are walked, and that tries to get at what is not its own: its neighbour's
 * frames, the hypervisor's, its own tables. Whoever is its neighbour lies in the machine frames before its own. Each
 * attempt must be refused, or end in a fault; each prints a line. */
#include "kernel.h"
#include "retrap.h"
#include WALKED_ISA /* what entries are, and how user code is entered */

struct frame { struct retrap_frame r; };

extern word KERNEL_ROOT[512];
extern char page_tables[], page_tables_end[];
void arch_end(word status) NORETURN;
#define WORD_AT(offset) (*(volatile word *)(RETRAP_SHARED + (offset)))
#define FIRST (WORD_AT(0xc08))    /* machine frame */
#define COUNT (WORD_AT(0xc10))
#define REFUSED (WORD_AT(0xc20))
#define OWNERS 0x2000000ul       /* the machine's first frame, which is the hypervisor's */
#define AREA 0x10000000ul
#define MEMORY(offset) (FIRST_BYTE + (offset))
#define L1 MEMORY(0x1800000ul)   /* physical: pages of memory that are tables in turn */
#define L2 MEMORY(0x1801000ul)
#define L3 MEMORY(0x1802000ul)
#define L4 MEMORY(0x1803000ul)
#define SPARE MEMORY(0x1804000ul)
#define OTHER MEMORY(0x1805000ul)
#define DATA MEMORY(0x1900000ul)
#define SLOT(number) (UPPER_HALF | (word)(number) << 39)

static u8 trap_stack[8192] __attribute__((aligned(16)));
static char line[128];
static u32 line_length;
static volatile word faults, failed, refusals, user_trap;
word user_return;

void *memset(void *to, int c, word n)
{
	for (u8 *d = to; n; n--)
		*d++ = c;
	return to;
}

void arch_put_char(char c)
{
	line[line_length++] = c;
	if (c != '\n' && line_length < sizeof(line))
		return;
	retrap_console_write((word)line, line_length);
	line_length = 0;
}

/* An instruction that faults is skipped: it is one of the two below. User code is over, whatever it did. */
static void on_fault(struct frame *frame)
{
	extern char reads[], read_over[], writes[], write_over[], user_over[];
	if (frame->r.state & RETRAP_STATE_USER) {
		user_trap = frame->r.trap;
		frame->r.state = 0;
		frame->r.pc = (word)user_over;
		frame->r.STACK = user_return;
		return;
	}
	faults++;
	if (frame->r.pc == (word)reads) {
		frame->r.pc = (word)read_over;
	} else if (frame->r.pc == (word)writes) {
		frame->r.pc = (word)write_over;
	} else {
		print("FAIL fault %d at %x, PC %x\n", frame->r.trap, frame->r.address, frame->r.pc);
		arch_end(1);
	}
}

static NOINLINE bool can_read(word address)
{
	word before = faults, value;
	asm volatile(".globl reads, read_over\nreads: " LOAD "\nread_over:" : "=r"(value) : "r"(address) : "memory");
	return faults == before;
}

static NOINLINE bool can_write(word address, word value)
{
	word before = faults;
	asm volatile(".globl writes, write_over\nwrites: " STORE "\nwrite_over:" : : "r"(value), "r"(address) : "memory");
	return faults == before;
}

static void check(bool held, const char *what)
{
	print("%s %s\n", held ? "held" : "FAIL", what);
	failed += !held;
}

/* A call must be refused, whatever the reason is. */
static void refused(word result, const char *what)
{
	refusals++;
	check((long)result < 0, what);
}

static word store(word pointer, word value)
{
	struct retrap_update one = {pointer, value};
	return retrap_pte_update((word)&one, 1);
}

static word entry_of_direct(word page) { return PHYSICAL(page_tables_end) - 0x20000 + PAGE_NUMBER(page) * 8; }

static void writable(word page, bool may)
{
	store(entry_of_direct(page), may ? KERNEL_WRITES(page) : KERNEL_READS(page));
	retrap_flush_page((word)DIRECT(page));
}

static void put(word table, word index, word entry) { ((volatile word *)DIRECT(table))[index] = entry; }

static void clear(word page)
{
	writable(page, true);
	memset(DIRECT(page), 0, PAGE);
}

/* A space of its own, whose tables are the frames L1 to L4; at AREA nothing. */
static void build(void)
{
	for (word page = L1; page <= OTHER; page += PAGE)
		clear(page);
	put(L4, 0, HIDDEN(L3));
	put(L3, 0, INNER(L2));
	put(L2, AREA >> 21 & 511, INNER(L1));
	for (word i = 0; i < 512; i++) {
		if (!SHARED_SLOT(i))
			continue;
		struct retrap_update entry = {PHYSICAL(KERNEL_ROOT) + 8 * i, 0};
		retrap_pte_read((word)&entry, 1);
		put(L4, i, entry.value);
	}
	for (word page = L1; page <= L4; page += PAGE)
		writable(page, false);
	check(retrap_new_base(L4, 0) == 0, "a space of one's own is had");
}

static void leave(void) { retrap_new_base(PHYSICAL(KERNEL_ROOT), 0); }

static void foreign_frames(void)
{
	const struct { word frame; const char *whose; } frames[] = {
		{FIRST - 1, "a neighbour's frame"},	  {FIRST - COUNT, "a neighbour's first frame"},
		{OWNERS, "the hypervisor's tables"},	  {OWNERS + 4, "a table of the hypervisor's"},
		{FIRST + COUNT, "a frame behind one's own"}, {FIRST_BYTE / PAGE + COUNT, "a frame behind one's memory"},
		{1ul << 24, "shadow tables"},		  {(1ul << 24) + (1 << 20), "translated code"},
		{(1ul << 24) + (2 << 20), "the hypervisor's window"}, {DEVICE / PAGE, "a device"},
		{LAST_FRAME, "the last frame there can be"},
	};
	for (word i = 0; i < LENGTH(frames); i++) {
		word at = frames[i].frame << 12;
		if (frames[i].frame - FIRST_BYTE / PAGE < COUNT)
			continue;
		print("- %s\n", frames[i].whose);
		refused(store(L1, READS(at)), "mapped to be read");
		refused(store(L1, WRITES(at)), "mapped to be written");
		refused(store(L2 + 8, TABLE(at)), "as a table of pages");
		refused(store(L3 + 8, TABLE(at)), "as a table of tables");
		refused(store(L4 + 8, TABLE(at)), "below a root");
		refused(store(L2 + 8, LARGE(at & -0x200000ul)), "by a large page");
		refused(retrap_pin(at, 1), "pinned as a table");
		refused(retrap_new_base(at, 0), "as a root");
		refused(store(at, 0), "stored to");
		refused(retrap_unpin(at), "unpinned");
	}
	check(!can_read(AREA), "nothing came of it");
}

static void own_tables(void)
{
	for (word table = L1; table <= L4; table += PAGE) {
		refused(store(L1, WRITES(table)), "a table of one's own mapped to be written");
		refused(store(entry_of_direct(table), WRITES(table)), "the same where it is mapped already");
		check(!can_write((word)DIRECT(table), 1), "a store to a table");
	}
	check(store(L1, READS(L1)) == 1, "a table may be read");
	check(can_read(AREA), "and is");
	check(!can_write(AREA, WRITES(DATA)), "a store there");
	refused(store(L2 + 8, LARGE(PHYSICAL(KERNEL_ROOT) & -0x200000ul)), "a large page that holds tables");
	refused(store(L2 + 8, LARGE(L1 & -0x200000ul)), "another");
	refused(retrap_pin(DATA, 1), "a page that can be written, pinned as a table");
	refused(store(L2 + 8, TABLE(DATA)), "the same hooked in");
	refused(store(L2 + 8, TABLE(L3)), "a table of another level");
	refused(store(L3 + 8, TABLE(L1)), "another");
	store(L1, 0);
	retrap_flush_page(AREA);
}

static void through_themselves(void)
{
	refused(store(L4 + 8 * 100, TABLE(L4)), "a root in itself, to be written");
	refused(store(L2 + 8 * 100, TABLE(L2)), "a table in itself, to be written");
	check(store(L4 + 8 * 100, CLOSED_TABLE(L4)) == 1, "a root in itself, to be read");
	word itself = 100ul << 39 | 100ul << 30 | 100ul << 21 | 100ul << 12;
	check(can_read(itself), "is read");
	for (word at = itself; at; at = at == itself ? 100ul << 39 : 0)
		check(!can_write(at, WRITES(DATA)), "a store through it");
	refused(store(L4 + 8 * 101, TABLE(PHYSICAL(OTHER_ROOT))), "another root in a root, to be written");
	check(retrap_pin(PHYSICAL(OTHER_ROOT), 4) == 0, "another root is pinned");
	refused(store(PHYSICAL(OTHER_ROOT) + 8 * 100, CLOSED_TABLE(L4)), "a root that holds itself, in another");
	check(retrap_unpin(PHYSICAL(OTHER_ROOT)) == 0, "and unpinned");
	store(L4 + 8 * 100, 0);
	retrap_flush_all();
}

static void large_pages(void)
{
	refused(store(L2 + 8, LARGE((FIRST + COUNT) << 12)), "a large page behind one's own");
	refused(store(L2 + 8, LARGE((FIRST << 12) - 0x200000)), "one of a neighbour's last");
	refused(store(L2 + 8, LARGE(FIRST_BYTE + (COUNT << 12))), "one behind one's memory");
	refused(store(L2 + 8, LARGE(DATA | 0x2000)), "one that is not aligned");
	refused(store(L3 + 8, LARGE(FIRST_BYTE)), "a GiB from one's first page on, which ends elsewhere");
	refused(store(L3 + 8, LARGE(OWNERS << 12)), "a GiB of the machine");
	refused(store(L4 + 8, LARGE(FIRST_BYTE)), "a large page in a root");
}

/* A translation that a processor may have kept must not outlive that what it leads to becomes a table, or data. */
static void stale_entries(void)
{
	clear(SPARE);
	store(L1, WRITES(SPARE));
	store(entry_of_direct(SPARE), KERNEL_READS(SPARE));
	check(can_write(AREA, 0), "a page of data is written");
	store(L1, READS(SPARE)); /* and no flush */
	check(retrap_pin(SPARE, 1) == 0, "the page becomes a table");
	check(!can_write(AREA, WRITES((FIRST - 1) << 12)), "a store by the entry that was");
	store(L1, 0);
	check(store(L2 + 8 * 200, TABLE(SPARE)) == 1, "the table is hooked in");
	store(SPARE, WRITES(DATA));
	word below = 200ul << 21;
	check(can_read(below), "and leads to a page");
	store(L2 + 8 * 200, 0); /* and no flush */
	retrap_unpin(SPARE);
	store(entry_of_direct(SPARE), KERNEL_WRITES(SPARE));
	put(SPARE, 0, WRITES((FIRST - 1) << 12));
	put(SPARE, 1, WRITES((FIRST - 1) << 12));
	check(!can_read(below + PAGE), "what it was made to lead to");
	word kept = can_read(below);
	check(!kept || *(volatile word *)below == *(volatile word *)DIRECT(DATA), "what it led to is one's own at most");
	retrap_flush_all();
	check(!can_read(below), "nothing is there");
	writable(SPARE, false);
	refused(retrap_pin(SPARE, 1), "the page as a table again, with what was written");
	clear(SPARE);
}

static void marks(void)
{
	word foreign = (FIRST - 1) << 12;
	refused(store(L1, READS(foreign) | MARKS), "accessed and dirty set beforehand");
	check(store(L1, foreign | MARKS) == 1, "an absent entry may say anything");
	check(!can_read(AREA), "and is absent");
	refused(store(L1, WRITES(foreign) | MARKS), "the same made present");
	store(L1, READS(DATA) | ACCESSED);
	check(can_read(AREA), "a page to be read");
	store(L1, READS(DATA) | DIRTY);
	check(!can_write(AREA, 1), "a dirty bit gives no right");
	refused(store(L1, READS(FIRST << 12 << 1) | ACCESSED), "another frame where only a mark was to change");
	store(L1, READS(L1));
	check(can_read(AREA), "the processor marks a table that maps itself");
	retrap_flush_page(AREA);
	check(!can_write(AREA, 0), "and nobody writes it");
	store(L1, 0);
	retrap_flush_page(AREA);
}

static void the_hypervisors_own(void)
{
	check(!can_write(RETRAP_CALL, 0), "the entry of calls");
	check(!can_write(RETRAP_CALL + 0x1000, 0), "fixups");
	check(!can_write(SLOT(FIRST_SLOT), 0), "the table of numbers");
	check(!can_read(SLOT(FIRST_SLOT + 1)), "what lies beside it");
	refused(store(L4 + 8 * FIRST_SLOT, 0), "a slot of the hypervisor's");
	refused(store(L4 + 8 * LAST_SLOT, TABLE(DATA)), "another");
	word kept[512];
	for (word i = 0; i < 512; i++)
		kept[i] = ((volatile word *)RETRAP_SHARED)[i];
	for (word i = 0; i < 512; i++)
		((volatile word *)RETRAP_SHARED)[i] = ~0ul;
	retrap_flush_all();
	store(L1, WRITES(DATA));
	for (word i = 0; i < 512; i++)
		((volatile word *)RETRAP_SHARED)[i] = i == 0xc20 / 8 ? ((volatile word *)RETRAP_SHARED)[i] : kept[i];
	REFUSED = kept[0xc20 / 8];
	check(can_write(AREA, 5), "the shared page overwritten harms nothing");
	store(L1, 0);
	retrap_flush_page(AREA);
	refused(retrap_time((word)DIRECT(L1)), "the time stored into a table");
	refused(retrap_pte_read((word)DIRECT(L1), 1), "entries stored into a table");
	refused(retrap_time(RETRAP_CALL), "the time stored into the entry of calls");
	refused(retrap_pte_update(SLOT(FIRST_SLOT + 1), 1), "stores that nobody can read");
	refused(retrap_call(9999, 0, 0, 0, 0), "a call that there is not");
}

static void opened_tables(void)
{
	if (retrap_table_open(L1) != 0) {
		check(WORD_AT(0xc00) == 1, "tables are opened where stores are batched");
		return;
	}
	check(!can_read(AREA), "an opened table leads nowhere");
	refused(retrap_table_open(L1), "opened twice");
	refused(retrap_table_open(L3), "another level opened");
	refused(retrap_table_open((FIRST - 1) << 12), "a neighbour's opened");
	writable(L1, true);
	put(L1, 0, WRITES((FIRST - 1) << 12));
	refused(retrap_table_close(L1), "closed while it can be written");
	writable(L1, false);
	refused(retrap_table_close(L1), "closed with a neighbour's frame");
	check(!can_read(AREA), "it is not hooked in");
	writable(L1, true);
	put(L1, 0, WRITES(L1));
	writable(L1, false);
	refused(retrap_table_close(L1), "closed with itself, to be written");
	writable(L1, true);
	put(L1, 0, 0);
	writable(L1, false);
	check(retrap_table_close(L1) == 0, "closed as it was");
	refused(retrap_table_close(L1), "closed twice");
}

/* Whether user code at AREA, which loads a word and makes a system call, gets so far. */
static NOINLINE bool user_reads(word address)
{
	static struct frame frame;
	memset(&frame, 0, sizeof(frame));
	frame.r.pc = AREA;
	frame.r.ARGUMENT = address;
	frame.r.STACK = AREA + PAGE;
	frame.r.state = RETRAP_STATE_USER;
	user_trap = ~0ul;
	ENTER_USER(&frame);
	return user_trap == RETRAP_TRAP_SYSTEM_CALL;
}

static void user_code(void)
{
	static const struct { word address; const char *what; } kernels[] = {
		{(word)KERNEL_ROOT, "the kernel's data"}, {(word)DIRECT(DATA), "its memory"},
		{RETRAP_SHARED, "the shared page"},	  {RETRAP_CALL, "the entry of calls"},
		{SLOT(FIRST_SLOT), "the table of numbers"}, {1ul << 39, "a page below an entry without the user bit"},
	};
	for (word i = 0; i < sizeof(user_program); i++)
		((volatile u8 *)DIRECT(DATA))[i] = user_program[i];
	retrap_code_changed((word)DIRECT(DATA), sizeof(user_program));
	store(L1, USER_EXECUTES(DATA));
	store(L1 + 8, USER_WRITES(DATA + PAGE));
	store(L2 + (AREA >> 21 & 511) * 8, USER_TABLE(L1));
	store(L3, USER_TABLE(L2));
	check(store(L4 + 8, HIDDEN(L3)) == 1, "the same tables without the user bit");
	check(!user_reads(AREA), "user code before its root's entry has the user bit");
	check(store(L4, USER_TABLE(L3)) == 1, "and with it");
	check(user_reads(AREA + PAGE), "user code reads its own");
	for (word i = 0; i < LENGTH(kernels); i++)
		check(!user_reads(kernels[i].address), kernels[i].what);
	check(can_read((1ul << 39) + AREA), "which the kernel reads");
	check(!user_reads((1ul << 39) + AREA), "and user code does not");
	store(L4, HIDDEN(L3));
	retrap_flush_all();
	check(!user_reads(AREA + PAGE), "user code whose entry lost the user bit");
}

void kernel_main(word boot)
{
	static const word handlers[RETRAP_TRAPS] = {
		(word)on_fault, (word)on_fault, (word)on_fault, (word)on_fault,
		(word)on_fault, (word)on_fault, (word)on_fault, (word)on_fault,
	};
	static void (*const attempts[])(void) = {
		foreign_frames, own_tables, through_themselves, large_pages, stale_entries, marks, the_hypervisors_own,
		opened_tables,	user_code,
	};
	(void)boot;
	retrap_interrupts_off();
	retrap_set_trap_table((word)handlers, RETRAP_TRAPS);
	retrap_stack_switch((word)trap_stack + sizeof(trap_stack));
	retrap_floating_point(1);
	check(WORD_AT(0xc00) != 0, "tables are walked as they are");
	for (word i = 0; i < LENGTH(attempts); i++) {
		build();
		attempts[i]();
		leave();
	}
	print("%d calls refused, %d failed\n", refusals, failed);
	arch_end(failed != 0);
}
