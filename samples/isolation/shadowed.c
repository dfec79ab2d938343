/* An unmodified kernel that tries to get at what is not its own memory: whatever it writes into its page tables, what
 * is there must be its own, or a bus with nothing on it, or a fault. It runs on an architecture's layer of the portable
 * sample; what only x86-64 has is tried there. Each attempt prints a line. */
#include "kernel.h"

#define AREA 0x10000000ul /* of the user half */
#define POOL 256
#define ROUND 32          /* pages that are tried at once */

u32 checks_done, checks_failed;
bool return_broken;
static word free_pages[POOL], free_count, failed, root;
static volatile word got;

void *memset(void *to, int c, word n)
{
	for (u8 *d = to; n; n--)
		*d++ = c;
	return to;
}

void *memcpy(void *to, const void *from, word n)
{
	u8 *d = to;
	for (const u8 *s = from; n; n--)
		*d++ = *s++;
	return to;
}

word page_new(void)
{
	if (!free_count)
		arch_power_off(true);
	return free_pages[--free_count];
}

void page_drop(word page)
{
	memset(DIRECT(page), 0, PAGE);
	free_pages[free_count++] = page;
}

void want(word value, word wanted, const char *what) { (void)value, (void)wanted, (void)what; }
void finish(void) { arch_power_off(true); }
void timer_interrupt(struct frame *frame, bool from_user) { (void)frame, (void)from_user; }
void system_call(struct frame *frame) { (void)frame; }

extern word catch_stack;
void catch_resume(void) NORETURN;
struct fault caught;

void trap(struct frame *frame, const struct fault *fault, bool from_user)
{
	(void)frame, (void)from_user;
	if (!catch_stack) {
		print("FAIL fault %d at %x, PC %x\n", fault->kind, fault->address, fault->pc);
		arch_power_off(true);
	}
	caught = *fault;
	catch_resume();
}

static NOINLINE void read_from(word address) { got = *(volatile word *)address; }
static NOINLINE void write_to(word address) { *(volatile word *)address = 0x5a5a5a5a; }

static void check(bool held, const char *what, word where)
{
	if (!held || where == ~0ul)
		print("%s %s %x\n", held ? "held" : "FAIL", what, where);
	failed += !held;
}

/* Nothing of anybody's is behind an address: a fault, or a bus that gives ones whatever was stored. */
static void nothing_at(word address, const char *what, word where)
{
	bool held = true;
	for (word i = 0; i < 2; i++) {
		got = ~0ul;
		if (!catch_fault(read_from, address))
			held &= got == ~0ul;
		catch_fault(write_to, address);
	}
	check(held, what, where);
}

static const word foreign[] = {
#if __SIZEOF_LONG__ == 8
	1ul << 36,		      (1ul << 36) + 0x1000,	    (1ul << 36) + (1ul << 32),
	(1ul << 36) + (2ul << 32),    (1ul << 36) + (2ul << 32) + 0x1e0000,
	(1ul << 36) + (2ul << 32) + (1ul << 24), (1ul << 37),	    (1ul << 37) + 0x1000000,
	(1ul << 37) + 0x1001000,      (1ul << 37) + 0x2000000,	    1ul << 38,
	1ul << 40,		      (1ul << 47) + 0x1000000,
#else
	0xc0000000ul, 0xc0001000ul, 0xc4000000ul, 0xc9000000ul, 0xc91e0000ul, 0xd0000000ul, 0xd0001000ul, 0xd1000000ul,
	0xfffff000ul, 0x68000000ul, 0x60000000ul,
#endif
};

static void mapped_pages(void)
{
	for (word i = 0; i < LENGTH(foreign); i++) {
		arch_map(root, AREA, foreign[i], RIGHT_WRITE | RIGHT_USER);
		arch_flush(AREA);
		nothing_at(AREA, "a page of another's", foreign[i]);
		arch_map(root, AREA, foreign[i], RIGHT_USER);
		arch_flush(AREA);
		nothing_at(AREA, "the same to be read", foreign[i]);
	}
	arch_unmap(root, AREA);
	arch_flush(AREA);
	print("held pages\n");
}

static void without_a_flush(void)
{
	word own = page_new();
	*(volatile word *)DIRECT(own) = 0x1234;
	for (word i = 0; i < LENGTH(foreign); i++) {
		arch_map(root, AREA + PAGE, own, RIGHT_WRITE | RIGHT_USER);
		arch_flush(AREA + PAGE);
		read_from(AREA + PAGE);
		arch_map(root, AREA + PAGE, foreign[i], RIGHT_WRITE | RIGHT_USER);
		got = 0x1234;
		catch_fault(read_from, AREA + PAGE);
		check(got == 0x1234 || got == ~0ul, "what was there, or nothing", foreign[i]);
	}
	arch_unmap(root, AREA + PAGE);
	arch_flush_all();
	page_drop(own);
	print("held stale entries\n");
}

