/* Paging: what a change of an entry shows, and when. Only what the architecture promises. */
#include "kernel.h"

#define AREA (SCRATCH_AREA + 0x400000)
#define LARGE (SCRATCH_AREA + 0x800000)
#define RW (PTE_P | PTE_W | PTE_NX)

static NOINLINE void read_from(u64 a) { (void)*(volatile u64 *)a; }
static NOINLINE void write_to(u64 a) { *(volatile u64 *)a = 0x77; }
static NOINLINE void call(u64 a) { ((void (*)(void))a)(); }
static u64 peek(u64 a) { return *(volatile u64 *)a; }
static void poke(u64 a, u64 v) { *(volatile u64 *)a = v; }
static u64 *entry_of(u64 a) { return page_entry(PHYSICAL(kernel_pml4), a, PTE_P | PTE_W | PTE_A); }

static u64 page_holding(u64 value)
{
	u64 page = page_new();
	*(u64 *)direct(page) = value;
	return page;
}

static void check_map(void)
{
	u64 page = page_holding(1);
	WANT(catch_fault(read_from, AREA), true);
	map_page(AREA, page, RW); /* absent to present needs no invalidation */
	WANT(peek(AREA), 1);
	poke(AREA + 8, 0x123456789abcdef0);
	WANT(((u64 *)direct(page))[1], 0x123456789abcdef0);
	unmap_page(AREA);
	WANT(catch_fault(read_from, AREA), true);
	WANT(caught.vector, 14);
	page_drop(page);
}

static void check_remap(void)
{
	u64 one = page_holding(1), two = page_holding(2);
	for (u32 i = 0; i < 100; i++) {
		map_page(AREA, i & 1 ? two : one, RW);
		invlpg(AREA);
		WANT(peek(AREA), i & 1 ? 2 : 1);
	}
	unmap_page(AREA);
	page_drop(one);
	page_drop(two);
}

static void check_write_protect(void)
{
	u64 page = page_holding(5);
	map_page(AREA, page, PTE_P | PTE_NX);
	WANT(catch_fault(write_to, AREA), true);
	WANT(caught.error, 3);
	WANT(peek(AREA), 5);
	write_cr0(CR0_VALUE & ~CR0_WP);
	WANT(read_cr0(), CR0_VALUE & ~CR0_WP);
	WANT(catch_fault(write_to, AREA), false);
	write_cr0(CR0_VALUE);
	WANT(peek(AREA), 0x77);
	WANT(catch_fault(write_to, AREA), true);
	*entry_of(AREA) |= PTE_W;
	invlpg(AREA);
	WANT(catch_fault(write_to, AREA), false);
	unmap_page(AREA);
	page_drop(page);
}

static void check_no_execute(void)
{
	u64 page = page_holding(0xc3); /* ret */
	map_page(AREA, page, PTE_P | PTE_NX);
	WANT(catch_fault(call, AREA), true);
	WANT(caught.error, 0x11);
	map_page(AREA, page, PTE_P);
	invlpg(AREA);
	WANT(catch_fault(call, AREA), false);
	/* NX of a directory holds for all pages below it. */
	u64 *directory = directory_entry(PHYSICAL(kernel_pml4), AREA, 0);
	*directory |= PTE_NX;
	invlpg(AREA);
	WANT(catch_fault(call, AREA), true);
	WANT(caught.error, 0x11);
	*directory &= ~PTE_NX;
	invlpg(AREA);
	WANT(catch_fault(call, AREA), false);
	unmap_page(AREA);
	page_drop(page);
}

/* Rights of a directory entry restrict all below it. */
static void check_directory_rights(void)
{
	u64 page = page_holding(0);
	map_page(AREA, page, RW);
	u64 *directory = directory_entry(PHYSICAL(kernel_pml4), AREA, 0);
	*directory &= ~PTE_W;
	invlpg(AREA);
	WANT(catch_fault(write_to, AREA), true);
	WANT(caught.error, 3);
	*directory = (*directory | PTE_W) & ~PTE_P;
	invlpg(AREA);
	WANT(catch_fault(read_from, AREA), true);
	WANT(caught.error, 0);
	*directory |= PTE_P;
	invlpg(AREA);
	WANT(catch_fault(write_to, AREA), false);
	unmap_page(AREA);
	page_drop(page);
}

