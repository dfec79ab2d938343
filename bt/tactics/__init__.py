"""The ways to make one site fit for a deprivileged guest, one tactic a file."""
