/* Self-modifying code in the kernel: every form, 10 000 rounds each, and not one stale result. Code is
 * made known to the processor as its manual asks (sync_code). Interrupts are off and masked. */
#include "kernel.h"

#define CODE (SCRATCH_AREA + 0x800000)
#define ALIAS (SCRATCH_AREA + 0x900000)
#define BOTH (RIGHT_WRITE | RIGHT_EXECUTE)

typedef word (*code)(void);

static word stale VOLATILE_DATA;

static void set_page(word address, word physical, word rights)
{
	arch_map(0, address, physical, rights);
	arch_flush(address);
}

static void drop(word address, word page)
{
	arch_unmap(0, address);
	arch_flush(address);
	if (page)
		page_drop(page);
}

static word run(word at) { return ((code)at)(); }

static void check_own_page(void)
{
	word page = page_new();
	set_page(CODE, page, BOTH);
	code_return((void *)CODE + 0x7e0, 0);
	for (word i = 1; i <= rounds; i++) {
		sync_code(CODE + 0x7e0, code_set_value((void *)CODE + 0x7e0, i));
		stale += run(CODE + 0x7e0) != i;
	}
	drop(CODE, page);
}

static void check_double_mapping(void)
{
	word page = page_new();
	set_page(ALIAS, page, RIGHT_WRITE);
	code_return((void *)ALIAS + 0x20, 0);
	set_page(CODE, page, RIGHT_EXECUTE);
	for (word i = 1; i <= rounds; i++) {
		word bytes = code_set_value((void *)ALIAS + 0x20, i);
		sync_code(ALIAS + 0x20, bytes);
		sync_code(CODE + 0x20, bytes);
		stale += run(CODE + 0x20) != i;
	}
	drop(CODE, 0);
	drop(ALIAS, page);
}

static void check_flips(void)
{
	word page = page_new();
	set_page(CODE, page, RIGHT_WRITE);
	code_return((void *)CODE + 0x40, 0);
	for (word i = 1; i <= rounds; i++) {
		set_page(CODE, page, RIGHT_WRITE);
		word bytes = code_set_value((void *)CODE + 0x40, i);
		set_page(CODE, page, RIGHT_EXECUTE);
		sync_code(CODE + 0x40, bytes);
		stale += run(CODE + 0x40) != i;
	}
	drop(CODE, page);
}

/* Each round takes a page, fills it, runs it at one of seven addresses and gives it back; every third
 * round keeps a page in between, so that frames and addresses meet in all combinations. */
static void check_reused(void)
{
	for (word i = 1; i <= rounds; i++) {
		word other = i % 3 ? 0 : page_new();
		word page = page_new(), at = CODE + i % 7 * PAGE, offset = i % 5 * 64;
		set_page(at, page, RIGHT_WRITE);
		code_return((void *)at + offset, 0);
		word bytes = code_set_value((void *)at + offset, i);
		set_page(at, page, RIGHT_EXECUTE);
		sync_code(at + offset, bytes);
		stale += run(at + offset) != i;
		drop(at, page);
		if (other)
			page_drop(other);
	}
}

static void check_sensitive_own(void)
{
	word page = page_new();
	set_page(CODE, page, BOTH);
	for (word i = 0; i < rounds; i++) {
		word which = i % code_variants();
		sync_code(CODE + 0x200, code_variant((void *)CODE + 0x200, which));
		stale += !code_variant_right(which, run(CODE + 0x200));
	}
	drop(CODE, page);
}

static void check_sensitive_alias(void)
{
	word page = page_new();
	set_page(CODE, page, RIGHT_EXECUTE);
	for (word i = 0; i < rounds; i++) {
		word which = i % code_variants(), bytes = code_variant(DIRECT(page) + 0x200, which);
		sync_code((word)DIRECT(page) + 0x200, bytes);
		sync_code(CODE + 0x200, bytes);
		stale += !code_variant_right(which, run(CODE + 0x200));
	}
	drop(CODE, page);
}

static void check_sensitive_flips(void)
{
	word page = page_new();
	for (word i = 0; i < rounds; i++) {
		word which = i % code_variants();
		set_page(CODE, page, RIGHT_WRITE);
		word bytes = code_variant((void *)CODE + 0x200, which);
		set_page(CODE, page, RIGHT_EXECUTE);
		sync_code(CODE + 0x200, bytes);
		stale += !code_variant_right(which, run(CODE + 0x200));
	}
	drop(CODE, page);
}

/* What was written is what is read back, also where it was rewritten to be executed. */
static void check_reads(void)
{
	static u8 wanted[64];
	word page = page_new();
	set_page(CODE, page, BOTH);
	for (word i = 0; i < 200; i++) {
		word which = i % code_variants(), bytes = code_variant(wanted, which);
		memcpy((void *)CODE + 0x300, wanted, bytes);
		sync_code(CODE + 0x300, bytes);
		stale += !code_variant_right(which, run(CODE + 0x300));
		stale += memcmp((void *)CODE + 0x300, wanted, bytes) != 0;
		stale += memcmp(DIRECT(page) + 0x300, wanted, bytes) != 0;
	}
	memset(wanted, 0, sizeof(wanted));
	drop(CODE, page);
}

#define FORM(name) static void name##_form(void) { stale = 0; name(); WANT(stale, 0); }
FORM(check_own_page) FORM(check_double_mapping) FORM(check_flips) FORM(check_reused)
FORM(check_sensitive_own) FORM(check_sensitive_alias) FORM(check_sensitive_flips) FORM(check_reads)

static const struct check checks[] = {
	{"self-modifying.own-page", check_own_page_form, 0, 0},
	{"self-modifying.double-mapping", check_double_mapping_form, 0, 0},
	{"self-modifying.write-execute-flips", check_flips_form, 0, 0},
	{"self-modifying.reused-pages", check_reused_form, 0, 0},
	{"self-modifying.sensitive-own-page", check_sensitive_own_form, 0, 0},
	{"self-modifying.sensitive-double-mapping", check_sensitive_alias_form, 0, 0},
	{"self-modifying.sensitive-flips", check_sensitive_flips_form, 0, 0},
	{"self-modifying.reads-show-what-was-written", check_reads_form, 0, 0},
};

void check_self_modifying(void)
{
	interrupts_off();
	run_checks(checks, LENGTH(checks));
}
