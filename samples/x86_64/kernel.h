/* The sample kernel's common ground: types, layout constants, privileged instructions, and what
 * each file offers to the others. Sections: everything whose bytes depend on interrupt timing is
 * marked VOLATILE_DATA and lies between __volatile_start and __volatile_end. */
#ifndef KERNEL_H
#define KERNEL_H

#define KERNEL_BASE 0xffffffff80000000
#define DIRECT_MAP 0xffff888000000000
#define SCRATCH_AREA 0xffffc90000000000 /* virtual addresses the checks map as they like */
#define POOL_START 0x1400000            /* physical pages the allocator hands out */
#define POOL_PAGES 1024
#define LARGE_FRAME 0x1800000 /* 2 MiB for the large-page check */
#define MEMORY_END 0x1a00000  /* the kernel uses no memory beyond */

#define KERNEL_CS 0x10 /* as the Linux boot protocol has it */
#define KERNEL_DS 0x18
#define USER32_CS 0x23
#define USER_DS 0x2b
#define USER_CS 0x33
#define TSS_SELECTOR 0x40
#define LDT_SELECTOR 0x50
#define ABSENT_SELECTOR 0x60 /* a data descriptor with P = 0 */
#define GDT_BYTES 0x70

#define PTE_P 0x001
#define PTE_W 0x002
#define PTE_U 0x004
#define PTE_A 0x020
#define PTE_D 0x040
#define PTE_LARGE 0x080
#define PTE_G 0x100
#define PTE_COW 0x200 /* software: a write makes a private copy */
#define PTE_NX 0x8000000000000000
#define PTE_ADDRESS 0x000ffffffffff000

#define FLAG_TF 0x100
#define FLAG_IF 0x200
#define FLAG_DF 0x400

#define CR0_TS 0x8
#define CR0_WP 0x10000
#define CR0_VALUE 0x80050033 /* PG AM WP NE ET MP PE */
#define CR4_TSD 0x4
#define CR4_PGE 0x80
#define CR4_VALUE 0x6a0 /* OSXMMEXCPT OSFXSR PGE PAE */

#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_SFMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102

#ifndef __ASSEMBLER__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)
#define VOLATILE_DATA __attribute__((section(".volatile,\"aw\",@nobits#")))
#define NOINLINE __attribute__((noinline, noclone))
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* ---- privileged instructions ---- */
#define READ_REGISTER(name, reg) \
	static inline u64 name(void) { u64 v; asm volatile("mov %%" reg ", %0" : "=r"(v) : : "memory"); return v; }
#define WRITE_REGISTER(name, reg) \
	static inline void name(u64 v) { asm volatile("mov %0, %%" reg : : "r"(v) : "memory"); }
READ_REGISTER(read_cr0, "cr0") WRITE_REGISTER(write_cr0, "cr0")
READ_REGISTER(read_cr2, "cr2") WRITE_REGISTER(write_cr2, "cr2")
READ_REGISTER(read_cr3, "cr3") WRITE_REGISTER(write_cr3, "cr3")
READ_REGISTER(read_cr4, "cr4") WRITE_REGISTER(write_cr4, "cr4")
READ_REGISTER(read_cr8, "cr8") WRITE_REGISTER(write_cr8, "cr8")
READ_REGISTER(read_dr0, "dr0") WRITE_REGISTER(write_dr0, "dr0")
READ_REGISTER(read_dr1, "dr1") WRITE_REGISTER(write_dr1, "dr1")
READ_REGISTER(read_dr2, "dr2") WRITE_REGISTER(write_dr2, "dr2")
READ_REGISTER(read_dr3, "dr3") WRITE_REGISTER(write_dr3, "dr3")
READ_REGISTER(read_dr6, "dr6") WRITE_REGISTER(write_dr6, "dr6")
READ_REGISTER(read_dr7, "dr7") WRITE_REGISTER(write_dr7, "dr7")

static inline void cli(void) { asm volatile("cli" : : : "memory"); }
static inline void sti(void) { asm volatile("sti" : : : "memory"); }
static inline void clts(void) { asm volatile("clts" : : : "memory"); }
static inline u64 read_flags(void) { u64 v; asm volatile("pushfq; popq %0" : "=r"(v) : : "memory"); return v; }
static inline void write_flags(u64 v) { asm volatile("pushq %0; popfq" : : "r"(v) : "memory", "cc"); }
static inline void invlpg(u64 address) { asm volatile("invlpg (%0)" : : "r"(address) : "memory"); }
static inline u8 inb(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline void outb(u16 port, u8 v) { asm volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline u64 rdmsr(u32 msr)
{
	u32 low, high;
	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return (u64)high << 32 | low;
}
static inline void wrmsr(u32 msr, u64 v)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}
static inline void cpuid(u32 leaf, u32 *r)
{
	asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0) : "memory");
}
/* A serialising instruction, as code written through another address asks for. */
static inline void serialise(void) { u32 r[4]; cpuid(0, r); }

static inline void load_stack_segment(void) { asm volatile("mov %0, %%ss" : : "r"(KERNEL_DS) : "memory"); }

