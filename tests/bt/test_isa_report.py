"""The printed table: every row and the verdict in every form, and the command that prints them."""

import json
from dataclasses import replace

import pytest

from bt import isa_report
from bt.cli.main import run
from emulator.errors import UsageError, VerifyFailed
from emulator.isa.isas import X86_64
from emulator.isa.proof import Proof, Verdict
from emulator.isa.x86.table import ROW_OF_NAME, ROWS


def test_the_verdict_names_every_row_that_breaks_the_condition_and_no_other() -> None:
    text = isa_report.verdict(X86_64)
    named = {name for line in text.splitlines() if line.startswith("  ") for name in line.split(": ", 1)[1].split("; ")}
    assert named == {row.name for row in ROWS if not row.privileged}
    assert "does not hold" in text


def test_a_table_of_privileged_rows_only_would_satisfy_the_condition() -> None:
    better = replace(X86_64, load_rows=lambda: tuple(row for row in ROWS if row.privileged))
    assert "condition holds" in isa_report.verdict(better)
    assert isa_report.table_json(better)["virtualisable"] is True


def test_every_row_is_a_line_of_the_text_and_of_the_markdown() -> None:
    lines = isa_report.table_text(X86_64).splitlines()
    assert len([line for line in lines[1:] if not line.startswith("    ")]) == len(ROWS)
    markdown = isa_report.table_markdown(X86_64)
    assert all(f"| {row.name} | `{row.example}` |" in markdown for row in ROWS)


def test_json_says_of_a_row_what_the_row_says() -> None:
    by_name = {row["name"]: row for row in isa_report.table_json(X86_64)["rows"]}
    assert set(by_name) == {row.name for row in ROWS}
    assert by_name["POPF"]["user_mode"] == "ignored"
    assert by_name["POPF"]["planted"] is True
    assert by_name["CLI"]["planted"] is False
    assert by_name["PUSHF"]["encodings"] == ["o16 9C: PUSHF", "o64 9C: PUSHFQ"]


def test_output_is_the_same_every_time() -> None:
    assert json.dumps(isa_report.table_json(X86_64)) == json.dumps(isa_report.table_json(X86_64))
    assert isa_report.table_text(X86_64) == isa_report.table_text(X86_64)


def test_the_command_prints_table_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["isa", "x86-64"]) == 0
    out = capsys.readouterr().out
    assert out == f"{isa_report.table_text(X86_64)}\n{isa_report.verdict(X86_64)}"


def test_the_command_proves_rows_and_says_so_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["isa", "x86-64", "--prove", "--json", "--row", "CLI", "--row", "INT3"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["CLI"]["proof"]["verdict"] == "proven"
    assert rows["CLI"]["proof"]["user_mode"] == "#GP(0x0)"
    assert rows["INT3"]["proof"]["verdict"] == "departs"
    assert "proof" not in rows["STI"]


def test_the_command_proves_all_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["isa", "x86-64", "--prove"]) == 0
    assert f"of {len(ROWS)} rows" in capsys.readouterr().out.splitlines()[-1]


def test_a_refuted_row_fails_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    proof = Proof(ROW_OF_NAME["CLI"], Verdict.REFUTED, "completes", "completes", ("user mode: saw completes",))
    monkeypatch.setattr(isa_report, "prove_rows", lambda isa, names: [proof])
    assert run(["isa", "x86-64", "--prove"]) == VerifyFailed.exit_status
    assert "first CLI: user mode: saw completes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["isa", "vax"], ["isa", "x86-64", "--row", "CLI"], ["isa", "x86-64", "--prove", "--row", "nonsense"]]
)
def test_a_senseless_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == UsageError.exit_status
    assert "Traceback" not in capsys.readouterr().err
