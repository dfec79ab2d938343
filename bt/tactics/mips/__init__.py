"""MIPS32: words, what replaces a sensitive instruction, and how to climb to it."""
