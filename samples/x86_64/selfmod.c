/* Self-modifying code in the kernel: every form, 10 000 rounds each, and not one stale result.
 * Where code is written through another address than it runs at, a serialising instruction comes
 * between, as the architecture asks. Interrupts are off and masked. */
#include "kernel.h"

#define CODE (SCRATCH_AREA + 0xc00000)
#define ALIAS (SCRATCH_AREA + 0xd00000)
#define WRITABLE (PTE_P | PTE_W | PTE_NX)
#define EXECUTABLE PTE_P
#define BOTH (PTE_P | PTE_W)

typedef u64 (*code)(u64);

static const u8 store_and_run[] = {
	0x89, 0x3d, 1, 0, 0, 0, /* mov %edi, 1f+1(%rip) */
	0xb8, 0, 0, 0, 0,       /* 1: mov $0, %eax */
	0xc3,
};
static const u8 store_beside_sensitive[] = {
	0x9c, 0x59,             /* pushf; pop %rcx */
	0x89, 0x3d, 3, 0, 0, 0, /* mov %edi, 1f+1(%rip) */
	0xfa, 0x90,             /* cli; nop */
	0xb8, 0, 0, 0, 0,       /* 1: mov $0, %eax */
	0x9c, 0x5a,             /* pushf; pop %rdx */
	0x0f, 0xba, 0xe2, 9,    /* bt $9, %edx: IF is clear */
	0x83, 0xd0, 0,          /* adc $0, %eax */
	0xc3,
};

/* Sequences of at most eight bytes, most of them sensitive, and what each returns. */
static const struct { u8 bytes[8]; u64 mask, value; } variants[] = {
	{{0xfa, 0x9c, 0x58, 0xc3, 0x90, 0x90, 0x90, 0x90}, FLAG_IF, 0},       /* cli; pushf; pop */
	{{0xfb, 0x9c, 0x58, 0xfa, 0xc3, 0x90, 0x90, 0x90}, FLAG_IF, FLAG_IF}, /* sti; pushf; pop; cli */
	{{0x8c, 0xc8, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90}, 0xffff, KERNEL_CS}, /* mov %cs, %eax */
	{{0x31, 0xc0, 0xb0, 0x2a, 0xc3, 0xcc, 0xcc, 0xcc}, ~0ul, 0x2a},       /* nothing sensitive */
	{{0x57, 0x9d, 0x9c, 0x58, 0xfa, 0xc3, 0x90, 0x90}, FLAG_IF, FLAG_IF}, /* push %rdi; popf; pushf; pop; cli */
	{{0x0f, 0x01, 0xe0, 0xc3, 0x90, 0x90, 0x90, 0x90}, 0xffff, CR0_VALUE & 0xffff}, /* smsw */
	{{0x0f, 0x20, 0xc0, 0xc3, 0x90, 0x90, 0x90, 0x90}, ~0ul, CR0_VALUE},  /* mov %cr0, %rax */
};

static u64 stale VOLATILE_DATA;

static void set_page(u64 address, u64 physical, u64 flags)
{
	map_page(address, physical, flags);
	invlpg(address);
}

static void write_variant(void *to, u32 round)
{
	*(volatile u64 *)to = *(const u64 *)variants[round % LENGTH(variants)].bytes;
}

static bool variant_is_stale(u64 at, u32 round)
{
	u32 v = round % LENGTH(variants);
	return (((code)at)(2 | FLAG_IF) & variants[v].mask) != variants[v].value;
}

static void check_own_page(void)
{
	u64 page = page_new();
	set_page(CODE, page, BOTH);
	memcpy((void *)CODE + 0x7f0, store_and_run, sizeof(store_and_run));
	for (u32 i = 1; i <= rounds; i++)
		stale += ((code)CODE + 0x7f0)(i) != i;
	unmap_page(CODE);
	page_drop(page);
}

static void check_own_page_sensitive(void)
{
	u64 page = page_new();
	set_page(CODE, page, BOTH);
	memcpy((void *)CODE + 0x100, store_beside_sensitive, sizeof(store_beside_sensitive));
	for (u32 i = 1; i <= rounds; i++)
		stale += ((code)CODE + 0x100)(i) != i;
	unmap_page(CODE);
	page_drop(page);
}

static void check_double_mapping(void)
{
	u64 page = page_new();
	set_page(ALIAS, page, WRITABLE);
	memcpy((void *)ALIAS + 0x20, store_and_run + 6, 6);
	set_page(CODE, page, EXECUTABLE);
	for (u32 i = 1; i <= rounds; i++) {
		*(volatile u32 *)(ALIAS + 0x21) = i;
		serialise();
		stale += ((code)CODE + 0x20)(0) != i;
	}
	unmap_page(CODE);
	unmap_page(ALIAS);
	page_drop(page);
}

static void check_flips(void)
{
	u64 page = page_new();
	memcpy(direct(page) + 0x40, store_and_run + 6, 6);
	for (u32 i = 1; i <= rounds; i++) {
		set_page(CODE, page, WRITABLE);
		*(volatile u32 *)(CODE + 0x41) = i;
		set_page(CODE, page, EXECUTABLE);
		stale += ((code)CODE + 0x40)(0) != i;
	}
	unmap_page(CODE);
	page_drop(page);
}

/* Each round takes a page, fills it, runs it at one of seven addresses and gives it back; every
 * third round keeps a page in between, so that frames and addresses meet in all combinations. */
