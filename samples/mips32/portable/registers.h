/* Names of registers, as the kernel's assembly has them. */
#define zero $0
#define at $1
#define v0 $2
#define v1 $3
#define a0 $4
#define a1 $5
#define t0 $8
#define t1 $9
#define t2 $10
#define s0 $16
#define k0 $26
#define k1 $27
#define sp $29
#define fp $30
#define ra $31

	.set noreorder
	.set noat
