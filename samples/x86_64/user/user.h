/* What user programs share: system calls both ways, catching of faults, reporting of checks. */
#include "../system_calls.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef _Bool bool;
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static inline u64 call(u64 n, u64 a, u64 b, u64 c, u64 d, u64 e)
{
	register u64 r10 asm("r10") = d;
	register u64 r8 asm("r8") = e;
	asm volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return n;
}
static inline u64 call_by_int(u64 n, u64 a, u64 b)
{
	asm volatile("int $0x80" : "+a"(n) : "D"(a), "S"(b) : "memory");
	return n;
}
#define SYS(n, ...) SYS_(n, ##__VA_ARGS__, 0, 0, 0, 0, 0)
#define SYS_(n, a, b, c, d, e, ...) call(n, (u64)(a), (u64)(b), (u64)(c), (u64)(d), (u64)(e))

struct fault { u64 vector, error, cr2, rip, cs; };
bool catch_fault(void (*run)(u64), u64 argument, struct fault *fault);

/* The running check's first mismatch; on the stack of the program. */
struct check { const char *what; u64 got, wanted; };
static inline void want(struct check *c, u64 got, u64 wanted, const char *what)
{
	if (got != wanted && !c->what)
		*c = (struct check){what, got, wanted};
}
#define WANT(expression, wanted) want(check, (u64)(expression), (u64)(wanted), #expression)
#define CHECK(name, ...) \
	do { \
		struct check storage_ = {0, 0, 0}, *check = &storage_; \
		__VA_ARGS__; \
		SYS(SYS_REPORT, name, check->what == 0, check->what ? check->what : "", check->got, check->wanted); \
	} while (0)

u64 run_faults(void);
u64 run_preemption(u64 who);
u64 run_floating_point(u64 who);
u64 run_fork(void);
u64 run_self_modifying(void);
u64 run_compatibility(void);
