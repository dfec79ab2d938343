"""Registers and model-specific registers as data: no two names for one thing, sums as the manual has them."""

from emulator.isa.x86 import msr, registers


def values(prefix: str) -> dict[str, int]:
    return {
        name: value for name, value in vars(registers).items() if name.startswith(prefix) and isinstance(value, int)
    }


def test_bits_of_one_register_do_not_overlap() -> None:
    sums = {"FLAG_IOPL_SHIFT", "FLAG_FIXED", "CR3_PCID", "CR3_PWT", "CR3_PCD"}
    for prefix in ("FLAG_", "CR0_", "CR4_", "EFER_", "XCR0_", "FAULT_"):
        seen = 0
        for name, value in values(prefix).items():
            if name not in sums:
                assert not seen & value, name
                seen |= value


def test_all_defined_flags_are_valid_and_the_reserved_ones_are_not() -> None:
    assert registers.FLAGS_VALID == 0x3F_7FD5
    assert not registers.FLAGS_VALID & registers.FLAG_FIXED


def test_exceptions_with_an_error_code_are_the_manuals() -> None:
    assert [vector for vector, row in registers.EXCEPTIONS.items() if row.error_code] == [8, 10, 11, 12, 13, 14, 17, 21]


def test_contributory_exceptions_are_the_manuals() -> None:
    by_class = {
        kind: {row.mnemonic for row in registers.EXCEPTIONS.values() if row.doubling is kind}
        for kind in registers.Doubling
    }
    assert by_class[registers.Doubling.CONTRIBUTORY] == {"#DE", "#TS", "#NP", "#SS", "#GP", "#CP"}
    assert by_class[registers.Doubling.PAGE_FAULT] == {"#PF", "#VE"}


def test_vectors_are_keyed_by_themselves() -> None:
    assert all(row.vector == vector for vector, row in registers.EXCEPTIONS.items())


def test_register_names_follow_the_encoding_order() -> None:
    assert all(getattr(registers, name) == index for index, name in enumerate(registers.GPR_NAMES))
    assert all(getattr(registers, name) == index for index, name in enumerate(registers.SEGMENT_NAMES))


def test_no_two_model_specific_registers_share_a_number() -> None:
    numbers = [value for name, value in vars(msr).items() if name.isupper() and isinstance(value, int)]
    assert len(msr.NAMES) == len(set(numbers)) - 1, "PAT_RESET is a value and no number"
    assert msr.NAMES[0xC000_0080] == "IA32_EFER"
    assert msr.NAMES[0x10] == "IA32_TIME_STAMP_COUNTER"
