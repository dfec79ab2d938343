"""The embedded engine, on Unicorn. Its quirks are worked around here and nowhere else."""
