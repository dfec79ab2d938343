/* Entries of x86-64, and user code. */
#define RW (PTE_P | PTE_W)
#define READS(page) ((page) | PTE_P)
#define WRITES(page) ((page) | RW)
#define KERNEL_READS(page) ((page) | PTE_P | PTE_NX)
#define KERNEL_WRITES(page) ((page) | RW | PTE_NX)
#define USER_EXECUTES(page) ((page) | PTE_P | PTE_U)
#define USER_WRITES(page) ((page) | RW | PTE_U | PTE_NX)
#define LARGE(page) ((page) | RW | 0x80ul)
#define TABLE(page) ((page) | RW)
#define CLOSED_TABLE(page) ((page) | PTE_P)
#define HIDDEN(page) ((page) | RW) /* in a root: not for user code */
#define INNER(page) ((page) | RW)
#define USER_TABLE(page) ((page) | RW | PTE_U)
#define MARKS (PTE_A | PTE_D)
#define ACCESSED PTE_A
#define DIRTY PTE_D

#define FIRST_BYTE 0ul
#define UPPER_HALF 0xffff000000000000ul
#define FIRST_SLOT 256 /* of a root, the hypervisor's */
#define LAST_SLOT 271
#define DEVICE 0xb8000ul
#define LAST_FRAME ((1ul << 40) - 1)
#define OTHER_ROOT KERNEL_ROOT

#define STACK rsp
#define ARGUMENT rdi
#define LOAD "movq (%1), %0"
#define STORE "movq %0, (%1)"
static const u8 user_program[] = {0x48, 0x8b, 0x07, 0x0f, 0x05}; /* mov (%rdi), %rax; syscall */
#define ENTER_USER(frame) \
	asm volatile("movq %%rsp, user_return; movl %0, %%eax; movq %1, %%rdi; movq %2, %%rbx; call *%%rbx; .globl user_over\n" \
		     "user_over:" : : "i"(RETRAP_CALL_RETURN), "i"(frame), "i"(RETRAP_CALL) \
		     : "memory", "cc", "rax", "rbx", "rcx", "rdx", "rdi", "rsi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", \
		     "r14", "r15")