static void check_large(void)
{
	u64 *directory = directory_entry(PHYSICAL(kernel_pml4), LARGE, PTE_P | PTE_W | PTE_A);
	*directory = LARGE_FRAME | RW | PTE_LARGE;
	poke(LARGE, 11);
	poke(LARGE + 0x1ffff8, 22);
	WANT(peek(DIRECT_MAP + LARGE_FRAME), 11);
	WANT(peek(DIRECT_MAP + LARGE_FRAME + 0x1ffff8), 22);
	WANT(peek((u64)directory) & (PTE_A | PTE_D), PTE_A | PTE_D);
	*directory = LARGE_FRAME | PTE_P | PTE_NX | PTE_LARGE;
	invlpg(LARGE + 0x5000); /* any address of the page invalidates all of it */
	WANT(catch_fault(write_to, LARGE), true);
	WANT(caught.error, 3);
	WANT(caught.cr2, LARGE);
	/* Split: small pages with one hole. */
	u64 table = page_new();
	for (u64 i = 0; i < 512; i++)
		((u64 *)direct(table))[i] = i == 7 ? 0 : (LARGE_FRAME + i * 4096) | RW;
	*directory = table | PTE_P | PTE_W | PTE_A;
	write_cr3(read_cr3());
	WANT(peek(LARGE), 11);
	WANT(peek(LARGE + 0x1ffff8), 22);
	WANT(catch_fault(read_from, LARGE + 7 * 4096), true);
	WANT(caught.cr2, LARGE + 7 * 4096);
	*directory = 0;
	write_cr3(read_cr3());
	page_drop(table);
	WANT(catch_fault(read_from, LARGE), true);
	*(u64 *)direct(LARGE_FRAME) = *(u64 *)direct(LARGE_FRAME + 0x1ffff8) = 0;
}

static u64 accessed_dirty(u64 a) { return peek((u64)entry_of(a)) & (PTE_A | PTE_D); }

static void check_accessed_dirty(void)
{
	u64 page = page_holding(0);
	map_page(AREA, page, RW);
	WANT(accessed_dirty(AREA), 0);
	peek(AREA);
	WANT(accessed_dirty(AREA), PTE_A);
	poke(AREA, 1);
	WANT(accessed_dirty(AREA), PTE_A | PTE_D);
	*entry_of(AREA) &= ~(u64)(PTE_A | PTE_D);
	invlpg(AREA);
	peek(AREA);
	WANT(accessed_dirty(AREA), PTE_A);
	*entry_of(AREA) &= ~(u64)(PTE_A | PTE_D);
	invlpg(AREA);
	poke(AREA, 2);
	WANT(accessed_dirty(AREA), PTE_A | PTE_D);
	*entry_of(AREA) &= ~(u64)PTE_D; /* as writeback does */
	invlpg(AREA);
	peek(AREA);
	WANT(accessed_dirty(AREA), PTE_A);
	poke(AREA, 3);
	WANT(accessed_dirty(AREA), PTE_A | PTE_D);
	unmap_page(AREA);
	page_drop(page);
}

static void check_directory_accessed(void)
{
	u64 page = page_holding(0);
	map_page(AREA, page, RW);
	u64 *directory = directory_entry(PHYSICAL(kernel_pml4), AREA, 0);
	*directory &= ~(u64)PTE_A;
	invlpg(AREA);
	peek(AREA);
	WANT(peek((u64)directory) & PTE_A, PTE_A);
	unmap_page(AREA);
	page_drop(page);
}

static void check_root_reload(void)
{
	u64 one = page_holding(1), two = page_holding(2);
	map_page(AREA, one, RW);
	WANT(peek(AREA), 1);
	map_page(AREA, two, RW);
	write_cr3(read_cr3());
	WANT(peek(AREA), 2);
	unmap_page(AREA);
	page_drop(one);
	page_drop(two);
}

static void check_global(void)
{
	u64 one = page_holding(1), two = page_holding(2);
	map_page(AREA, one, RW | PTE_G);
	WANT(peek(AREA), 1);
	map_page(AREA, two, RW | PTE_G);
	invlpg(AREA); /* global or not */
	WANT(peek(AREA), 2);
	map_page(AREA, one, RW | PTE_G);
	write_cr4(CR4_VALUE & ~CR4_PGE);
	WANT(peek(AREA), 1);
	WANT(read_cr4(), CR4_VALUE & ~CR4_PGE);
	map_page(AREA, two, RW | PTE_G);
	write_cr3(read_cr3()); /* PGE is off: nothing is global */
	WANT(peek(AREA), 2);
	write_cr4(CR4_VALUE);
	WANT(read_cr4(), CR4_VALUE);
	WANT(peek(AREA), 2);
	unmap_page(AREA);
	page_drop(one);
	page_drop(two);
}

