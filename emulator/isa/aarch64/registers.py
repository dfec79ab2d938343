"""The system registers of AArch64 that EL1 and EL0 can name, by name.

Room: `emulator/isa/aarch64`, data about the instruction set: all EL1 and EL0 registers of Armv8.0 and the common ones
of later extensions (DDI 0487, D19). What EL0 may do with each is a column; the rows of the sensitive-instruction
table, the virtual CPU and the proofs are made from this list.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from emulator.isa.aarch64.encoding import register


@dataclass(frozen=True, slots=True)
class SystemRegister:
    """One register."""

    name: str
    """As the manual spells it."""
    encoding: int
    """op0, op1, CRn, CRm and op2 in sixteen bits."""
    access: str
    """What EL1 may do: "rw", "r" or "w"."""
    user: str
    """What EL0 may do without asking, as `access`; "" for nothing."""
    asks: str
    """What EL0 may do when `unless` does not forbid it."""
    unless: str
    """The condition under which EL0's access traps ("SCTLR_EL1.UCT = 0")."""
    feature: str
    """The extension that brings it ("FEAT_PAN"); "" for Armv8.0."""
    later: bool
    """An assembler for Armv8.0 does not know the name."""
    kind: str
    """What it is for: the head of the group it stands in."""


def _parse() -> Iterator[SystemRegister]:
    kind = ""
    for line in _LIST.splitlines():
        if line.startswith("#"):
            kind = line[1:].strip()
        elif line.strip():
            yield from _expand(line, kind)


def _expand(line: str, kind: str) -> Iterator[SystemRegister]:
    """A line: name, encoding, EL1's access, EL0's, the condition under which EL0 traps, the extension.

    `later`: the name, not the place, is newer than Armv8.0.
    `n` in a name, with `count=`, stands for as many registers, n in CRm (`crm+n`), op2 (`op2+n`) or in both (`+n`).
    """
    name, place, access, user, *rest = line.split()
    unless = next((word[1:].replace("=0", " = 0").replace("_&_", " and ") for word in rest if word[0] == "?"), "")
    feature = next((word for word in rest if word.startswith("FEAT_")), "")
    count = next((int(word[6:]) for word in rest if word.startswith("count=")), 0)
    way = next((word for word in rest if word.startswith(("crm+", "op2+", "+"))), "")
    op0, op1, crn, crm, op2 = map(int, place.split(","))
    user = "" if user == "-" else user
    for number in range(count or 1):
        where = {
            "": (crm, op2),
            "crm+n": (crm + number, op2),
            "op2+n": (crm, op2 + number),
            "+n": (crm + (number >> 3), number & 7),
        }[way]
        yield SystemRegister(
            name.replace("n", str(number), 1) if count else name,
            register(op0, op1, crn, *where),
            access,
            "" if unless else user,
            user if unless else "",
            unless,
            feature,
            bool(feature) or "later" in rest,
            kind,
        )


