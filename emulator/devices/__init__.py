"""Devices, one a file; each knows only offsets in its own window."""