struct table_register { u16 limit; u64 base; } __attribute__((packed));

/* ---- console.c: the 16550, and a tiny printf ---- */
void console_start(void);
void put_char(char c);
void print(const char *format, ...); /* %s %d %x (both 64-bit) */

/* ---- check.c: named checks ---- */
struct check {
	const char *name;
	void (*run)(void);
	bool needs_iret;       /* cannot be tried when IRETQ does not work */
	bool reports_itself;   /* user programs name their own checks */
};
extern u32 checks_done, checks_failed;
#define ROUNDS 10000 /* of each form of self-modifying code */
extern u64 rounds;   /* at most so many: what "rounds=N" on the command line asks for */
extern bool iret_broken;
void run_checks(const struct check *checks, u64 count);
void report(const char *name, bool ok, const char *what, u64 got, u64 want);
void want(u64 got, u64 wanted, const char *what); /* the first mismatch fails the running check */
/* The IDT error code of `vector`: index and IDT bit. QEMU before 8.1 and Unicorn 2 have the index
 * twice too large in 64-bit mode; that is listed in the manifest and let pass here. */
#define WANT_GATE_ERROR(error, vector) WANT((error) == (vector) * 16 + 2 ? (vector) * 8 + 2 : (error), (vector) * 8 + 2)
#define WANT(expression, wanted) want((u64)(expression), (u64)(wanted), #expression)
void choose_checks(const char *command_line);

/* ---- memory.c: pages and page tables ---- */
extern u64 kernel_pml4[512];
extern char __text_start[], __text_end[], __rodata_end[], __image_end[], __volatile_start[], __volatile_end[];
#define PHYSICAL(symbol) ((u64)(symbol) - KERNEL_BASE)
static inline void *direct(u64 physical) { return (void *)(DIRECT_MAP + physical); }
void memory_start(void);
void memory_finish(void);
u64 page_new(void); /* physical address of a zeroed page, reference count 1 */
void page_share(u64 physical);
void page_drop(u64 physical); /* zeroes it when the last reference goes */
u32 page_references(u64 physical);
u32 pages_in_use(void);
u64 *page_entry(u64 root, u64 address, u64 directory_flags); /* 0: no creating; NULL when absent */
u64 *directory_entry(u64 root, u64 address, u64 directory_flags);
void map_page(u64 address, u64 physical, u64 flags); /* in the kernel's part; no invlpg */
void unmap_page(u64 address);                        /* with invlpg */
u64 root_new(void);
void root_drop(u64 root); /* with all user pages and tables */
void scratch_drop(void);  /* the tables of SCRATCH_AREA */
void *memset(void *, int, u64);
void *memcpy(void *, const void *, u64);
int memcmp(const void *, const void *, u64);

/* ---- traps.c, entry.S: descriptors, exceptions, interrupts ---- */
struct frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
	u64 vector, error, rip, cs, rflags, rsp, ss;
};
struct caught { u64 vector, error, cr2, rip, cs, rflags, rsp, ss, dr6; };
struct cpu { u64 kernel_stack, user_stack; };
struct tss { u32 reserved; u64 rsp[3]; u64 zero; u64 ist[7]; u64 zero2; u16 zero3, io_map; u8 io[8192 + 1]; } __attribute__((packed));
extern struct caught caught;
extern struct cpu cpu;
extern struct tss tss;
extern u64 gdt[GDT_BYTES / 8], ldt[2], idt[512];
extern void (*trap_hook[256])(struct frame *);
extern volatile u64 ticks, interrupted_rip;
extern u64 catch_rsp;
void traps_start(void);
void set_gate(u32 vector, u64 handler, u32 type, u32 dpl, u32 ist);
void set_io_map(u16 offset);
void reload_tss(void);
void timer_start(u32 hertz);
void timer_once(u16 count);
void timer_stop(void);
bool catch_fault(void (*run)(u64), u64 argument); /* true when an exception ended it: see `caught` */
void catch_resume(void) __attribute__((noreturn));
void trap(struct frame *frame);
void finish(void) __attribute__((noreturn));
#define TRAP_STACK_BYTES 8192
extern u8 trap_stack[TRAP_STACK_BYTES];
extern char vector_stubs[], syscall_entry[], boot_stack_top[], trap_return[];
void switch_stacks(u64 *save, u64 load);

/* ---- process.c: user processes and system calls ---- */
struct process_counts { u32 demand, copies, reuses; };
extern struct process_counts heap_counts;
extern volatile u64 switches_by_timer, fpu_faults;
extern bool catch_all_user;
void run_program(u32 program, u32 argument); /* ready, not yet running */
void run_processes(void);                    /* until all have exited */
u64 exit_code(u32 slot);
void system_call(struct frame *frame);
bool process_fault(struct frame *frame, u64 cr2); /* true: handled, go on */
void preempt(void);
void processes_finish(void);
extern const u8 user_image[], user_image_end[];

/* ---- the checks ---- */
void check_sensitive(void);
void check_exceptions(void);
void check_paging(void);
void check_registers(void);
void check_ports(void);
void check_interrupts(void);
void check_self_modifying(void);
void check_user(void);

#endif
#endif
