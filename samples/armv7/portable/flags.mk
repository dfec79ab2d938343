CC := arm-linux-gnueabihf-gcc
LD := arm-linux-gnueabihf-ld
OBJCOPY := arm-linux-gnueabihf-objcopy
KERNEL_FLAGS := -marm -mcpu=cortex-a7 -mfpu=neon-vfpv4 -mgeneral-regs-only -mno-unaligned-access
USER_FLAGS := -marm -mcpu=cortex-a7 -mfpu=neon-vfpv4 -mgeneral-regs-only -mno-unaligned-access
LINK_FLAGS := --no-merge-exidx-entries