/* Pages beside one's own, which may be mapped ahead with them. */
static void beside_own_pages(void)
{
	word own = page_new();
	for (word i = 0; i < LENGTH(foreign); i++) {
		for (word page = 0; page < ROUND; page++)
			arch_map(root, AREA + 0x400000 + page * PAGE, page % 4 && foreign[i] + page * PAGE > foreign[i] ? foreign[i] + page * PAGE : own,
				RIGHT_WRITE | RIGHT_USER);
		arch_flush_all();
		for (word page = 0; page < ROUND; page++)
			if (page % 4 && foreign[i] + page * PAGE > foreign[i])
				nothing_at(AREA + 0x400000 + page * PAGE, "a page beside one's own", foreign[i]);
			else
				write_to(AREA + 0x400000 + page * PAGE);
	}
	page_drop(own);
	print("held pages beside one's own\n");
}

#ifdef __x86_64__
#define HERE 0x40000000ul /* not of AREA's tables */
#define ALL (PTE_P | PTE_W | PTE_U | PTE_A | PTE_D)

static word *table_of(word table) { return DIRECT(table & PTE_ADDRESS); }

static void tables(void)
{
	word third = page_new(), second = page_new(), first = page_new(), own = page_new();
	word *l4 = table_of(root), *l3 = table_of(third), *l2 = table_of(second), *l1 = table_of(first);
	word *at = &table_of(l4[0])[1], before = *at;
	for (word i = 0; i < LENGTH(foreign); i++) {
		word there = foreign[i] | ALL;
		*at = there;
		arch_flush_all();
		nothing_at(HERE, "a table of level 2 of another's", foreign[i]);
		*at = second | ALL;
		l2[0] = there;
		l2[1] = there | PTE_LARGE;
		l2[2] = (foreign[i] & -0x200000ul) | ALL | PTE_LARGE;
		l2[3] = first | ALL;
		for (word entry = 0; entry < 512; entry++) /* looked at, and written: ready to be mapped ahead */
			l1[entry] = entry & 1 ? own | ALL : (foreign[i] + entry * PAGE) | ALL;
		arch_flush_all();
		nothing_at(HERE, "a table of pages of another's", foreign[i]);
		nothing_at(HERE + 0x200000, "a large page", foreign[i]);
		nothing_at(HERE + 0x400000, "an aligned large page", foreign[i]);
		for (word entry = 0; entry < 64; entry++)
			if (entry & 1)
				write_to(HERE + 0x600000 + entry * PAGE);
			else
				nothing_at(HERE + 0x600000 + entry * PAGE, "a page that is marked", foreign[i]);
		l4[1] = there;
		arch_flush_all();
		nothing_at(1ul << 39, "a table of level 3 of another's", foreign[i]);
		l4[1] = third | ALL;
		l3[0] = (foreign[i] & -0x40000000ul) | ALL | PTE_LARGE;
		arch_flush_all();
		nothing_at(1ul << 39, "a GiB", foreign[i]);
	}
	*at = before;
	l4[1] = 0;
	arch_flush_all();
	page_drop(third), page_drop(second), page_drop(first), page_drop(own);
	print("held tables\n");
}

/* Memory ends within a large page. */
static void straddling(void)
{
	word second = page_new(), *l2 = table_of(second), *at = &table_of(table_of(root)[0])[1], before = *at;
	*at = second | ALL;
	l2[0] = 0x3e00000 | ALL | PTE_LARGE;
	arch_flush_all();
	write_to(HERE);
	read_from(HERE);
	check(got == 0x5a5a5a5a, "the first half is one's own", 0);
	for (word page = 0x100; page < 0x200; page += 0x20)
		nothing_at(HERE + page * PAGE, "the rest of a large page", page);
	*at = 0 | ALL | PTE_LARGE;
	arch_flush_all();
	nothing_at(HERE + 0x3f00000, "the rest of a GiB", 0x3f00000);
	*at = before;
	arch_flush_all();
	*(volatile word *)DIRECT(0x3e00000) = 0;
	print("held large pages\n");
}

