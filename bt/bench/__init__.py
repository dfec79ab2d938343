"""Measurements of whole processes, beside QEMU."""
