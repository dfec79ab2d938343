"""The issues and pull requests of Unicorn that rows of the quirk tables are about, by number and by name.

Room: `emulator/engine/unicorn`, as data. Names are shortened where they are long; those of unicorn-engine/unicorn.
"""

from typing import Final

REPOSITORY: Final = "unicorn-engine/unicorn"
ISSUE: Final = f"https://github.com/{REPOSITORY}/issues/{{0}}"
"""Leads to pull requests as well."""
SEARCHED: Final = "issues of unicorn-engine/unicorn and of QEMU and its forks, by meaning"
"""Where a row's `searched` was looked for."""

NAMES: Final[dict[int, str]] = {
    341: "SYSENTER instruction is not properly hooked in x86 emulation",
    371: "should uc_emu_start always return an error if it encountered a memory access error?",
    520: "Add six crash cases (2 * ARM + 4 * M68K)",
    577: "code hook callback passes an invalid 'size' for invalid opcode (i.e. instruction 0xf1)",
    578: "General Protection Fault (Int 13) followed by Double Fault (Int 8)",
    694: "sysenter emulation broken?",
    866: "MIPS might have wrong PC on syscall return",
    1027: "Can't Change PC (EIP) from UC_HOOK_INTR CallBack",
    1048: "unicorn fails to properly emulate syscall, sysenter, and probably int",
    1126: "MMU is not usable on ARM64",
    1148: "uc.mem_write() doesn't flush the TB cache",
    1273: "X86: Setting Hidden Flags?",
    1330: "Why not support cr8?",
    1378: "How to change CPL",
    1535: "unaligned memory access behavior",
    1732: "ARM64 ESR cannot be read",
    1783: "Unicorn does not enforce SSE data alignment",
    1786: "ARM exception should be raised for unaligned LDM, STM and other multi-word accesses",
    1843: "Cannot switch exception level in A64",
    1883: "x86 divide-by-zero exception causes nested exception",
    1902: "Add UC_HOOK_INSN support for UC_X86_INS_RDTSC and UC_X86_INS_RDRAND",
    2014: "Add support for more Intel registers",
    2041: "Execution depends on whether UC_HOOK_MEM_READ/_WRITE is registered",
    2065: "Change behaviour of the RDTSC instruction",
    2066: "make i386 instructions RDTSC and RDTSCP hookable",
    2185: "Shall we not check stop_request in hook loops?",
    2196: "Unicorn fails to execute a page of nops in x86",
    2240: "Segfault in uc_ctl_request_cache with UC_ARCH_MIPS",
    2271: "vmem_write clear tb cache after write",
    2272: "MIPS emulation goes into 'Branch in delay / forbidden slot' scenario when virtual tlb is enabled",
    2279: "better tb cache handling for hook add and del",
    2333: "Missing arm_rebuild_hflags call after writing to UC_ARM64_REG_PSTATE?",
    2345: "MIPS: ll/lld raise spurious EXCP_AdEL above useg under UC_TLB_VIRTUAL",
    2346: "target/mips: fix spurious EXCP_AdEL on ll/lld under UC_TLB_VIRTUAL",
    2347: "target/mips: fix spurious EXCP_RI under UC_TLB_VIRTUAL after a delay-slot TLB fill",
    2367: "x86 self modifying code regression broken",
    2376: "question about TLB-lookups with UC_TLB_VIRTUAL / weird lookup",
    2386: "arm: Add missing hflag update after writing PSTATE",
}
"""Every one that a row names."""
