CC := aarch64-linux-gnu-gcc
LD := aarch64-linux-gnu-ld
OBJCOPY := aarch64-linux-gnu-objcopy
KERNEL_FLAGS := -mcpu=cortex-a53 -mgeneral-regs-only -mno-outline-atomics -mbranch-protection=none -mcmodel=small -mstrict-align
USER_FLAGS := -mcpu=cortex-a53 -mgeneral-regs-only -mno-outline-atomics -mbranch-protection=none -mcmodel=small -mstrict-align
