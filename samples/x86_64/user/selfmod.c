/* Self-modifying code in user mode, 10 000 rounds of each form, with the timer running. */
#include "user.h"

#define CODE 0x20000000
#define ALIAS 0x21000000

typedef u64 (*code)(u64);

static const u8 store_and_run[] = {
	0x89, 0x3d, 1, 0, 0, 0, /* mov %edi, 1f+1(%rip) */
	0xb8, 0, 0, 0, 0,       /* 1: mov $0, %eax */
	0xc3,
};
/* Sensitive, yet not rewritten in user mode: what each returns there. */
static const struct { u8 bytes[8]; u64 mask, value; } variants[] = {
	{{0x9c, 0x58, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90}, 0x3200, 0x200},    /* pushf; pop */
	{{0x8c, 0xc8, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90}, 0xffff, 0x33},     /* mov %cs, %eax */
	{{0x57, 0x9d, 0x9c, 0x58, 0xc3, 0x90, 0x90, 0x90}, 0x200, 0x200},     /* push %rdi; popf; pushf; pop */
	{{0x31, 0xc0, 0xb0, 0x2a, 0xc3, 0xcc, 0xcc, 0xcc}, ~0ul, 0x2a},
};

static void serialise(void)
{
	u32 a = 0, b, c, d;
	asm volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d) : "c"(0) : "memory");
}

static void put(u64 address, const u8 *from, u64 n)
{
	for (u64 i = 0; i < n; i++)
		((volatile u8 *)address)[i] = from[i];
}

static u64 own_page(u64 rounds)
{
	u64 stale = 0;
	SYS(SYS_MAP, CODE, RIGHT_WRITE | RIGHT_EXECUTE);
	put(CODE + 0x7f0, store_and_run, sizeof(store_and_run));
	for (u64 i = 1; i <= rounds; i++)
		stale += ((code)(CODE + 0x7f0))(i) != i;
	for (u64 i = 0; i < rounds; i++) {
		u64 v = i % LENGTH(variants);
		*(volatile u64 *)CODE = *(const u64 *)variants[v].bytes;
		stale += (((code)CODE)(2) & variants[v].mask) != variants[v].value;
	}
	SYS(SYS_UNMAP, CODE);
	return stale;
}

static u64 double_mapping(u64 rounds)
{
	u64 stale = 0;
	SYS(SYS_MAP, ALIAS, RIGHT_WRITE);
	put(ALIAS + 0x20, store_and_run + 6, 6);
	SYS(SYS_ALIAS, CODE, ALIAS, RIGHT_EXECUTE);
	for (u64 i = 1; i <= rounds; i++) {
		*(volatile u32 *)(ALIAS + 0x21) = i;
		serialise();
		stale += ((code)(CODE + 0x20))(0) != i;
	}
	SYS(SYS_UNMAP, CODE);
	SYS(SYS_UNMAP, ALIAS);
	return stale;
}

static u64 flips(u64 rounds)
{
	u64 stale = 0;
	SYS(SYS_MAP, CODE, RIGHT_WRITE);
	put(CODE + 0x40, store_and_run + 6, 6);
	for (u64 i = 1; i <= rounds; i++) {
		SYS(SYS_PROTECT, CODE, RIGHT_WRITE);
		*(volatile u32 *)(CODE + 0x41) = i;
		SYS(SYS_PROTECT, CODE, RIGHT_EXECUTE);
		stale += ((code)(CODE + 0x40))(0) != i;
	}
	SYS(SYS_UNMAP, CODE);
	return stale;
}

static u64 reused(u64 rounds)
{
	u64 stale = 0;
	for (u64 i = 1; i <= rounds; i++) {
		u64 at = CODE + i % 7 * 4096;
		SYS(SYS_MAP, at, RIGHT_WRITE | RIGHT_EXECUTE);
		put(at + i % 5 * 16, store_and_run + 6, 6);
		*(volatile u32 *)(at + i % 5 * 16 + 1) = i;
		stale += ((code)(at + i % 5 * 16))(0) != i;
		SYS(SYS_UNMAP, at);
	}
	return stale;
}

u64 run_self_modifying(void)
{
	u64 rounds = SYS(SYS_QUERY, QUERY_ROUNDS);
	CHECK("user-self-modifying.own-page", WANT(own_page(rounds), 0));
	CHECK("user-self-modifying.double-mapping", WANT(double_mapping(rounds), 0));
	CHECK("user-self-modifying.write-execute-flips", WANT(flips(rounds), 0));
	CHECK("user-self-modifying.reused-pages", WANT(reused(rounds), 0));
	return 0;
}
