"""MIPS32 guests: coprocessor 0 and a software TLB over the engine's views of translations."""