static void check_alias(void)
{
	u64 page = page_holding(0);
	map_page(AREA, page, RW);
	map_page(AREA + 0x5000, page, RW);
	map_page(AREA + 0x9000, page, PTE_P | PTE_NX);
	for (u64 i = 1; i < 100; i++) {
		poke(AREA + (i & 1) * 0x5000 + 8 * i, i);
		WANT(peek(AREA + 0x9000 + 8 * i), i);
		WANT(peek(AREA + (~i & 1) * 0x5000 + 8 * i), i);
	}
	unmap_page(AREA);
	unmap_page(AREA + 0x5000);
	unmap_page(AREA + 0x9000);
	page_drop(page);
}

static void check_two_roots(void)
{
	u64 roots[2] = {root_new(), root_new()};
	for (u32 i = 0; i < 2; i++)
		*page_entry(roots[i], AREA - SCRATCH_AREA, PTE_P | PTE_W | PTE_U | PTE_A) = page_holding(100 + i) | RW | PTE_U;
	for (u32 i = 0; i < 50; i++) {
		write_cr3(roots[i & 1]);
		WANT(read_cr3(), roots[i & 1]);
		WANT(peek(AREA - SCRATCH_AREA), 100 + (i & 1) + i / 2);
		poke(AREA - SCRATCH_AREA, 101 + (i & 1) + i / 2);
	}
	write_cr3(PHYSICAL(kernel_pml4));
	WANT(catch_fault(read_from, AREA - SCRATCH_AREA), true);
	root_drop(roots[0]);
	root_drop(roots[1]);
}

/* A root whose entry 300 is itself: its tables are read and changed through their own mapping. */
static void check_recursive(void)
{
	u64 root = root_new(), one = page_holding(1), two = page_holding(2);
	((u64 *)direct(root))[300] = root | RW;
	*page_entry(root, 0x600000, PTE_P | PTE_W | PTE_A) = one | RW;
	u64 table_entry = 0xffff000000000000 | 300ul << 39 | (0x600000 >> 12) * 8;
	write_cr3(root);
	WANT(peek(0x600000), 1);
	WANT(peek(table_entry) & PTE_ADDRESS, one);
	for (u32 i = 0; i < 20; i++) {
		poke(table_entry, (i & 1 ? one : two) | RW);
		invlpg(0x600000);
		WANT(peek(0x600000), i & 1 ? 1 : 2);
		WANT(peek(table_entry) & PTE_A, PTE_A);
	}
	poke(table_entry, 0);
	invlpg(0x600000);
	WANT(catch_fault(read_from, 0x600000), true);
	write_cr3(PHYSICAL(kernel_pml4));
	((u64 *)direct(root))[300] = 0;
	root_drop(root);
	page_drop(one);
	page_drop(two);
}

/* A page that was a page table and becomes data, and the other way round. */
static void check_table_reuse(void)
{
	for (u32 i = 0; i < 20; i++) {
		u64 root = root_new(), page = page_holding(i);
		*page_entry(root, 0x600000 + i * 0x200000ul, PTE_P | PTE_W | PTE_A) = page | RW;
		write_cr3(root);
		WANT(peek(0x600000 + i * 0x200000ul), i);
		write_cr3(PHYSICAL(kernel_pml4));
		root_drop(root);
		u64 spare = page_new(); /* the frame that was the root */
		memset(direct(spare), 0xff, 4096);
		page_drop(spare);
	}
}

static const struct check checks[] = {
	{"paging.map-and-unmap", check_map, 0, 0},
	{"paging.remap", check_remap, 0, 0},
	{"paging.write-protect", check_write_protect, 0, 0},
	{"paging.no-execute", check_no_execute, 0, 0},
	{"paging.directory-rights", check_directory_rights, 0, 0},
	{"paging.large-pages", check_large, 0, 0},
	{"paging.accessed-and-dirty", check_accessed_dirty, 0, 0},
	{"paging.directory-accessed", check_directory_accessed, 0, 0},
	{"paging.root-reload", check_root_reload, 0, 0},
	{"paging.global-pages", check_global, 0, 0},
	{"paging.alias", check_alias, 0, 0},
	{"paging.two-roots", check_two_roots, 0, 0},
	{"paging.recursive-table", check_recursive, 0, 0},
	{"paging.table-reuse", check_table_reuse, 0, 0},
};

void check_paging(void)
{
	run_checks(checks, LENGTH(checks));
}
