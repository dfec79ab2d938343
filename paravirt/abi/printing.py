"""What a guest includes: the para-virtual interface as a C header, for assembler, and as JSON.

Room: `paravirt/abi`. Every line is printed from `calls` and `guests`; nothing is known here but how the languages spell
it. The files in `samples/include` are these texts, and a test holds them to that.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Final

from paravirt.abi import ABI_VERSION
from paravirt.abi import calls as c
from paravirt.abi import guests as g
from paravirt.abi.guests import CONVENTIONS, Convention

_NOTICE: Final = "Printed by `retrap abi`; changes here are lost."
_ORDINALS: Final = ("a", "b", "c", "d")


def constants() -> list[tuple[str, int, str]]:
    """Names and values that all instruction sets share, and what they mean."""
    return [
        ("VERSION", c.PARA_VERSION, "major << 16 | minor"),
        *((f"CALL_{row.call.name}", int(row.call), f"({', '.join(row.arguments)})") for row in c.CALLS),
        *((f"ERROR_{status.name}", int(status), "") for status in c.Status),
        *((f"TRAP_{trap.name}", int(trap), "") for trap in g.Trap),
        ("TRAPS", len(g.Trap), ""),
        *((f"PORT_{port.name}", int(port), "") for port in g.Port),
        ("PORT_OWN", g.FIRST_OWN_PORT, ""),
        ("PORTS", g.PORTS, ""),
        ("ACCESS_READ", g.ACCESS_READ, ""),
        ("ACCESS_WRITE", g.ACCESS_WRITE, ""),
        ("ACCESS_EXECUTE", g.ACCESS_EXECUTE, ""),
        ("ACCESS_PRESENT", g.ACCESS_PRESENT, ""),
        ("STATE_USER", g.STATE_USER, ""),
        ("STATE_INTERRUPTS", g.STATE_INTERRUPTS, ""),
        ("MOST_BYTES", c.MOST_BYTES, "of CONSOLE_WRITE and CONSOLE_READ"),
        ("MOST_ELEMENTS", c.MOST_ELEMENTS, "of MULTICALL and PTE_UPDATE"),
        ("NOTE_VERSION", g.NOTE_VERSION, f'type of the ELF note "{g.NOTE_NAME}" whose description is the version'),
    ]


def places(convention: Convention) -> list[tuple[str, int, str]]:
    """Addresses and values of one instruction set."""
    window = convention.window
    mask = window.last_address
    return [
        ("WORD", convention.word, "bytes"),
        ("CALL", convention.call_entry, "called"),
        ("RETURN", convention.return_entry, "jumped to: RETURN of the frame on top of the stack"),
        ("ROOM", convention.room if convention.link else 0, "bytes from the stack pointer to that frame"),
        ("SHARED", window.shared_page, "the shared page"),
        ("INTERRUPTS", window.shared_page + window.interrupt_state, "the virtual interrupt flag"),
        ("INTERRUPTS_ON", window.enabled & mask, ""),
        ("INTERRUPTS_OFF", window.disabled & mask, ""),
        ("EVENTS", window.shared_page + window.pending, "ports that are pending"),
        ("MASK", window.shared_page + g.MASK_OFFSET, "ports that are not delivered"),
        ("FPU", window.shared_page + g.FPU_OFFSET, "not 0: floating point is enabled"),
        ("FRAME_BYTES", convention.frame_bytes, ""),
    ]


def _defines(rows: Iterable[tuple[str, int, str]]) -> Iterator[str]:
    for name, value, text in rows:
        number = f"{value:#x}" if value > 9 else str(value)
        yield f"#define RETRAP_{name} {number}" + (f" /* {text} */" if text else "")


def header() -> str:
    """The C header."""
    lines = [
        f"/* The para-virtual interface of retrap, for the kernels that are ported to it. {_NOTICE} */",
        "#ifndef RETRAP_H",
        "#define RETRAP_H",
        '#include "retrap_asm.h"',
        "#ifndef __ASSEMBLER__",
        "",
        "typedef unsigned long retrap_word;",
        "typedef unsigned long long retrap_entry;",
        "/* An element of MULTICALL, and one of PTE_UPDATE. */",
        "struct retrap_element { retrap_word number, result, arguments[4]; };",
        "struct retrap_update { retrap_entry pointer, value; };",
        "",
    ]
    for number, convention in enumerate(CONVENTIONS.values()):
        lines.append(f"#{'if' if number == 0 else 'elif'} defined({convention.macro})")
        lines += _frame(convention)
        lines += _calling(convention)
    lines += ["#endif", ""]
    for row in c.CALLS:
        lines += _wrapper(row)
    lines += [*_FLAG, "#endif", "#endif"]
    return "\n".join(lines) + "\n"


def _frame(convention: Convention) -> Iterator[str]:
    """The frame as a structure."""
    yield "struct retrap_frame {"
    names = textwrap.wrap(", ".join(convention.frame) + ";", 100)
    yield from ("\t" + ("retrap_word " if not number else "\t") + line for number, line in enumerate(names))
    yield f"\tretrap_word {', '.join(g.TAIL)};"
    yield "};"


def _calling(convention: Convention) -> Iterator[str]:
    """The one function with assembler in it."""
    result, number, arguments = convention.result, convention.number, convention.arguments
    names = ["number", *_ORDINALS]
    yield "static inline retrap_word retrap_call(retrap_word number, retrap_word a, retrap_word b, retrap_word c,"
    yield "\tretrap_word d)"
    yield "{"
    registers = dict(zip((number, *arguments), names, strict=True))
    for register, name in registers.items():
        yield f'\tregister retrap_word {name}_ asm("{_spelled(convention, register)}") = {name};'
    written = registers[result]
    read = ", ".join(f'"r"({name}_)' for name in names if name != written)
    clobbers = ['"memory"', '"cc"'] if convention.macro != "__mips__" else ['"memory"']
    if convention.link:
        clobbers.append(f'"{_spelled(convention, convention.link)}"')
    call = convention.call.replace("%0", "%1")
    yield f'\tasm volatile("{call}" : "+r"({written}_) : "r"((retrap_word)RETRAP_CALL), {read}'
    yield f"\t\t: {', '.join(clobbers)});"
    yield f"\treturn {written}_;"
    yield "}"


def _spelled(convention: Convention, register: str) -> str:
    """A register as the compiler spells it."""
    return "$" + register[1:] if convention.macro == "__mips__" else register


def _wrapper(row: c.CallRow) -> Iterator[str]:
    """A function for each call."""
    names = ", ".join(f"retrap_word {name}" for name in row.arguments) or "void"
    yield from (f"{'/* ' if not n else ' * '}{line}" for n, line in enumerate(textwrap.wrap(row.meaning, 100)))
    yield f" * Gives {row.result}. */"
    yield f"static inline retrap_word retrap_{row.call.name.lower()}({names})"
    values = [*row.arguments, *["0"] * (c.MOST_ARGUMENTS - len(row.arguments))]
    yield f"{{\n\treturn retrap_call(RETRAP_CALL_{row.call.name}, {', '.join(values)});\n}}"


_FLAG: Final = (
    "/* The virtual interrupt flag: no call but where an event waits. */",
    "#define RETRAP_SHARED_WORD(at) (*(volatile retrap_word *)(at))",
    "static inline void retrap_interrupts_off(void) { RETRAP_SHARED_WORD(RETRAP_INTERRUPTS) = RETRAP_INTERRUPTS_OFF; }",
    "static inline int retrap_interrupts_enabled(void)",
    "{",
    "\treturn RETRAP_SHARED_WORD(RETRAP_INTERRUPTS) == RETRAP_INTERRUPTS_ON;",
    "}",
    "static inline void retrap_interrupts_on(void)",
    "{",
    '\tasm volatile("" : : : "memory");',
    "\tRETRAP_SHARED_WORD(RETRAP_INTERRUPTS) = RETRAP_INTERRUPTS_ON;",
    "\tif (RETRAP_SHARED_WORD(RETRAP_EVENTS) & ~RETRAP_SHARED_WORD(RETRAP_MASK))",
    "\t\tretrap_events_deliver();",
    "}",
    "static inline void retrap_floating_point(retrap_word enabled) { RETRAP_SHARED_WORD(RETRAP_FPU) = enabled; }",
)


def assembler() -> str:
    """What assembler includes, by way of the C preprocessor: constants, and offsets into the frame."""
    lines = [
        f"/* The para-virtual interface of retrap as numbers. {_NOTICE} */",
        "#ifndef RETRAP_ASM_H",
        "#define RETRAP_ASM_H",
        "",
        *_defines(constants()),
        "",
    ]
    for number, convention in enumerate(CONVENTIONS.values()):
        lines.append(f"#{'if' if number == 0 else 'elif'} defined({convention.macro})")
        lines += _defines(places(convention))
        names = (*convention.frame, *g.TAIL)
        lines += _defines((f"FRAME_{name.upper()}", convention.offset(name), "") for name in names)
    lines += ["#else", '#error "retrap has no para-virtual interface for this instruction set"', "#endif", "#endif"]
    return "\n".join(lines) + "\n"


def as_json() -> dict[str, Any]:
    """All of it as plain data."""
    return {
        "version": {"major": c.ABI_MAJOR, "minor": c.ABI_MINOR},
        "shared_page_version": ABI_VERSION,
        "calls": [
            {
                "name": row.call.name,
                "number": int(row.call),
                "arguments": list(row.arguments),
                "result": row.result,
                "in_multicall": row.batch,
                "meaning": row.meaning,
            }
            for row in c.CALLS
        ],
        "constants": {name: value for name, value, _ in constants()},
        "instruction_sets": {
            isa: {
                "places": {name: value for name, value, _ in places(convention)},
                "frame": [*convention.frame, *g.TAIL],
                "number": convention.number,
                "arguments": list(convention.arguments),
                "result": convention.result,
                "handler_argument": convention.handler,
                "return_address": convention.link or "on the stack",
            }
            for isa, convention in CONVENTIONS.items()
        },
    }


def json_text() -> str:
    """The same as text."""
    return json.dumps(as_json(), indent=1) + "\n"


FILES: Final = {"retrap.h": header, "retrap_asm.h": assembler}
"""Files of `samples/include`, and what prints each."""
