/* A hostile guest of Xen's para-virtual interface: what its parts share. Numbers and layouts are those of Xen's public
 * headers. Nothing here knows whose hypervisor it runs under. */
#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define BASE 0xffffffff80000000UL
#define M2P ((volatile u64 *)0xffff800000000000UL)
#define HYPERVISOR_START 0xffff800000000000UL
#define DESCRIPTORS 0xffff808000000000UL
#define NOT_CANONICAL 0x0000900000000000UL
#define UNMAPPED 0x0000123400000000UL
#define FRAME 0x000ffffffffff000UL

#define P 1UL
#define RW 2UL
#define US 4UL
#define A 0x20UL
#define D 0x40UL
#define PSE 0x80UL
#define NX (1UL << 63)

enum { EPERM = 1, ENOENT = 2, ESRCH = 3, EFAULT = 14, EBUSY = 16, EEXIST = 17, EINVAL = 22, ENOSYS = 38 };
#define ENOMEM 12

enum {
    SET_TRAP_TABLE = 0, MMU_UPDATE = 1, SET_GDT = 2, STACK_SWITCH = 3, SET_CALLBACKS = 4, SET_DEBUGREG = 8, GET_DEBUGREG = 9,
    UPDATE_DESCRIPTOR = 10, MEMORY_OP = 12, MULTICALL = 13, UPDATE_VA_MAPPING = 14, XEN_VERSION = 17, CONSOLE_IO = 18, GRANT_TABLE_OP = 20,
    VM_ASSIST = 21, IRET = 23, VCPU_OP = 24, SET_SEGMENT_BASE = 25, MMUEXT_OP = 26, SCHED_OP = 29, CALLBACK_OP = 30,
    EVENT_CHANNEL_OP = 32, PHYSDEV_OP = 33,
};
#define DOMID_SELF 0x7ff0UL

struct start_info {
    char magic[32];
    u64 pages, shared_info;
    u32 flags, pad0;
    u64 store_frame;
    u32 store_port, pad1;
    u64 console_frame;
    u32 console_port, pad2;
    u64 tables, table_count, frames, module, module_size;
    char command_line[1024];
    u64 first_frame, list_frames;
};

struct update { u64 pointer, value; };
struct extended { u32 command, pad; u64 first, second; };
struct trap { u8 vector, flags; u16 selector; u32 pad; u64 address; };
/* What an exception leaves on the stack, above what entry.S has saved. */
struct frame {
    u64 r15, r14, r13, r12, rbp, rbx, r10, r9, r8, rax, rdx, rsi, rdi;
    u64 r11, rcx, vector, error, rip, cs, rflags, rsp, ss;
};

extern struct start_info *start;
extern volatile u64 fixup, fault_vector, fault_error, fault_address;
extern volatile u64 events_taken, user_calls, user_value;
extern u8 hypercall_page[], user_code[], user_code_end[];

long call(u64 number, u64 a, u64 b, u64 c, u64 d);      /* by SYSCALL */
long call_by_page(u64 number, u64 a, u64 b, u64 c, u64 d);
long multicall_with_return(const void *calls, u64 count); /* with a frame for an iret among them: RAX dead (hex) */
void run_user(u64 rip, u64 rsp, u64 kernel_stack);

void print(const char *text);
void print_number(u64 value);
void check(const char *name, long got, long want);
void die(const char *why) __attribute__((noreturn));

u8 *page(void);                 /* a page that is mapped writable, contents zero */
u64 machine(const void *at);    /* the machine frame behind a mapped address */
u64 *entry_of(u64 at);          /* the last-level entry of an address, as it can be read */
u64 entry_machine(u64 at);      /* and its machine address */
u64 *table_of(u64 at, int level); /* the table of a level on the way to an address */
long map(const void *at, u64 entry);
long update(u64 pointer, u64 value);
long extended(u32 command, u64 first, u64 second);
void set_entry(const void *at, u64 flags); /* map a page again with other flags; must succeed */
u64 foreign_frame(void);

#define TRY(code, ...) \
    do { \
        fault_vector = 256; \
        asm volatile("movq $1f, fixup(%%rip)\n\t" code "\n1: movq $0, fixup(%%rip)" : : __VA_ARGS__ : "memory", "rax", "rcx", "rdx", "rbx", "rdi"); \
    } while (0)
#define NO_FAULT 256

void check_mappings(void);
void check_tables(void);
void check_stores(void);
void check_descriptors(void);
void check_pointers(void);
void check_calls(void);
void check_instructions(void);
void check_processor(void);
void check_grants(void);
void check_exchange(void);
void check_events(void);
void check_user(void);
void set_traps(void);

#endif
