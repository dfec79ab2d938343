"""Services around a guest: its whole state as a value, snapshots, checkpoints, record and replay, reverse execution."""
