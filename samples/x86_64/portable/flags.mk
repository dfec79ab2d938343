CC := gcc
LD := ld
OBJCOPY := objcopy
KERNEL_FLAGS := -mcmodel=kernel -mno-red-zone -mgeneral-regs-only -fcf-protection=none
USER_FLAGS := -mcmodel=small -mno-red-zone -mgeneral-regs-only -fcf-protection=none