static void check_reused(void)
{
	for (u32 i = 1; i <= rounds; i++) {
		u64 other = i % 3 ? 0 : page_new();
		u64 page = page_new(), at = CODE + i % 7 * 4096;
		set_page(at, page, WRITABLE);
		memcpy((void *)at + i % 5 * 16, store_and_run + 6, 6);
		*(volatile u32 *)(at + i % 5 * 16 + 1) = i;
		set_page(at, page, EXECUTABLE);
		stale += ((code)at + i % 5 * 16)(0) != i;
		unmap_page(at);
		page_drop(page);
		if (other)
			page_drop(other);
	}
}

static void check_sensitive_own(void)
{
	u64 page = page_new();
	set_page(CODE, page, BOTH);
	for (u32 i = 0; i < rounds; i++) {
		write_variant((void *)CODE + 0x200, i);
		stale += variant_is_stale(CODE + 0x200, i);
	}
	unmap_page(CODE);
	page_drop(page);
}

static void check_sensitive_alias(void)
{
	u64 page = page_new();
	set_page(CODE, page, EXECUTABLE);
	for (u32 i = 0; i < rounds; i++) {
		write_variant(direct(page) + 0x200, i);
		serialise();
		stale += variant_is_stale(CODE + 0x200, i);
	}
	unmap_page(CODE);
	page_drop(page);
}

static void check_sensitive_flips(void)
{
	u64 page = page_new();
	for (u32 i = 0; i < rounds; i++) {
		set_page(CODE, page, WRITABLE);
		write_variant((void *)CODE + 0x200, i);
		set_page(CODE, page, EXECUTABLE);
		stale += variant_is_stale(CODE + 0x200, i);
	}
	unmap_page(CODE);
	page_drop(page);
}

static void check_sensitive_reused(void)
{
	for (u32 i = 0; i < rounds; i++) {
		u64 page = page_new(), at = CODE + i % 5 * 4096;
		write_variant(direct(page) + i % 11 * 8, i);
		set_page(at, page, EXECUTABLE);
		serialise();
		stale += variant_is_stale(at + i % 11 * 8, i);
		unmap_page(at);
		page_drop(page);
	}
}

/* What runs is also read as data, through the mapping it was written by: the bytes are those that
 * were written. (Through the mapping it runs at, a translating hypervisor shows its translation.) */
static void check_reads(void)
{
	u64 page = page_new();
	set_page(CODE, page, EXECUTABLE);
	for (u32 i = 0; i < rounds; i++) {
		write_variant(direct(page) + 0x300, i);
		serialise();
		stale += variant_is_stale(CODE + 0x300, i);
		stale += memcmp(direct(page) + 0x300, variants[i % LENGTH(variants)].bytes, 8) != 0;
	}
	unmap_page(CODE);
	page_drop(page);
}

/* The kernel's own text, patched through the direct map, and put back in the end. */
extern u8 patch_here[];
asm(".text\n.balign 16\n.type patch_here, @function\npatch_here: xorl %eax, %eax\nmovb $42, %al\nret\nint3\nint3\nint3\n"
    ".size patch_here, . - patch_here");
static void check_kernel_text(void)
{
	u64 *site = direct(PHYSICAL(patch_here)), original = *site;
	for (u32 i = 0; i < rounds; i++) {
		write_variant(site, i);
		serialise();
		stale += variant_is_stale((u64)patch_here, i);
	}
	*(volatile u64 *)site = original;
	serialise();
	stale += ((code)patch_here)(0) != 42;
}

/* An instruction that lies across two pages, each written in turn. */
static void check_page_crossing(void)
{
	u64 first = page_new(), second = page_new();
	set_page(CODE, first, BOTH);
	set_page(CODE + 4096, second, BOTH);
	memcpy((void *)CODE + 4093, store_and_run + 6, 6);
	for (u32 i = 1; i <= rounds; i++) {
		*(volatile u8 *)(CODE + 4094 + i % 4) = i;
		u32 wanted;
		memcpy(&wanted, (void *)CODE + 4094, 4);
		stale += ((code)CODE + 4093)(0) != wanted;
	}
	unmap_page(CODE);
	unmap_page(CODE + 4096);
	page_drop(first);
	page_drop(second);
}

#define FORM(name) \
	static void run_##name(void) \
	{ \
		stale = 0; \
		check_##name(); \
		WANT(stale, 0); \
	}
FORM(own_page) FORM(own_page_sensitive) FORM(double_mapping) FORM(flips) FORM(reused) FORM(page_crossing)
FORM(sensitive_own) FORM(sensitive_alias) FORM(sensitive_flips) FORM(sensitive_reused) FORM(reads) FORM(kernel_text)

static const struct check checks[] = {
	{"self-modifying.own-page", run_own_page, 0, 0},
	{"self-modifying.own-page-beside-sensitive", run_own_page_sensitive, 0, 0},
	{"self-modifying.double-mapping", run_double_mapping, 0, 0},
	{"self-modifying.write-execute-flips", run_flips, 0, 0},
	{"self-modifying.reused-pages", run_reused, 0, 0},
	{"self-modifying.page-crossing", run_page_crossing, 0, 0},
	{"self-modifying.sensitive-own-page", run_sensitive_own, 0, 0},
	{"self-modifying.sensitive-double-mapping", run_sensitive_alias, 0, 0},
	{"self-modifying.sensitive-flips", run_sensitive_flips, 0, 0},
	{"self-modifying.sensitive-reused-pages", run_sensitive_reused, 0, 0},
	{"self-modifying.reads-show-what-was-written", run_reads, 0, 0},
	{"self-modifying.kernel-text", run_kernel_text, 0, 0},
};

void check_self_modifying(void)
{
	run_checks(checks, LENGTH(checks));
}
