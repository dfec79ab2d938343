"""Plans: a tactic and a reason for every site, JSON both ways, and nothing accepted that contradicts itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bt.plan import Plan, read_plan
from bt.planner import plan
from bt.scan import scan
from bt.tactics.tactics import Tactic
from emulator.errors import BadImage, UsageError
from paravirt.abi import FIXUP_BASE
from tests.bt.rewrite.small_kernel import addresses, image


def made(mode: str) -> Plan:
    kernel = image()
    return plan(kernel, scan(kernel), mode)


def test_trap_mode_plants_on_what_does_not_trap_and_leaves_the_rest() -> None:
    tactics = {site.instruction: site.tactic for site in made("trap").sites}
    assert tactics == {
        "CLI": Tactic.NATIVE,
        "STI": Tactic.NATIVE,
        "HLT": Tactic.NATIVE,
        "MOV r, CR": Tactic.NATIVE,
        "MOV CR, r": Tactic.NATIVE,
        "PUSHF": Tactic.TRAP,
        "SGDT": Tactic.TRAP,
        "CPUID": Tactic.TRAP,
    }


def test_inline_mode_promotes_what_is_sound_and_says_why_not() -> None:
    at = addresses()
    by_address = {site.address: site for site in made("inline").sites}
    assert by_address[at["start"]].tactic is Tactic.INLINE
    assert by_address[at["flags"]].tactic is Tactic.INLINE
    assert by_address[at["control"]].tactic is Tactic.INLINE
    assert by_address[at["loop"]].tactic is Tactic.INLINE
    assert by_address[at["tight"]].tactic is Tactic.INLINE
    assert "another sensitive instruction" in by_address[at["wait"]].refused
    assert "without the hypervisor" in by_address[at["sgdt"]].refused


@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_every_site_has_a_tactic_and_a_reason(mode: str) -> None:
    found = made(mode)
    assert len(found.sites) == len(scan(image()))
    for site in found.sites:
        assert site.reason
        assert len(site.old) == len(site.new) >= 1
        if site.tactic is Tactic.TRAP:
            assert site.new == b"\xf4" + site.old[1:]
        elif site.tactic is Tactic.INLINE:
            assert site.new[:1] == b"\xe9"
            assert site.fixup >= FIXUP_BASE
        else:
            assert site.new == site.old


@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_a_plan_survives_json(mode: str) -> None:
    found = made(mode)
    assert read_plan(json.dumps(found.to_json())) == found


def test_the_same_image_gives_the_same_plan() -> None:
    assert json.dumps(made("inline").to_json()) == json.dumps(made("inline").to_json())


def damage(key: str, value: object) -> dict[str, Any]:
    plain = made("inline").to_json()
    plain[key] = value
    return plain


@pytest.mark.parametrize(
    "plain",
    [
        damage("format", 99),
        damage("abi", 0),
        damage("mode", "magic"),
        damage("sites", [{"address": 1}]),
        damage("sites", 7),
        damage("end", -1),
        damage("end", FIXUP_BASE - 1),
        damage("end", FIXUP_BASE),
        [],
        "plan",
        None,
    ],
)
def test_a_damaged_plan_is_refused_in_one_sentence(plain: object) -> None:
    with pytest.raises(BadImage, match="plan"):
        Plan.from_json(plain)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(BadImage):
        read_plan(text)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="inline"):
        plan(image(), [], "fast")


@pytest.mark.kernel
def test_debians_flag_functions_are_called_without_an_exit(debian_inline: Plan) -> None:
    found = debian_inline
    assert read_plan(json.dumps(found.to_json())) == found
    reasons = [change.reason for change in found.changes]
    for name in ("save_fl", "irq_disable", "irq_enable"):
        assert sum(name in reason for reason in reasons) == 1
    assert sum("LOCK" in reason for reason in reasons) > 5000
    copied = [site for site in found.sites if site.home]
    assert len(copied) > 1500, "the alternatives' replacements never run where they stand"
    assert all(site.old == site.new for site in copied)
    flags = [site for site in copied if site.instruction in ("CLI", "STI", "PUSHF")]
    assert sum(site.tactic is Tactic.INLINE for site in flags) > 1300
    assert sum(site.instruction == "MOV r, Sreg" and site.tactic is Tactic.INLINE for site in found.sites) >= 5
