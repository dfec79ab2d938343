/* Entries of AArch64, and user code. The lower half's root is the one that is attacked. */
#define NO_EXECUTION (PTE_PXN | PTE_UXN)
#define READS(page) ((page) | PTE_PAGE | PTE_READ_ONLY)
#define WRITES(page) ((page) | PTE_PAGE)
#define KERNEL_READS(page) ((page) | PTE_PAGE | PTE_READ_ONLY | NO_EXECUTION)
#define KERNEL_WRITES(page) ((page) | PTE_PAGE | NO_EXECUTION)
#define USER_EXECUTES(page) ((page) | PTE_PAGE | PTE_READ_ONLY | PTE_USER | PTE_PXN)
#define USER_WRITES(page) ((page) | PTE_PAGE | PTE_USER | NO_EXECUTION)
#define LARGE(page) ((page) | (PTE_PAGE & ~2) | NO_EXECUTION)
#define TABLE(page) ((page) | PTE_TABLE)
#define CLOSED_TABLE(page) ((page) | PTE_PAGE | PTE_READ_ONLY | 1ul << 62)
#define HIDDEN(page) ((page) | PTE_TABLE | 1ul << 61) /* in a root: not for user code */
#define INNER(page) ((page) | PTE_TABLE)
#define USER_TABLE(page) ((page) | PTE_TABLE)
#define MARKS 0x400ul
#define ACCESSED 0x400ul
#define DIRTY (1ul << 51) /* the dirty bit modifier, which is refused */

#define FIRST_BYTE 0x40000000ul
#define UPPER_HALF 0xffff000000000000ul
#define FIRST_SLOT 448 /* of a root, the hypervisor's */
#define LAST_SLOT 455
#define DEVICE 0x9000000ul
#define LAST_FRAME ((1ul << 36) - 1)
#define OTHER_ROOT kernel_table
extern word kernel_table[512];

#define STACK sp
#define ARGUMENT x0
#define LOAD "ldr %0, [%1]"
#define STORE "str %0, [%1]"
static const u8 user_program[] = {0x01, 0x00, 0x40, 0xf9, 0x01, 0x00, 0x00, 0xd4}; /* ldr x1, [x0]; svc #0 */
#define ENTER_USER(frame) do { \
	register word number_ asm("x8") = RETRAP_CALL_RETURN, frame_ asm("x0") = (word)(frame); \
	asm volatile("stp x29, x30, [sp, #-16]!; mov x9, sp; ldr x10, =user_return; str x9, [x10]; blr %2; .globl user_over\n" \
		     "user_over: ldp x29, x30, [sp], #16" : "+r"(number_), "+r"(frame_) : "r"((word)RETRAP_CALL) \
		     : "memory", "cc", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x9", "x10", "x11", "x12", "x13", "x14", \
		     "x15", "x16", "x17", "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28"); \
} while (0)
