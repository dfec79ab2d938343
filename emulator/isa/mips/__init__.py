"""MIPS32r2: the sensitive-instruction table, coprocessor 0, exceptions, segments and the TLB's format."""