/* Entries that are written through the table's own mapping. */
static void through_itself(void)
{
	word *l4 = table_of(root);
	l4[100] = root | PTE_P | PTE_W | PTE_A;
	arch_map(root, AREA, foreign[0], RIGHT_WRITE | RIGHT_USER);
	arch_flush_all();
	word entry = 0x8000000000 * 100 + (AREA >> 12) * 8;
	for (word i = 0; i < LENGTH(foreign); i++) {
		*(volatile word *)entry = foreign[i] | ALL;
		arch_flush(AREA);
		nothing_at(AREA, "an entry written by its own mapping", foreign[i]);
		*(volatile word *)(0x8000000000 * 100 + (0x40000000 * 100ul) + (AREA >> 21) * 8) |= PTE_A | PTE_D;
	}
	l4[100] = 0;
	arch_unmap(root, AREA);
	arch_flush_all();
	print("held a table in itself\n");
}

#define WINDOW 0xffffffffffe00000
#define SHARED_PAGE 0xfffffffffffe0000

static void window(void)
{
	for (word page = 0; page < 0x1e0000; page += 0x10000)
		check(catch_fault(write_to, WINDOW + page), "a store into fixups", page);
	for (word i = 0; i < 512; i++)
		if (i) /* the interrupt flag is the guest's to write */
			catch_fault(write_to, SHARED_PAGE + 8 * i);
	print("held the window\n");
}
#endif

#if defined(__i386__) || defined(__aarch64__) || defined(__arm__)
/* What an entry is, and where the one is that leads to the last table on the way to an address. */
#ifdef __i386__
typedef unsigned long long entry_of_table;
#define ENTRY_TABLE(page) ((page) | PTE_P | PTE_W | PTE_U)
#define ENTRY_PAGE(page) ((page) | PTE_P | PTE_W | PTE_U | PTE_A | PTE_D)
#define ENTRY_LARGE(page) (ENTRY_PAGE(page) | PTE_LARGE)
#define TABLE_ADDRESS 0xfffff000
#define LARGE 0x200000
#define LAST 0x3e00000 /* of the largest page in which memory ends: where it is, */
#define LAST_OWN 0x100000 /* the bytes that are memory, */
#define LAST_BYTES LARGE  /* and all */
#define ENTRY_LAST ENTRY_LARGE(LAST)
#define OWN_WINDOW 0xff200000
#define FIXUP_BYTES 0x1e0000
#define OWN_SHARED 0xff3e0000
#elif defined(__aarch64__)
typedef word entry_of_table;
#define ENTRY_TABLE(page) ((page) | PTE_TABLE)
#define ENTRY_PAGE(page) ((page) | PTE_PAGE | PTE_USER | PTE_NOT_GLOBAL | PTE_PXN | PTE_UXN)
#define ENTRY_LARGE(page) ((page) | PTE_BLOCK | PTE_USER | PTE_NOT_GLOBAL | PTE_PXN | PTE_UXN)
#define TABLE_ADDRESS PTE_ADDRESS
#define LARGE 0x200000
#define LAST (PHYSICAL_BASE + 0x3e00000)
#define LAST_OWN 0x100000
#define LAST_BYTES LARGE
#define ENTRY_LAST ENTRY_LARGE(LAST)
#define OWN_WINDOW 0xffff800007e00000
#define FIXUP_BYTES 0x1ff000
#define OWN_SHARED 0xffff800007fff000
#else
typedef u32 entry_of_table;
#define ENTRY_TABLE(page) ((page) | 1)
#define ENTRY_PAGE(page) ((page) | 0x47f) /* user code too, not executable */
#define ENTRY_LARGE(page) ((page) | 0x11c1e) /* a section */
#define TABLE_ADDRESS 0xfffffc00
#define LARGE 0x100000
#define LAST (PHYSICAL_BASE + 0x3000000)
#define LAST_OWN 0xf00000
#define LAST_BYTES 0x1000000
#define ENTRY_LAST (ENTRY_LARGE(LAST) | 1 << 18) /* a supersection, which sixteen entries say */
#define OWN_WINDOW 0xbfc00000
#define FIXUP_BYTES 0x1fe000
#define OWN_SHARED 0xbfdfe000
#endif
#define HERE (AREA + 0x1000000)

static entry_of_table *above(word address)
{
#ifdef __arm__
	return (entry_of_table *)DIRECT(root) + address / LARGE;
#else
	entry_of_table *table = DIRECT(root);
#ifdef __aarch64__
	table = DIRECT(table[address >> 39 & 511] & TABLE_ADDRESS);
#endif
	table = DIRECT((word)table[address >> 30 & 511] & TABLE_ADDRESS);
	return &table[address >> 21 & 511];
#endif
}

static void set(entry_of_table *at, entry_of_table entry)
{
	*(volatile entry_of_table *)at = entry;
	arch_flush_all();
}