_LIST: Final = """
# identification
MIDR_EL1 3,0,0,0,0 r -
MPIDR_EL1 3,0,0,0,5 r -
REVIDR_EL1 3,0,0,0,6 r -
ID_PFR0_EL1 3,0,0,1,0 r -
ID_PFR1_EL1 3,0,0,1,1 r -
ID_DFR0_EL1 3,0,0,1,2 r -
ID_AFR0_EL1 3,0,0,1,3 r -
ID_MMFR0_EL1 3,0,0,1,4 r -
ID_MMFR1_EL1 3,0,0,1,5 r -
ID_MMFR2_EL1 3,0,0,1,6 r -
ID_MMFR3_EL1 3,0,0,1,7 r -
ID_ISAR0_EL1 3,0,0,2,0 r -
ID_ISAR1_EL1 3,0,0,2,1 r -
ID_ISAR2_EL1 3,0,0,2,2 r -
ID_ISAR3_EL1 3,0,0,2,3 r -
ID_ISAR4_EL1 3,0,0,2,4 r -
ID_ISAR5_EL1 3,0,0,2,5 r -
ID_MMFR4_EL1 3,0,0,2,6 r -
ID_ISAR6_EL1 3,0,0,2,7 r - later
MVFR0_EL1 3,0,0,3,0 r -
MVFR1_EL1 3,0,0,3,1 r -
MVFR2_EL1 3,0,0,3,2 r -
ID_PFR2_EL1 3,0,0,3,4 r - later
ID_DFR1_EL1 3,0,0,3,5 r - later
ID_MMFR5_EL1 3,0,0,3,6 r - later
ID_AA64PFR0_EL1 3,0,0,4,0 r -
ID_AA64PFR1_EL1 3,0,0,4,1 r -
ID_AA64PFR2_EL1 3,0,0,4,2 r - later
ID_AA64ZFR0_EL1 3,0,0,4,4 r - later
ID_AA64SMFR0_EL1 3,0,0,4,5 r - later
ID_AA64FPFR0_EL1 3,0,0,4,7 r - later
ID_AA64DFR0_EL1 3,0,0,5,0 r -
ID_AA64DFR1_EL1 3,0,0,5,1 r -
ID_AA64AFR0_EL1 3,0,0,5,4 r -
ID_AA64AFR1_EL1 3,0,0,5,5 r -
ID_AA64ISAR0_EL1 3,0,0,6,0 r -
ID_AA64ISAR1_EL1 3,0,0,6,1 r -
ID_AA64ISAR2_EL1 3,0,0,6,2 r - later
ID_AA64ISAR3_EL1 3,0,0,6,3 r - later
ID_AA64MMFR0_EL1 3,0,0,7,0 r -
ID_AA64MMFR1_EL1 3,0,0,7,1 r -
ID_AA64MMFR2_EL1 3,0,0,7,2 r - later
ID_AA64MMFR3_EL1 3,0,0,7,3 r - later
ID_AA64MMFR4_EL1 3,0,0,7,4 r - later
CCSIDR_EL1 3,1,0,0,0 r -
CLIDR_EL1 3,1,0,0,1 r -
CCSIDR2_EL1 3,1,0,0,2 r - FEAT_CCIDX
GMID_EL1 3,1,0,0,4 r - FEAT_MTE2
SMIDR_EL1 3,1,0,0,6 r - FEAT_SME
AIDR_EL1 3,1,0,0,7 r -
CSSELR_EL1 3,2,0,0,0 rw -
CTR_EL0 3,3,0,0,1 r r ?SCTLR_EL1.UCT=0
DCZID_EL0 3,3,0,0,7 r r
# system control
SCTLR_EL1 3,0,1,0,0 rw -
ACTLR_EL1 3,0,1,0,1 rw -
CPACR_EL1 3,0,1,0,2 rw -
RGSR_EL1 3,0,1,0,5 rw - FEAT_MTE2
GCR_EL1 3,0,1,0,6 rw - FEAT_MTE2
ZCR_EL1 3,0,1,2,0 rw - FEAT_SVE
TRFCR_EL1 3,0,1,2,1 rw - FEAT_TRF
SMPRI_EL1 3,0,1,2,4 rw - FEAT_SME
SMCR_EL1 3,0,1,2,6 rw - FEAT_SME
# address translation
TTBR0_EL1 3,0,2,0,0 rw -
TTBR1_EL1 3,0,2,0,1 rw -
TCR_EL1 3,0,2,0,2 rw -
TCR2_EL1 3,0,2,0,3 rw - FEAT_TCR2
MAIR_EL1 3,0,10,2,0 rw -
PIRE0_EL1 3,0,10,2,2 rw - FEAT_S1PIE
PIR_EL1 3,0,10,2,3 rw - FEAT_S1PIE
POR_EL1 3,0,10,2,4 rw - FEAT_S1POE
AMAIR_EL1 3,0,10,3,0 rw -
PAR_EL1 3,0,7,4,0 rw -
CONTEXTIDR_EL1 3,0,13,0,1 rw -
LORSA_EL1 3,0,10,4,0 rw - FEAT_LOR
LOREA_EL1 3,0,10,4,1 rw - FEAT_LOR
LORN_EL1 3,0,10,4,2 rw - FEAT_LOR
LORC_EL1 3,0,10,4,3 rw - FEAT_LOR
MPAMIDR_EL1 3,0,10,4,4 r - FEAT_MPAM
LORID_EL1 3,0,10,4,7 r - FEAT_LOR
MPAM1_EL1 3,0,10,5,0 rw - FEAT_MPAM
MPAM0_EL1 3,0,10,5,1 rw - FEAT_MPAM
# pointer authentication
APIAKeyLo_EL1 3,0,2,1,0 rw - FEAT_PAuth
APIAKeyHi_EL1 3,0,2,1,1 rw - FEAT_PAuth
APIBKeyLo_EL1 3,0,2,1,2 rw - FEAT_PAuth
APIBKeyHi_EL1 3,0,2,1,3 rw - FEAT_PAuth
APDAKeyLo_EL1 3,0,2,2,0 rw - FEAT_PAuth
APDAKeyHi_EL1 3,0,2,2,1 rw - FEAT_PAuth
APDBKeyLo_EL1 3,0,2,2,2 rw - FEAT_PAuth
APDBKeyHi_EL1 3,0,2,2,3 rw - FEAT_PAuth
APGAKeyLo_EL1 3,0,2,3,0 rw - FEAT_PAuth
APGAKeyHi_EL1 3,0,2,3,1 rw - FEAT_PAuth
# processor state and exceptions
SPSR_EL1 3,0,4,0,0 rw -
ELR_EL1 3,0,4,0,1 rw -
SP_EL0 3,0,4,1,0 rw -
SPSel 3,0,4,2,0 rw -
CurrentEL 3,0,4,2,2 r -
PAN 3,0,4,2,3 rw - FEAT_PAN
UAO 3,0,4,2,4 rw - FEAT_UAO
ALLINT 3,0,4,3,0 rw - FEAT_NMI
DAIF 3,3,4,2,1 rw rw ?SCTLR_EL1.UMA=0
VBAR_EL1 3,0,12,0,0 rw -
ISR_EL1 3,0,12,1,0 r -
DISR_EL1 3,0,12,1,1 rw - FEAT_RAS
ESR_EL1 3,0,5,2,0 rw -
FAR_EL1 3,0,6,0,0 rw -
AFSR0_EL1 3,0,5,1,0 rw -
AFSR1_EL1 3,0,5,1,1 rw -
TFSR_EL1 3,0,5,6,0 rw - FEAT_MTE2
TFSRE0_EL1 3,0,5,6,1 rw - FEAT_MTE2
# error records
ERRIDR_EL1 3,0,5,3,0 r - FEAT_RAS
ERRSELR_EL1 3,0,5,3,1 rw - FEAT_RAS
ERXFR_EL1 3,0,5,4,0 r - FEAT_RAS
ERXCTLR_EL1 3,0,5,4,1 rw - FEAT_RAS
ERXSTATUS_EL1 3,0,5,4,2 rw - FEAT_RAS
ERXADDR_EL1 3,0,5,4,3 rw - FEAT_RAS
ERXPFGF_EL1 3,0,5,4,4 r - FEAT_RASv1p1
ERXPFGCTL_EL1 3,0,5,4,5 rw - FEAT_RASv1p1
ERXPFGCDN_EL1 3,0,5,4,6 rw - FEAT_RASv1p1
ERXMISCn_EL1 3,0,5,5,0 rw - FEAT_RAS count=4 op2+n
# thread and context
TPIDR_EL1 3,0,13,0,4 rw -
ACCDATA_EL1 3,0,13,0,5 rw - FEAT_LS64_ACCDATA
SCXTNUM_EL1 3,0,13,0,7 rw - FEAT_CSV2_2
TPIDR_EL0 3,3,13,0,2 rw rw
TPIDRRO_EL0 3,3,13,0,3 rw r
TPIDR2_EL0 3,3,13,0,5 rw rw ?SCTLR_EL1.EnTP2=0 FEAT_SME
SCXTNUM_EL0 3,3,13,0,7 rw rw ?SCTLR_EL1.TSCXT=1 FEAT_CSV2_2
# timers and counters
CNTKCTL_EL1 3,0,14,1,0 rw -
CNTFRQ_EL0 3,3,14,0,0 r r ?CNTKCTL_EL1.EL0PCTEN=0_&_EL0VCTEN=0
CNTPCT_EL0 3,3,14,0,1 r r ?CNTKCTL_EL1.EL0PCTEN=0
CNTVCT_EL0 3,3,14,0,2 r r ?CNTKCTL_EL1.EL0VCTEN=0
CNTPCTSS_EL0 3,3,14,0,5 r r ?CNTKCTL_EL1.EL0PCTEN=0 FEAT_ECV
CNTVCTSS_EL0 3,3,14,0,6 r r ?CNTKCTL_EL1.EL0VCTEN=0 FEAT_ECV
CNTP_TVAL_EL0 3,3,14,2,0 rw rw ?CNTKCTL_EL1.EL0PTEN=0
CNTP_CTL_EL0 3,3,14,2,1 rw rw ?CNTKCTL_EL1.EL0PTEN=0
CNTP_CVAL_EL0 3,3,14,2,2 rw rw ?CNTKCTL_EL1.EL0PTEN=0
CNTV_TVAL_EL0 3,3,14,3,0 rw rw ?CNTKCTL_EL1.EL0VTEN=0
CNTV_CTL_EL0 3,3,14,3,1 rw rw ?CNTKCTL_EL1.EL0VTEN=0
CNTV_CVAL_EL0 3,3,14,3,2 rw rw ?CNTKCTL_EL1.EL0VTEN=0
# performance monitors
PMCR_EL0 3,3,9,12,0 rw rw ?PMUSERENR_EL0.EN=0
PMCNTENSET_EL0 3,3,9,12,1 rw rw ?PMUSERENR_EL0.EN=0
PMCNTENCLR_EL0 3,3,9,12,2 rw rw ?PMUSERENR_EL0.EN=0
PMOVSCLR_EL0 3,3,9,12,3 rw rw ?PMUSERENR_EL0.EN=0
PMSWINC_EL0 3,3,9,12,4 w w ?PMUSERENR_EL0.EN=0_&_SW=0
PMSELR_EL0 3,3,9,12,5 rw rw ?PMUSERENR_EL0.EN=0_&_ER=0
PMCEID0_EL0 3,3,9,12,6 r r ?PMUSERENR_EL0.EN=0
PMCEID1_EL0 3,3,9,12,7 r r ?PMUSERENR_EL0.EN=0
PMCCNTR_EL0 3,3,9,13,0 rw rw ?PMUSERENR_EL0.EN=0_&_CR=0
PMXEVTYPER_EL0 3,3,9,13,1 rw rw ?PMUSERENR_EL0.EN=0
PMXEVCNTR_EL0 3,3,9,13,2 rw rw ?PMUSERENR_EL0.EN=0_&_ER=0
PMUSERENR_EL0 3,3,9,14,0 rw r
PMOVSSET_EL0 3,3,9,14,3 rw rw ?PMUSERENR_EL0.EN=0
PMEVCNTRn_EL0 3,3,14,8,0 rw rw ?PMUSERENR_EL0.EN=0_&_ER=0 count=31 +n
PMEVTYPERn_EL0 3,3,14,12,0 rw rw ?PMUSERENR_EL0.EN=0 count=31 +n
PMCCFILTR_EL0 3,3,14,15,7 rw rw ?PMUSERENR_EL0.EN=0
PMINTENSET_EL1 3,0,9,14,1 rw -
PMINTENCLR_EL1 3,0,9,14,2 rw -
PMMIR_EL1 3,0,9,14,6 r - FEAT_PMUv3p4
PMSCR_EL1 3,0,9,9,0 rw - FEAT_SPE
PMSNEVFR_EL1 3,0,9,9,1 rw - FEAT_SPEv1p2
PMSICR_EL1 3,0,9,9,2 rw - FEAT_SPE
PMSIRR_EL1 3,0,9,9,3 rw - FEAT_SPE
PMSFCR_EL1 3,0,9,9,4 rw - FEAT_SPE
PMSEVFR_EL1 3,0,9,9,5 rw - FEAT_SPE
PMSLATFR_EL1 3,0,9,9,6 rw - FEAT_SPE
PMSIDR_EL1 3,0,9,9,7 r - FEAT_SPE
PMBLIMITR_EL1 3,0,9,10,0 rw - FEAT_SPE
PMBPTR_EL1 3,0,9,10,1 rw - FEAT_SPE
PMBSR_EL1 3,0,9,10,3 rw - FEAT_SPE
PMBIDR_EL1 3,0,9,10,7 r - FEAT_SPE
TRBLIMITR_EL1 3,0,9,11,0 rw - FEAT_TRBE
TRBPTR_EL1 3,0,9,11,1 rw - FEAT_TRBE
TRBBASER_EL1 3,0,9,11,2 rw - FEAT_TRBE
TRBSR_EL1 3,0,9,11,3 rw - FEAT_TRBE
TRBMAR_EL1 3,0,9,11,4 rw - FEAT_TRBE
TRBTRG_EL1 3,0,9,11,6 rw - FEAT_TRBE
TRBIDR_EL1 3,0,9,11,7 r - FEAT_TRBE
AMCR_EL0 3,3,13,2,0 rw r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1
AMCFGR_EL0 3,3,13,2,1 r r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1
AMCGCR_EL0 3,3,13,2,2 r r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1
AMUSERENR_EL0 3,3,13,2,3 rw r FEAT_AMUv1
AMCNTENCLR0_EL0 3,3,13,2,4 rw r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1
AMCNTENSET0_EL0 3,3,13,2,5 rw r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1
AMCNTENCLR1_EL0 3,3,13,3,0 rw r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1
AMCNTENSET1_EL0 3,3,13,3,1 rw r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1
AMEVCNTR0n_EL0 3,3,13,4,0 rw r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1 count=4 +n
AMEVTYPER0n_EL0 3,3,13,6,0 r r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1 count=4 +n
AMEVCNTR1n_EL0 3,3,13,12,0 rw r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1 count=16 +n
AMEVTYPER1n_EL0 3,3,13,14,0 rw r ?AMUSERENR_EL0.EN=0 FEAT_AMUv1 count=16 +n
# interrupt controller
ICC_PMR_EL1 3,0,4,6,0 rw - FEAT_GICv3
ICC_IAR0_EL1 3,0,12,8,0 r - FEAT_GICv3
ICC_EOIR0_EL1 3,0,12,8,1 w - FEAT_GICv3
ICC_HPPIR0_EL1 3,0,12,8,2 r - FEAT_GICv3
ICC_BPR0_EL1 3,0,12,8,3 rw - FEAT_GICv3
ICC_AP0Rn_EL1 3,0,12,8,4 rw - FEAT_GICv3 count=4 op2+n
ICC_AP1Rn_EL1 3,0,12,9,0 rw - FEAT_GICv3 count=4 op2+n
ICC_NMIAR1_EL1 3,0,12,9,5 r - FEAT_GICv3_NMI
ICC_DIR_EL1 3,0,12,11,1 w - FEAT_GICv3
ICC_RPR_EL1 3,0,12,11,3 r - FEAT_GICv3
ICC_SGI1R_EL1 3,0,12,11,5 w - FEAT_GICv3
ICC_ASGI1R_EL1 3,0,12,11,6 w - FEAT_GICv3
ICC_SGI0R_EL1 3,0,12,11,7 w - FEAT_GICv3
ICC_IAR1_EL1 3,0,12,12,0 r - FEAT_GICv3
ICC_EOIR1_EL1 3,0,12,12,1 w - FEAT_GICv3
ICC_HPPIR1_EL1 3,0,12,12,2 r - FEAT_GICv3
ICC_BPR1_EL1 3,0,12,12,3 rw - FEAT_GICv3
ICC_CTLR_EL1 3,0,12,12,4 rw - FEAT_GICv3
ICC_SRE_EL1 3,0,12,12,5 rw - FEAT_GICv3
ICC_IGRPEN0_EL1 3,0,12,12,6 rw - FEAT_GICv3
ICC_IGRPEN1_EL1 3,0,12,12,7 rw - FEAT_GICv3
# debug
OSDTRRX_EL1 2,0,0,0,2 rw -
MDCCINT_EL1 2,0,0,2,0 rw -
MDSCR_EL1 2,0,0,2,2 rw -
OSDTRTX_EL1 2,0,0,3,2 rw -
OSECCR_EL1 2,0,0,6,2 rw -
DBGBVRn_EL1 2,0,0,0,4 rw - count=16 crm+n
DBGBCRn_EL1 2,0,0,0,5 rw - count=16 crm+n
DBGWVRn_EL1 2,0,0,0,6 rw - count=16 crm+n
DBGWCRn_EL1 2,0,0,0,7 rw - count=16 crm+n
MDRAR_EL1 2,0,1,0,0 r -
OSLAR_EL1 2,0,1,0,4 w -
OSLSR_EL1 2,0,1,1,4 r -
OSDLR_EL1 2,0,1,3,4 rw -
DBGPRCR_EL1 2,0,1,4,4 rw -
DBGCLAIMSET_EL1 2,0,7,8,6 rw -
DBGCLAIMCLR_EL1 2,0,7,9,6 rw -
DBGAUTHSTATUS_EL1 2,0,7,14,6 r -
MDCCSR_EL0 2,3,0,1,0 r r ?MDSCR_EL1.TDCC=1
DBGDTR_EL0 2,3,0,4,0 rw rw ?MDSCR_EL1.TDCC=1
DBGDTRTX_EL0 2,3,0,5,0 rw rw ?MDSCR_EL1.TDCC=1 later
DSPSR_EL0 3,3,4,5,0 rw -
DLR_EL0 3,3,4,5,1 rw -
"""
"""Name, op0,op1,CRn,CRm,op2, what EL1 and EL0 may do, the condition under which EL0 traps, the extension."""

REGISTERS: Final[tuple[SystemRegister, ...]] = tuple(_parse())
"""In the order of the list."""

BY_NAME: Final[dict[str, SystemRegister]] = {one.name: one for one in REGISTERS}
BY_ENCODING: Final[dict[int, SystemRegister]] = {one.encoding: one for one in REGISTERS}

INNOCUOUS: Final[dict[str, int]] = {
    "NZCV": register(3, 3, 4, 2, 0),
    "SVCR": register(3, 3, 4, 2, 2),
    "DIT": register(3, 3, 4, 2, 5),
    "SSBS": register(3, 3, 4, 2, 6),
    "TCO": register(3, 3, 4, 2, 7),
    "FPCR": register(3, 3, 4, 4, 0),
    "FPSR": register(3, 3, 4, 4, 1),
    "FPMR": register(3, 3, 4, 4, 2),
    "RNDR": register(3, 3, 2, 4, 0),
    "RNDRRS": register(3, 3, 2, 4, 1),
    "POR_EL0": register(3, 3, 10, 2, 4),
}
"""Registers of user code, with the same meaning at EL1 and at EL0: no row."""
