/* Control registers that cannot be: reserved bits, paging without protection, long mode without PAE.
 * A processor faults at each; one that does not loses the guest. */
#include "hostile.inc"

	BEGIN "control-registers"
	ATTEMPT 1f
	movq %cr4, %rax
	btsq $31, %rax
	movq %rax, %cr4
1:	ATTEMPT 2f
	movabsq $0x100000000, %rax
	movq %rax, %cr0
2:	ATTEMPT 3f
	movl $0xc0000080, %ecx
	rdmsr
	btrl $8, %eax /* LME, while paging is on */
	wrmsr
3:	ATTEMPT 4f
	movq %cr4, %rax
	btrq $5, %rax /* PAE */
	movq %rax, %cr4
4:	ATTEMPT 5f
	movl $0x80000000, %eax /* PG without PE */
	movq %rax, %cr0
5:	DONE
