/* Paging: what a change of an entry shows, and when. Only what the architectures promise. */
#include "kernel.h"

#define AREA (SCRATCH_AREA + 0x400000)
#define USER_AREA 0x20000000

static NOINLINE void read_from(word a) { (void)*(volatile word *)a; }
static NOINLINE void write_to(word a) { *(volatile word *)a = 0x77; }
static NOINLINE void call(word a) { ((word (*)(void))a)(); }
static word peek(word a) { return *(volatile word *)a; }
static void poke(word a, word v) { *(volatile word *)a = v; }

static word page_holding(word value)
{
	word page = page_new();
	*(word *)DIRECT(page) = value;
	return page;
}

static void map(word address, word page, word rights)
{
	arch_map(0, address, page, rights);
	arch_flush(address);
}

static void unmap(word address)
{
	arch_unmap(0, address);
	arch_flush(address);
}

static void check_map(void)
{
	word page = page_holding(1);
	WANT(catch_fault(read_from, AREA), true);
	arch_map(0, AREA, page, RIGHT_WRITE);
	WANT(peek(AREA), 1);
	poke(AREA + 8, 0x12345678);
	WANT(((word *)DIRECT(page))[8 / sizeof(word)], 0x12345678);
	unmap(AREA);
	WANT(catch_fault(read_from, AREA), true);
	WANT(caught.kind, FAULT_ABSENT);
	page_drop(page);
}

static void check_remap(void)
{
	word one = page_holding(1), two = page_holding(2);
	for (u32 i = 0; i < 100; i++) {
		map(AREA, i & 1 ? two : one, RIGHT_WRITE);
		WANT(peek(AREA), i & 1 ? 2 : 1);
	}
	unmap(AREA);
	page_drop(one);
	page_drop(two);
}

static void check_write_protect(void)
{
	word page = page_holding(5);
	map(AREA, page, 0);
	WANT(catch_fault(write_to, AREA), true);
	WANT(caught.kind, FAULT_PROTECTION);
	WANT(caught.access, ACCESS_WRITE);
	WANT(peek(AREA), 5);
	map(AREA, page, RIGHT_WRITE);
	WANT(catch_fault(write_to, AREA), false);
	WANT(peek(AREA), 0x77);
	map(AREA, page, 0);
	WANT(catch_fault(write_to, AREA), true);
	unmap(AREA);
	page_drop(page);
}

static void check_execute(void)
{
	word page = page_new();
	sync_code((word)DIRECT(page), code_return(DIRECT(page), 3));
	map(AREA, page, RIGHT_EXECUTE);
	WANT(catch_fault(call, AREA), false);
	map(AREA, page, 0);
	WANT(catch_fault(call, AREA), NO_EXECUTE);
	if (NO_EXECUTE)
		WANT(caught.access, ACCESS_EXECUTE);
	map(AREA, page, RIGHT_EXECUTE);
	WANT(catch_fault(call, AREA), false);
	unmap(AREA);
	page_drop(page);
}

static void check_alias(void)
{
	word page = page_new();
	map(AREA, page, RIGHT_WRITE);
	map(AREA + 0x5000, page, RIGHT_WRITE);
	map(AREA + 0x9000, page, 0);
	for (word i = 1; i < 100; i++) {
		poke(AREA + (i & 1) * 0x5000 + 8 * i, i);
		WANT(peek(AREA + 0x9000 + 8 * i), i);
		WANT(peek(AREA + (~i & 1) * 0x5000 + 8 * i), i);
	}
	unmap(AREA);
	unmap(AREA + 0x5000);
	unmap(AREA + 0x9000);
	page_drop(page);
}

static void check_two_roots(void)
{
	word roots[2], pages[2];
	for (u32 i = 0; i < 2; i++) {
		roots[i] = arch_root_new();
		pages[i] = page_holding(100 + i);
		arch_map(roots[i], USER_AREA, pages[i], RIGHT_WRITE | RIGHT_USER);
	}
	for (u32 i = 0; i < 50; i++) {
		arch_root_switch(roots[i & 1]);
		WANT(arch_root_read(), roots[i & 1]);
		WANT(peek(USER_AREA), 100 + (i & 1) + i / 2);
		poke(USER_AREA, 101 + (i & 1) + i / 2);
	}
	arch_root_switch(0);
	WANT(arch_root_read(), 0);
	WANT(catch_fault(read_from, USER_AREA), true);
	for (u32 i = 0; i < 2; i++) {
		arch_root_drop(roots[i]);
		page_drop(pages[i]);
	}
}

/* A page that was a page table and becomes data, and the other way round. */
static void check_table_reuse(void)
{
	for (word i = 0; i < 20; i++) {
		word root = arch_root_new(), page = page_holding(i), at = USER_AREA + i * 0x400000;
		arch_map(root, at, page, RIGHT_WRITE | RIGHT_USER);
		arch_root_switch(root);
		WANT(peek(at), i);
		arch_root_switch(0);
		arch_root_drop(root);
		arch_flush_all();
		word spare = page_new(); /* perhaps a frame that was a table */
		memset(DIRECT(spare), 0xff, PAGE);
		page_drop(spare);
		page_drop(page);
	}
}

/* Many pages at once: more than any cache of translations holds. */
static void check_many_pages(void)
{
	static word pages[300];
	for (word i = 0; i < LENGTH(pages); i++) {
		pages[i] = page_holding(i);
		arch_map(0, AREA + i * PAGE, pages[i], RIGHT_WRITE);
	}
	for (word round = 0; round < 3; round++)
		for (word i = 0; i < LENGTH(pages); i++) {
			WANT(peek(AREA + i * PAGE), i + round);
			poke(AREA + i * PAGE, i + round + 1);
		}
	for (word i = 0; i < LENGTH(pages); i++) {
		unmap(AREA + i * PAGE);
		page_drop(pages[i]);
		pages[i] = 0;
	}
}

static const struct check checks[] = {
	{"paging.map-and-unmap", check_map, 0, 0},
	{"paging.remap", check_remap, 0, 0},
	{"paging.write-protect", check_write_protect, 0, 0},
	{"paging.execute", check_execute, 0, 0},
	{"paging.alias", check_alias, 0, 0},
	{"paging.two-roots", check_two_roots, 0, 0},
	{"paging.table-reuse", check_table_reuse, 0, 0},
	{"paging.many-pages", check_many_pages, 0, 0},
};

void check_paging(void)
{
	run_checks(checks, LENGTH(checks));
}
