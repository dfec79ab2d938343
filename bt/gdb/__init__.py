"""gdb's remote protocol: a guest as a target that a stock gdb debugs."""
