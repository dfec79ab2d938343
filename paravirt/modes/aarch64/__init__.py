"""AArch64 guests: their virtual CPU, their views of memory, and what their exits mean."""