static void tables(void)
{
	word first = page_new(), own = page_new();
	entry_of_table *at = above(HERE), *lower = DIRECT(first);
	for (word i = 0; i < LENGTH(foreign); i++) {
		set(at, ENTRY_TABLE(foreign[i]));
		nothing_at(HERE, "a table of pages of another's", foreign[i]);
		set(at, ENTRY_LARGE(foreign[i] & -(word)LARGE));
		nothing_at(HERE, "a large page", foreign[i]);
		for (word entry = 0; entry < LARGE / PAGE; entry++) /* looked at, and written: ready to be mapped ahead */
			lower[entry] = ENTRY_PAGE((entry_of_table)(entry & 1 ? own : foreign[i]));
		set(at, ENTRY_TABLE(first));
		for (word entry = 0; entry < 64; entry++)
			if (entry & 1)
				write_to(HERE + entry * PAGE);
			else
				nothing_at(HERE + entry * PAGE, "a page that is marked", foreign[i]);
	}
	set(at, 0);
	page_drop(first), page_drop(own);
	print("held tables\n");
}

static void straddling(void)
{
	for (word part = 0; part < LAST_BYTES / LARGE; part++)
		set(above(HERE) + part, ENTRY_LAST);
	write_to(HERE);
	read_from(HERE);
	check((u32)got == 0x5a5a5a5a, "the beginning is one's own", 0);
	for (word at = LAST_OWN; at < LAST_BYTES; at += 0x20000)
		nothing_at(HERE + at, "the rest of a large page", at);
	for (word part = 0; part < LAST_BYTES / LARGE; part++)
		set(above(HERE) + part, 0);
	print("held large pages\n");
}

/* A table that maps itself to be written, and another, each with and without a flush. */
static void through_itself(void)
{
	word lower = (word)*above(AREA) & TABLE_ADDRESS, upper = (word)above(AREA) & -(word)PAGE;
	word mapped = AREA + 2 * PAGE + (AREA >> 12) % (LARGE / PAGE) * sizeof(entry_of_table);
	arch_map(root, AREA + 2 * PAGE, lower & -(word)PAGE, RIGHT_WRITE | RIGHT_USER);
	arch_map(root, AREA + 3 * PAGE, upper - (word)DIRECT(root) + root, RIGHT_WRITE | RIGHT_USER);
	arch_flush_all();
	for (word i = 0; i < LENGTH(foreign); i++) {
		*(volatile entry_of_table *)mapped = ENTRY_PAGE(foreign[i]);
		got = ~0ul;
		catch_fault(read_from, AREA);
		arch_flush(AREA);
		nothing_at(AREA, "an entry written by its own mapping", foreign[i]);
		word slot = AREA + 3 * PAGE + (word)above(HERE) % PAGE;
		*(volatile entry_of_table *)slot = ENTRY_LARGE(foreign[i] & -(word)LARGE);
		nothing_at(HERE, "a large page written by a table's mapping", foreign[i]);
		*(volatile entry_of_table *)slot = ENTRY_TABLE(foreign[i]);
		arch_flush_all();
		nothing_at(HERE, "a table written by a table's mapping", foreign[i]);
		*(volatile entry_of_table *)slot = 0;
		arch_flush_all();
	}
	arch_unmap(root, AREA + 2 * PAGE);
	arch_unmap(root, AREA + 3 * PAGE);
	arch_flush_all();
	print("held a table in itself\n");
}

static void window(void)
{
	for (word page = 0; page < FIXUP_BYTES; page += 0x10000) /* each other page may be the shared one */
		check(catch_fault(write_to, OWN_WINDOW + page), "a store into fixups", page);
	print("held the window\n");
	for (word i = 0; i < PAGE / sizeof(word); i++)
		catch_fault(write_to, OWN_SHARED + sizeof(word) * i);
}
#endif

#if defined(__x86_64__) || defined(OWN_WINDOW)
#define EVERYTHING
#endif

void kernel_main(word boot)
{
	for (word i = 0; i < POOL; i++)
		free_pages[i] = POOL_START + (POOL - 1 - i) * PAGE;
	free_count = POOL;
	arch_start(boot);
	root = arch_root_new();
	arch_root_switch(root);
	arch_map(root, AREA, page_new(), RIGHT_WRITE | RIGHT_USER);
	mapped_pages();
	without_a_flush();
	beside_own_pages();
#ifdef EVERYTHING
	tables();
	straddling();
	through_itself();
	window();
#endif
	print("%d failed\n", failed);
	arch_power_off(failed != 0);
}
