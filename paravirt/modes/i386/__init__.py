"""32-bit x86 guests: segments and legacy or PAE paging on an engine in compatibility mode."""
