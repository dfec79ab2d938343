"""AArch64: the sensitive-instruction table, system registers, translation tables, exceptions."""
