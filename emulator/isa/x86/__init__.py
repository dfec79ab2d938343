"""x86-64: the sensitive-instruction table, registers, descriptors, page tables, exceptions."""
