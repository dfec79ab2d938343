/* What user programs share, and what an architecture offers them (user.S). */
#include "user_arch.h"
#include "layout.h"

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long word;
typedef _Bool bool;
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

word call_kernel(word number, word a, word b, word c, word d, word e);
#define SYS(n, ...) SYS_(n, ##__VA_ARGS__, 0, 0, 0, 0, 0)
#define SYS_(n, a, b, c, d, e, ...) call_kernel(n, (word)(a), (word)(b), (word)(c), (word)(d), (word)(e))

struct fault { word kind, access, address, pc; };
bool catch_fault(void (*run)(word), word argument, struct fault *fault);

/* ---- the architecture's, in user.S or user_arch.h ---- */
/* PRIVILEGED(X): X(name) for every function below whose first instruction is privileged.
 * USER_PRIVILEGED_KIND and USER_BREAKPOINT_KIND: the faults of these and of do_breakpoint.
 * USER_NO_EXECUTE: 1 where pages can be made not executable. */
void do_read(word address), do_write(word address), do_jump(word address), do_undefined(word unused),
	do_breakpoint(word unused);
word hold_registers(word pattern, word rounds, word yields); /* floating point: rounds in which something was lost */
word thread_word(void);                     /* the word that the thread register points to */
void sync_code(word address, word bytes);   /* what user mode must do after it wrote code, if anything */
word code_return(void *to, word value);     /* writes a function that returns `value`; its bytes (<= 32) */
word code_set_value(void *to, word value);
word return_address(word number, word what, word *at); /* a SYS_QUERY; where the call returns to goes to *at */

/* The running check's first mismatch; on the stack of the program. */
struct check { const char *what; word got, wanted; };
static inline void want(struct check *c, word got, word wanted, const char *what)
{
	if (got != wanted && !c->what)
		*c = (struct check){what, got, wanted};
}
#define WANT(expression, wanted) want(check, (word)(expression), (word)(wanted), #expression)
#define CHECK(name, ...) \
	do { \
		struct check storage_ = {0, 0, 0}, *check = &storage_; \
		__VA_ARGS__; \
		SYS(SYS_REPORT, name, check->what == 0, check->what ? check->what : "", check->got, check->wanted); \
	} while (0)

word run_faults(void);
word run_code(void);
word run_code_writer(void);
word run_code_runner(void);
