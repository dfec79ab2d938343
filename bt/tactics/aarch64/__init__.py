"""AArch64's tactics: registers that stand for others, masks that user code may change, checked accesses."""
