/* The command line, of the device tree that the kernel was given. Included by arch.c, once. */
#define FDT_MAGIC 0xedfe0dd0 /* as its big-endian word reads */
static word device_tree;

static u32 big(word address)
{
	return __builtin_bswap32(*(u32 *)address);
}

static bool equal(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* The property `bootargs`, wherever in the tree it is. */
const char *arch_command_line(void)
{
	static const word places[] = {0, PHYSICAL_BASE};
	for (u32 i = 0; i < LENGTH(places); i++) {
		word at = places[i] ? places[i] : device_tree;
		if (at < PHYSICAL_BASE || at >= PHYSICAL_BASE + 0x3f00000 || at & 3)
			continue;
		word tree = (word)DIRECT(at);
		if (*(u32 *)tree != FDT_MAGIC)
			continue;
		word structure = tree + big(tree + 8), strings = tree + big(tree + 12), end = structure + big(tree + 36);
		while (structure < end) {
			u32 token = big(structure);
			structure += 4;
			if (token == 1) {
				while (*(char *)structure++)
					;
				structure = (structure + 3) & ~3ul;
			} else if (token == 3) {
				if (equal((const char *)strings + big(structure + 4), "bootargs"))
					return (const char *)structure + 8;
				structure += 8 + ((big(structure) + 3) & ~3u);
			} else if (token == 9) {
				break;
			}
		}
	}
	return "";
}
