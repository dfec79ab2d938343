/* Physical pages and page tables. The allocator always gives the lowest free page and zeroes a
 * page when it goes, so that memory at the end does not depend on the order of events. */
#include "kernel.h"

extern u64 identity_pdpt[512], identity_pd[512], image_pt[512];

static u8 references[POOL_PAGES];

void *memset(void *to, int c, u64 n)
{
	void *d = to;
	u64 words = n / 8, bytes = n % 8, pattern = 0x0101010101010101 * (u8)c;
	asm volatile("rep stosq" : "+D"(d), "+c"(words) : "a"(pattern) : "memory");
	asm volatile("rep stosb" : "+D"(d), "+c"(bytes) : "a"(c) : "memory");
	return to;
}

void *memcpy(void *to, const void *from, u64 n)
{
	void *d = to;
	u64 words = n / 8, bytes = n % 8;
	asm volatile("rep movsq" : "+D"(d), "+S"(from), "+c"(words) : : "memory");
	asm volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(bytes) : : "memory");
	return to;
}

int memcmp(const void *a, const void *b, u64 n)
{
	const u8 *p = a, *q = b;
	for (; n; n--, p++, q++)
		if (*p != *q)
			return *p - *q;
	return 0;
}

static void set_rights(char *start, char *end, u64 clear, u64 set)
{
	for (u64 a = (u64)start; a < (u64)end; a += 4096) {
		u64 *entry = &image_pt[(a >> 12) & 511];
		*entry = (*entry & ~clear) | set;
	}
}

void memory_start(void)
{
	kernel_pml4[0] = 0;
	memset(identity_pdpt, 0, 4096);
	memset(identity_pd, 0, 4096);
	set_rights(__text_start, __text_end, PTE_W, PTE_G);
	set_rights(__text_end, __rodata_end, PTE_W, PTE_G | PTE_NX);
	set_rights(__rodata_end, __volatile_end, 0, PTE_G | PTE_NX);
	set_rights(__volatile_end, __text_start + 0x200000, ~0ul, 0);
	/* The scratch area's top entry exists from the start, so that every root has it. */
	kernel_pml4[(SCRATCH_AREA >> 39) & 511] = page_new() | PTE_P | PTE_W | PTE_A;
	write_cr3(PHYSICAL(kernel_pml4));
	write_cr4(CR4_VALUE & ~CR4_PGE);
	write_cr4(CR4_VALUE);
	write_cr0(CR0_VALUE);
}

u64 page_new(void)
{
	for (u32 i = 0; i < POOL_PAGES; i++) {
		if (!references[i]) {
			references[i] = 1;
			return POOL_START + i * 4096ul;
		}
	}
	print("FAIL memory: no page left\n");
	checks_failed++;
	finish();
}

void page_share(u64 physical)
{
	references[(physical - POOL_START) / 4096]++;
}

u32 page_references(u64 physical)
{
	return references[(physical - POOL_START) / 4096];
}

void page_drop(u64 physical)
{
	if (physical < POOL_START || physical >= POOL_START + POOL_PAGES * 4096ul)
		return; /* a page of the kernel's image */
	if (--references[(physical - POOL_START) / 4096] == 0)
		memset(direct(physical), 0, 4096);
}

u32 pages_in_use(void)
{
	u32 n = 0;
	for (u32 i = 0; i < POOL_PAGES; i++)
		n += references[i] != 0;
	return n;
}

/* The entry of `address` in a table of level 4 - `depth`: 3 is a page entry, 2 a directory entry. */
static u64 *walk(u64 root, u64 address, u64 directory_flags, u32 depth)
{
	u64 *table = direct(root & PTE_ADDRESS);
	for (u32 level = 0; level < depth; level++) {
		u64 *entry = &table[(address >> (39 - 9 * level)) & 511];
		if (!(*entry & PTE_P)) {
			if (!directory_flags)
				return NULL;
			*entry = page_new() | directory_flags;
		} else if (*entry & PTE_LARGE) {
			return NULL;
		}
		table = direct(*entry & PTE_ADDRESS);
	}
	return &table[(address >> (39 - 9 * depth)) & 511];
}

u64 *page_entry(u64 root, u64 address, u64 directory_flags)
{
	return walk(root, address, directory_flags, 3);
}

u64 *directory_entry(u64 root, u64 address, u64 directory_flags)
{
	return walk(root, address, directory_flags, 2);
}

void map_page(u64 address, u64 physical, u64 flags)
{
	*page_entry(PHYSICAL(kernel_pml4), address, PTE_P | PTE_W | PTE_A) = physical | flags;
}

void unmap_page(u64 address)
{
	u64 *entry = page_entry(PHYSICAL(kernel_pml4), address, 0);
	if (entry)
		*entry = 0;
	invlpg(address);
}

u64 root_new(void)
{
	u64 root = page_new();
	memcpy((u64 *)direct(root) + 256, kernel_pml4 + 256, 2048);
	return root;
}

static void drop_tables(u64 table, u32 level, u32 first, u32 last, bool with_pages)
{
	u64 *entries = direct(table & PTE_ADDRESS);
	for (u32 i = first; i < last; i++) {
		if (!(entries[i] & PTE_P))
			continue;
		if (level)
			drop_tables(entries[i], level - 1, 0, 512, with_pages);
		if (level || with_pages)
			page_drop(entries[i] & PTE_ADDRESS);
		entries[i] = 0;
	}
}

void root_drop(u64 root)
{
	drop_tables(root, 3, 0, 256, true);
	page_drop(root);
}

void scratch_drop(void)
{
	drop_tables(kernel_pml4[(SCRATCH_AREA >> 39) & 511], 2, 0, 512, false);
	write_cr4(CR4_VALUE & ~CR4_PGE);
	write_cr4(CR4_VALUE);
}

void memory_finish(void)
{
	u64 *entry = &kernel_pml4[(SCRATCH_AREA >> 39) & 511];
	page_drop(*entry & PTE_ADDRESS);
	*entry = 0;
	write_cr3(PHYSICAL(kernel_pml4));
}
