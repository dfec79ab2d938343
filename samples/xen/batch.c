/* The batching workload, a static program for Linux: mprotect, fork and munmap over 2048 pages. A call of a number that no
 * kernel has marks where each part begins (100000 + part) and ends (200000 + part). */
typedef unsigned long u64;
#define PAGES 2048
#define SIZE (PAGES * 4096UL)

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 asm("r10") = d;
    register long r8 asm("r8") = e;
    register long r9 asm("r9") = f;
    asm volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}

enum { WRITE = 1, MMAP = 9, MPROTECT = 10, MUNMAP = 11, FORK = 57, EXIT = 60, WAIT4 = 61 };

static void begin(int part) { call(100000 + part, 0, 0, 0, 0, 0, 0); }
static void end(int part) { call(200000 + part, 0, 0, 0, 0, 0, 0); }

static void fail(const char *why, long size)
{
    call(WRITE, 1, (long)why, size, 0, 0, 0);
    call(EXIT, 1, 0, 0, 0, 0, 0);
}

void _start(void)
{
    static const char done[] = "batch: done\n", failed[] = "batch: failed\n";
    volatile char *area = (volatile char *)call(MMAP, 0, SIZE, 3, 0x22, -1, 0);
    long child;
    if ((u64)area > -4096UL)
        fail(failed, sizeof failed - 1);
    begin(0); /* touch */
    for (u64 at = 0; at < SIZE; at += 4096)
        area[at] = 1;
    end(0);
    begin(1); /* mprotect, read-only */
    if (call(MPROTECT, (long)area, SIZE, 1, 0, 0, 0))
        fail(failed, sizeof failed - 1);
    end(1);
    begin(2); /* mprotect, writable again */
    if (call(MPROTECT, (long)area, SIZE, 3, 0, 0, 0))
        fail(failed, sizeof failed - 1);
    end(2);
    begin(3); /* fork, and the child's end */
    child = call(FORK, 0, 0, 0, 0, 0, 0);
    if (!child)
        call(EXIT, 0, 0, 0, 0, 0, 0);
    if (child < 0 || call(WAIT4, child, 0, 0, 0, 0, 0) != child)
        fail(failed, sizeof failed - 1);
    end(3);
    begin(4); /* munmap */
    if (call(MUNMAP, (long)area, SIZE, 0, 0, 0, 0))
        fail(failed, sizeof failed - 1);
    end(4);
    call(WRITE, 1, (long)done, sizeof done - 1, 0, 0, 0);
    call(EXIT, 0, 0, 0, 0, 0, 0);
}
