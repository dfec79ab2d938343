/* Physical pages. The allocator always gives the lowest free page and zeroes a page when it goes, so
 * that memory at the end does not depend on the order of events. */
#include "kernel.h"

static u8 references[POOL_PAGES];

void *memset(void *to, int c, word n)
{
	u8 *d = to;
	for (; n && (word)d % sizeof(word); n--)
		*d++ = c;
	for (word pattern = (u8)c * (~0ul / 255); n >= sizeof(word); n -= sizeof(word), d += sizeof(word))
		*(word *)d = pattern;
	while (n--)
		*d++ = c;
	return to;
}

void *memcpy(void *to, const void *from, word n)
{
	u8 *d = to;
	const u8 *s = from;
	if (((word)d | (word)s) % sizeof(word) == 0)
		for (; n >= sizeof(word); n -= sizeof(word), d += sizeof(word), s += sizeof(word))
			*(word *)d = *(const word *)s;
	while (n--)
		*d++ = *s++;
	return to;
}

int memcmp(const void *a, const void *b, word n)
{
	for (const u8 *p = a, *q = b; n; n--, p++, q++)
		if (*p != *q)
			return *p - *q;
	return 0;
}

word page_new(void)
{
	for (u32 i = 0; i < POOL_PAGES; i++) {
		if (!references[i]) {
			references[i] = 1;
			return POOL_START + i * (word)PAGE;
		}
	}
	print("FAIL memory: no page left\n");
	checks_failed++;
	finish();
}

void page_share(word physical)
{
	references[(physical - POOL_START) / PAGE]++;
}

u32 page_references(word physical)
{
	return references[(physical - POOL_START) / PAGE];
}

void page_drop(word physical)
{
	if (--references[(physical - POOL_START) / PAGE] == 0)
		memset(DIRECT(physical), 0, PAGE);
}

u32 pages_in_use(void)
{
	u32 n = 0;
	for (u32 i = 0; i < POOL_PAGES; i++)
		n += references[i] != 0;
	return n;
}
