"""Scripts for disassemblers: run against recorders of the tools' documented functions; rizin's, line by line."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import types
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bt.cli import export as export_command
from bt.report.account import Account
from bt.report.export import TOOLS, export, labels, region
from tests.bt.report.documented_api import Binja, Ghidra, Ida, fits
from tests.bt.report.small_account import rewritten, small_account
from tests.bt.rewrite.small_kernel import addresses

EVIL = '"""\n__import__(\'os\').abort()\n#: ["site"]\n;!reboot;`x`@DATA@\u00e9\\'


@dataclass
class Recorder:
    """Every call, by the name of the function; each fits what the tool's manual declares."""

    declared: type
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def function(self, name: str, result: Any = None) -> Any:
        def called(*arguments: Any) -> Any:
            fits(self.declared, name, arguments)
            self.calls.append((name, arguments))
            return result

        return called

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


def run_ghidra(script: str, file: Path) -> Recorder:
    """As Ghidra does: the functions of FlatProgramAPI and GhidraScript are globals."""
    recorder = Recorder(Ghidra)
    file.write_text(script)
    names = ("createMemoryBlock", "createLabel", "setPlateComment", "setPreComment", "createBookmark", "disassemble")
    scope: dict[str, Any] = {name: recorder.function(name) for name in (*names, "getMemoryBlock")}
    scope["toAddr"] = lambda text: int(text, 16)
    scope["getSourceFile"] = lambda: types.SimpleNamespace(getAbsolutePath=lambda: str(file))
    scope["java_bytes"] = None
    jpype = types.ModuleType("jpype")
    jpype.JByte = "byte"  # type: ignore[attr-defined]
    jpype.JArray = lambda kind: lambda values: bytes(value & 0xFF for value in values)  # type: ignore[attr-defined]
    _run(script, scope, {"jpype": jpype})
    return recorder


def run_ida(script: str) -> Recorder:
    """The modules of IDAPython that the script imports."""
    recorder = Recorder(Ida)
    modules = {}
    functions = {
        "ida_bytes": ("set_cmt", "put_bytes"),
        "ida_name": ("set_name",),
        "ida_segment": ("add_segm", "getseg", "set_segm_addressing"),
        "ida_ua": ("create_insn",),
    }
    for name, members in functions.items():
        module = modules[name] = types.ModuleType(name)
        for member in members:
            setattr(module, member, recorder.function(member))
    for number, name in enumerate(("SN_NOWARN", "SN_FORCE", "SN_LOCAL")):
        setattr(modules["ida_name"], name, 1 << number)
    _run(script, {}, modules)
    return recorder


def run_binja(script: str) -> Recorder:
    """`bv`, and the package's `Symbol` and `SymbolType`."""
    recorder = Recorder(Binja)
    module = types.ModuleType("binaryninja")
    module.Symbol = lambda kind, place, name: (kind, place, name)  # type: ignore[attr-defined]
    module.SymbolType = types.SimpleNamespace(  # type: ignore[attr-defined]
        FunctionSymbol="function", LocalLabelSymbol="label"
    )
    names = ("add_function", "define_user_symbol", "set_comment_at", "create_tag_type", "add_tag", "get_tag_type")
    view = types.SimpleNamespace(
        **{name: recorder.function(name) for name in names},
        is_valid_offset=lambda place: False,
        get_tags_at=lambda place: [],
        memory_map=types.SimpleNamespace(add_memory_region=recorder.function("add_memory_region")),
    )
    _run(script, {"bv": view}, {"binaryninja": module})
    return recorder


def _run(script: str, scope: dict[str, Any], modules: dict[str, types.ModuleType]) -> None:
    """Run a script that can import nothing but `modules` and json."""

    def importer(name: str, *rest: Any) -> Any:
        if name in modules:
            return modules[name]
        if name == "json":
            return __import__(name)
        raise ImportError(name)

    builtins = {name: getattr(__import__("builtins"), name) for name in dir(__import__("builtins"))}
    scope["__builtins__"] = {**builtins, "__import__": importer}
    exec(compile(script, "script", "exec"), scope)


def hostile() -> Account:
    small = small_account()
    sites = tuple(replace(site, symbol=EVIL, reason=EVIL, instruction=EVIL) for site in small.sites)
    return replace(small, path=EVIL, sites=sites)


def test_labels_are_of_patched_sites_and_fixups() -> None:
    account = small_account()
    sites, fixups = labels(account)
    assert [address for _, address, _, _ in sites] == [site.start for site in account.sites if site.patched]
    assert [address for _, address, _, _ in fixups] == [fixup.address for fixup in account.fixups]
    assert len({name for name, *_ in (*sites, *fixups)}) == len(sites) + len(fixups)
    assert len(labels(account, every=True)[0]) > len(sites)


def test_the_region_holds_every_fixup_at_its_place() -> None:
    account = small_account()
    found = region(account)
    assert found is not None
    start, contents = found
    for fixup in account.fixups:
        assert contents[fixup.address - start :][: len(fixup.code)] == fixup.code


@pytest.mark.parametrize("make", [small_account, hostile])
def test_the_script_for_ghidra_labels_comments_and_adds_the_fixups(make: Any, tmp_path: Path) -> None:
    account = make()
    sites, fixups = labels(account)
    calls = run_ghidra(export(account, "ghidra"), tmp_path / "script.py")
    assert calls.of("createMemoryBlock") == [("retrap.fixups", *region(account), False)]  # type: ignore[misc]
    labelled = [(name, address, False) for name, address, *_ in sites]
    labelled += [(name, address, True) for name, address, *_ in fixups]
    assert sorted((name, place, primary) for place, name, primary in calls.of("createLabel")) == sorted(labelled)
    assert calls.of("setPreComment") == [(address, comment) for _, address, _, comment in sites]
    assert calls.of("createBookmark") == [(address, "retrap", comment) for _, address, _, comment in sites]
    assert [place for (place,) in calls.of("disassemble")] == [address for _, address, *_ in fixups]


@pytest.mark.parametrize("make", [small_account, hostile])
def test_the_script_for_ida_labels_comments_and_adds_the_fixups(make: Any) -> None:
    account = make()
    sites, fixups = labels(account)
    calls = run_ida(export(account, "ida"))
    found = region(account)
    assert found is not None
    assert calls.of("add_segm") == [(0, found[0], found[0] + len(found[1]), "retrap.fixups", "CODE")]
    assert calls.of("put_bytes") == [found]
    named = [(address, name) for name, address, *_ in (*fixups, *sites)]
    assert [(address, name) for address, name, _ in calls.of("set_name")] == named
    assert [address for address, _, _ in calls.of("set_cmt")] == [address for address, _ in named]


@pytest.mark.parametrize("make", [small_account, hostile])
def test_the_script_for_binary_ninja_labels_comments_and_adds_the_fixups(make: Any) -> None:
    account = make()
    sites, fixups = labels(account)
    calls = run_binja(export(account, "binja"))
    assert calls.of("add_memory_region") == [("retrap.fixups", *region(account))]  # type: ignore[misc]
    expected = [("function", address, name) for name, address, *_ in fixups]
    expected += [("label", address, name) for name, address, *_ in sites]
    assert [symbol for (symbol,) in calls.of("define_user_symbol")] == expected
    assert [place for place, *_ in calls.of("add_tag")] == [address for _, address, *_ in sites]


COMMANDS = (
    r"# [ -~]*",
    r"fs retrap",
    r"om 3 0x[0-9a-f]+ 0x[0-9a-f]+ 0x[0-9a-f]+ r-x retrap\.fixups",
    r"f [A-Za-z0-9_]+ \d+ @ 0x[0-9a-f]+",
    r"CCu base64:[A-Za-z0-9+/=]+ @ 0x[0-9a-f]+",
)


@pytest.mark.parametrize("make", [small_account, hostile])
def test_the_commands_for_rizin_are_these_and_no_others(make: Any) -> None:
    account = make()
    lines = export(account, "rizin").splitlines()
    for line in lines:
        assert any(re.fullmatch(command, line) for command in COMMANDS), line
    sites, fixups = labels(account)
    flags = [line.split()[1] for line in lines if line.startswith("f ")]
    assert flags == [name for name, *_ in (*fixups, *sites)]
    comments = [base64.b64decode(line[11:].split()[0]).decode() for line in lines if line.startswith("CCu")]
    assert comments == [comment for *_, comment in (*fixups, *sites)]


def test_rizin_is_told_where_in_the_file_the_fixups_lie() -> None:
    account, data = small_account(), rewritten()
    (line,) = [line for line in export(account, "rizin").splitlines() if line.startswith("om ")]
    start, size, offset = (int(word, 16) for word in line.split()[2:5])
    assert (start, size) == (region(account)[0], len(region(account)[1]))  # type: ignore[index]
    first = account.fixups[0]
    assert data[offset : offset + len(first.code)] == first.code


@pytest.fixture(scope="module")
def in_many_sections() -> bytes:
    """A rewritten image for ARMv7 whose fixups lie in several pages, and so in several sections of the file."""
    from bt.image import from_bytes
    from bt.planner import plan
    from bt.rewrite import rewrite
    from bt.scan import scan
    from tests.bt.image.image_files import Part, make_elf

    words = (0xE10F_1000, 0xE1A0_0000) * 150
    text = Part(".text", b"".join(word.to_bytes(4, "little") for word in words), 0xC030_0000, 0x4030_0000, 5)
    one = from_bytes(make_elf((text,), 0xC030_0000, machine=40, bits=32), "kernel")
    return rewrite(one, plan(one, scan(one), "auto"))


def test_every_fixup_has_its_place_in_the_file_where_they_lie_in_several_sections(in_many_sections: bytes) -> None:
    from bt.image import from_bytes
    from bt.report.json import rewrite_json
    from bt.report.source import of_rewritten

    image = from_bytes(in_many_sections, "image")
    assert sum(section.name == ".retrap.fixups" for section in image.sections) > 1
    account = of_rewritten(image)
    assert account is not None
    assert len(account.fixups) == 150
    for fixup in account.fixups:
        assert fixup.file_offset is not None
        assert in_many_sections[fixup.file_offset : fixup.file_offset + len(fixup.code)] == fixup.code
    assert [one["file_offset"] for one in rewrite_json(account)["fixups"]] == [
        one.file_offset for one in account.fixups
    ]
    mapped = [line.split() for line in export(account, "rizin").splitlines() if line.startswith("om ")]
    assert len(mapped) > 1
    for _, _, start, size, offset, *_ in mapped:
        here = [one for one in account.fixups if 0 <= one.address - int(start, 16) < int(size, 16)]
        assert here
        assert all(one.file_offset == one.address - int(start, 16) + int(offset, 16) for one in here)


@pytest.mark.parametrize("program", ["rizin", "radare2"])
def test_the_tool_itself_takes_the_commands(program: str, tmp_path: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; Debian 12 has no package of it")
    (tmp_path / "image").write_bytes(rewritten())
    (tmp_path / "script").write_text(export(small_account(), "rizin"))
    done = subprocess.run(
        [program, "-q", "-i", str(tmp_path / "script"), "-c", "f", str(tmp_path / "image")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for name, *_ in (*labels(small_account())[0], *labels(small_account())[1]):
        assert name in done.stdout


@pytest.mark.parametrize("tool", TOOLS)
def test_scripts_are_plain_ascii_and_the_same_twice(tool: str) -> None:
    assert export(hostile(), tool).isascii()
    assert export(small_account(), tool) == export(small_account(), tool)


def test_the_command_writes_the_script(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(rewritten())
    run = CliRunner(catch_exceptions=False)
    done = run.invoke(
        export_command.command,
        [str(tmp_path / "image"), "--to", "rizin", "-o", str(tmp_path / "script"), "--all"],
        standalone_mode=False,
    )
    assert done.exit_code == 0, done.output
    text = (tmp_path / "script").read_text()
    assert f"@ 0x{addresses()['write']:x}" in text
    assert len(text.splitlines()) > len(export(small_account(), "rizin").splitlines())
