"""Boards: which devices are where, and the boot protocol."""
