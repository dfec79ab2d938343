/* Entry, exceptions, calls, and the notes by which a loader knows this as a para-virtual guest. */
.section .note.Xen, "a", @note
.macro NOTE type, value:vararg
    .long 4, 2f - 1f, \type
    .asciz "Xen"
    .balign 4
1:  \value
2:  .balign 4
.endm
NOTE 6, .asciz "retrap-hostile"
NOTE 5, .asciz "xen-3.0"
NOTE 8, .asciz "generic"
NOTE 9, .asciz "yes"
NOTE 1, .quad entry
NOTE 3, .quad 0xffffffff80000000
NOTE 4, .quad 0
NOTE 2, .quad hypercall_page

.text
.globl entry
entry:
    cld
    movq $stack_end, %rsp
    movq %rsi, start(%rip)
    call main
    ud2

.globl call
call:                           /* number, a, b, c, d: RDI RSI RDX RCX R8 */
    movq %rdi, %rax
    movq %rsi, %rdi
    movq %rdx, %rsi
    movq %rcx, %rdx
    movq %r8, %r10
    syscall
    ret

.globl call_by_page
call_by_page:
    movq %rdi, %rax
    shlq $5, %rax
    addq $hypercall_page, %rax
    movq %rsi, %rdi
    movq %rdx, %rsi
    movq %rcx, %rdx
    movq %r8, %r10
    jmp *%rax

/* Exceptions: Xen's frame is RCX, R11, (error,) RIP, CS, RFLAGS, RSP, SS. */
.macro STUB vector, error
.globl stub_\vector
stub_\vector:
    .if \error
    popq %rcx
    popq %r11
    .else
    popq %rcx
    popq %r11
    pushq $0
    .endif
    pushq $\vector
    jmp common
.endm
STUB 0, 0
STUB 1, 0
STUB 3, 0
STUB 6, 0
STUB 12, 1
STUB 13, 1
STUB 14, 1
STUB 100, 0
STUB 32, 0                      /* an event */
STUB 33, 0                      /* a system call of user code */
.globl stub_table
stub_table:
    .quad 0, stub_0, 1, stub_1, 3, stub_3, 6, stub_6, 12, stub_12, 13, stub_13, 14, stub_14, 100, stub_100, -1

common:
    pushq %rcx
    pushq %r11
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rax
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    movq %rsp, %rbp
    andq $~15, %rsp
    cld
    call trapped
    movq %rbp, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    popq %r10
    popq %r9
    popq %r8
    popq %rax
    popq %rdx
    popq %rsi
    popq %rdi
    popq %r11
    popq %rcx
    addq $16, %rsp
    pushq $0                    /* flags: RCX and R11 are restored */
    pushq %rcx
    pushq %r11
    pushq %rax
    movl $23, %eax
    syscall

.globl multicall_with_return
multicall_with_return:
    movq %rsp, %rax
    pushq $0xe02b
    pushq %rax
    pushq $0x2
    pushq $0xe030
    pushq $1f
    pushq $0
    pushq $0
    pushq $0
    pushq $0xdead
    movl $13, %eax
    syscall
    addq $72, %rsp              /* it did not return by the frame */
1:  ret

/* return_by(cs, ss): back by a frame of these selectors, by which a return may fail. */
.globl return_by
return_by:
    movq $1f, fixup(%rip)
    movq %rsp, %rax
    pushq %rsi
    pushq %rax
    pushq $0x2
    pushq %rdi
    pushq $1f
    pushq $0
    pushq $0
    pushq $0
    pushq $0
    movl $23, %eax
    syscall
1:  movq $0, fixup(%rip)
    ret

/* run_user(rip, rsp, kernel_stack): to user code; it comes back by a system call with RAX 99. */
.globl run_user
run_user:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, resume_stack(%rip)
    pushq $0xe02b
    pushq %rsi
    pushq $0x202
    pushq $0xe033
    pushq %rdi
    pushq $0
    pushq $0
    pushq $0
    pushq $0
    movl $23, %eax
    syscall
.globl user_done
user_done:
    movq resume_stack(%rip), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

/* User code, copied to a page of its own: counts, calls the kernel, tries what it may not, and says that it is done. */
.globl user_code, user_code_end
user_code:
    movl $1, %eax
    movl $1234, %edi
    syscall
    movl $2, %eax
    movq $0xffffffff80100000, %rdi
    movl $3, %r8d               /* the length of the next instruction, for the kernel that skips it */
    movb (%rdi), %dil           /* the kernel's memory is not mapped here */
    movl $3, %eax
    syscall
    movl $4, %eax
    movq $0xffff800000000000, %rdi
    movl $1, %r8d
    cli                         /* a fault, skipped by the kernel */
    movl $2, %r8d
    cpuid                       /* a fault where the kernel wants that */
    xorl %r8d, %r8d
    movl $99, %eax
    syscall
    ud2
user_code_end:

.section .hypercalls, "ax"
.balign 4096
.globl hypercall_page
hypercall_page:
    .skip 4096

.bss
.balign 16
    .skip 32768
stack_end:
resume_stack:
    .quad 0
