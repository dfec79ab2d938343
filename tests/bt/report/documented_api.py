"""The functions of Ghidra, IDAPython and Binary Ninja that exported scripts call, as their manuals declare them.

Room: tests. Names, parameters in order, and types (an address is a number here): Ghidra's FlatProgramAPI (12.2), the
IDAPython reference (ida_bytes, ida_name, ida_segment, ida_ua) and Binary Ninja's Python API (BinaryView). A call that
does not fit its declaration is refused as the tool would refuse it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

Code = bytes


class Ghidra:
    @staticmethod
    def createMemoryBlock(name: str, start: int, bytes: Code, overlay: bool) -> None: ...
    @staticmethod
    def getMemoryBlock(address: int) -> None: ...
    @staticmethod
    def createLabel(address: int, name: str, makePrimary: bool) -> None: ...
    @staticmethod
    def setPlateComment(address: int, comment: str) -> None: ...
    @staticmethod
    def setPreComment(address: int, comment: str) -> None: ...
    @staticmethod
    def createBookmark(address: int, category: str, note: str) -> None: ...
    @staticmethod
    def disassemble(address: int) -> None: ...


class Ida:
    @staticmethod
    def set_cmt(ea: int, comm: str, rptble: bool) -> None: ...
    @staticmethod
    def put_bytes(ea: int, buf: bytes) -> None: ...
    @staticmethod
    def set_name(ea: int, name: str, flags: int = 0) -> None: ...
    @staticmethod
    def add_segm(para: int, start: int, end: int, name: str, sclass: str, flags: int = 0) -> None: ...
    @staticmethod
    def getseg(ea: int) -> None: ...
    @staticmethod
    def set_segm_addressing(s: object, bitness: int) -> None: ...
    @staticmethod
    def create_insn(ea: int, out: object = None) -> None: ...


class Binja:
    @staticmethod
    def add_function(addr: int, plat: object = None) -> None: ...
    @staticmethod
    def define_user_symbol(sym: object) -> None: ...
    @staticmethod
    def set_comment_at(addr: int, comment: str) -> None: ...
    @staticmethod
    def create_tag_type(name: str, icon: str) -> None: ...
    @staticmethod
    def get_tag_type(name: str) -> None: ...
    @staticmethod
    def add_tag(addr: int, tag_type_name: str, data: str, user: bool = True) -> None: ...
    @staticmethod
    def add_memory_region(name: str, start: int, source: bytes) -> None: ...


def fits(declared: type, name: str, arguments: tuple[Any, ...]) -> None:
    """Raise `TypeError` where the tool would refuse a call."""
    function: Callable[..., Any] = getattr(declared, name)
    bound = inspect.signature(function).bind(*arguments)
    hints = get_type_hints(function)
    for parameter, value in bound.arguments.items():
        wanted = hints[parameter]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise TypeError(f"{name}({parameter}={value!r}) is no {wanted.__name__}")
