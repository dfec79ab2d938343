"""Xenstore: what guests read, write and watch, transactions that conflict, permissions, and nonsense in the ring."""

from __future__ import annotations

import struct

import pytest

from paravirt.xen.events import EventChannels
from paravirt.xen.store import OWN, Store
from paravirt.xen.xenstore import MOST_NODES, MOST_STEPS, Permissions, StoreError, Tree

HEADER = struct.Struct("<IIII")
LIST, READ, GET, WATCH, UNWATCH, START, END, WRITE, MAKE, REMOVE, PERMIT = 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14
EVENT, ERROR = 15, 16


class Guest:
    """A guest's end of the store's ring."""

    def __init__(self, tree: Tree | None = None, number: int = 1) -> None:
        self.page = memoryview(bytearray(4096))
        self.words = self.page.cast("I")
        self.store = Store(EventChannels(memoryview(bytearray(4096)), 0, number), number, tree)
        self.store.connect(self.page)

    def send(self, data: bytes) -> None:
        at = self.words[2052 >> 2]
        for number, byte in enumerate(data):
            self.page[(at + number) % 1024] = byte
        self.words[2052 >> 2] = at + len(data)
        self.store.kicked()

    def replies(self) -> list[tuple[int, bytes]]:
        data = b""
        while (consumed := self.words[2056 >> 2]) != (produced := self.words[2060 >> 2]):
            data += bytes(self.page[1024 + at % 1024] for at in range(consumed, produced))
            self.words[2056 >> 2] = produced
            self.store.kicked()
        found = []
        while data:
            kind, _number, _transaction, size = HEADER.unpack_from(data)
            found.append((kind, data[16 : 16 + size]))
            data = data[16 + size :]
        return found

    def ask(self, kind: int, *parts: bytes, transaction: int = 0) -> list[tuple[int, bytes]]:
        payload = b"".join(parts)
        self.send(HEADER.pack(kind, 1, transaction, len(payload)) + payload)
        return self.replies()

    def begin(self) -> int:
        return int(self.ask(START, b"\0")[0][1][:-1])


def error(name: str) -> list[tuple[int, bytes]]:
    return [(ERROR, name.encode() + b"\0")]


def ok(kind: int) -> list[tuple[int, bytes]]:
    return [(kind, b"OK\0")]


def test_what_is_written_can_be_read_listed_and_removed() -> None:
    guest = Guest()
    assert guest.ask(WRITE, b"device/vbd/1\0", b"one") == ok(WRITE)
    assert guest.ask(READ, b"/local/domain/1/device/vbd/1\0") == [(READ, b"one")]
    assert guest.ask(LIST, b"device\0") == [(LIST, b"vbd\0")]
    assert guest.ask(REMOVE, b"device/vbd\0") == ok(REMOVE)
    assert guest.ask(READ, b"device/vbd/1\0") == error("ENOENT")
    assert guest.ask(REMOVE, b"device/vbd/1\0") == error("ENOENT")
    assert guest.ask(MAKE, b"data/a\0") == ok(MAKE)
    assert guest.ask(READ, b"data/a\0") == [(READ, b"")]


def test_a_watch_is_told_at_once_and_at_every_change() -> None:
    guest = Guest()
    assert guest.ask(WATCH, b"data/a\0", b"token\0") == [*ok(WATCH), (EVENT, b"data/a\0token\0")]
    assert guest.ask(WATCH, b"data/a\0", b"token\0") == error("EEXIST")
    told = guest.ask(WRITE, b"data/a/b\0", b"1")
    assert told == [*ok(WRITE), (EVENT, b"data/a\0token\0"), (EVENT, b"data/a/b\0token\0")]
    assert guest.ask(WRITE, b"data/ab\0", b"1") == ok(WRITE)
    assert guest.ask(REMOVE, b"data\0") == [*ok(REMOVE), (EVENT, b"data/a\0token\0")]
    assert guest.ask(UNWATCH, b"data/a\0", b"token\0") == ok(UNWATCH)
    assert guest.ask(UNWATCH, b"data/a\0", b"token\0") == error("ENOENT")


def test_a_transaction_is_seen_when_it_ends_or_not_at_all() -> None:
    tree = Tree()
    guest, other = Guest(tree), Guest(tree, 2)
    tree.put("/shared", "0", Permissions((("b", 0),)))
    number = guest.begin()
    assert guest.ask(WRITE, b"/shared/x\0", b"1", transaction=number) == ok(WRITE)
    assert guest.ask(READ, b"/shared/x\0", transaction=number) == [(READ, b"1")]
    assert other.ask(READ, b"/shared/x\0") == error("ENOENT")
    assert guest.ask(END, b"T\0", transaction=number) == ok(END)
    assert other.ask(READ, b"/shared/x\0") == [(READ, b"1")]
    number = guest.begin()
    guest.ask(WRITE, b"/shared/x\0", b"2", transaction=number)
    assert guest.ask(END, b"F\0", transaction=number) == ok(END)
    assert other.ask(READ, b"/shared/x\0") == [(READ, b"1")]
    assert guest.ask(END, b"T\0", transaction=number) == error("ENOENT")


def test_a_transaction_fails_only_where_what_it_looked_at_was_changed() -> None:
    tree = Tree()
    guest, other = Guest(tree), Guest(tree, 2)
    tree.put("/shared/x", "0", Permissions((("b", 0),)))
    first = guest.begin()
    assert guest.ask(READ, b"/shared/x\0", transaction=first) == [(READ, b"0")]
    guest.ask(WRITE, b"data/copy\0", b"0", transaction=first)
    other.ask(WRITE, b"/shared/x\0", b"9")
    assert guest.ask(END, b"T\0", transaction=first) == error("EAGAIN")
    assert guest.ask(READ, b"data/copy\0") == error("ENOENT")
    second = guest.begin()
    guest.ask(WRITE, b"data/copy\0", b"9", transaction=second)
    other.ask(WRITE, b"data/own\0", b"1")
    assert guest.ask(END, b"T\0", transaction=second) == ok(END)
    assert other.ask(READ, b"data/own\0") == [(READ, b"1")]
    assert guest.ask(READ, b"data/copy\0") == [(READ, b"9")]


def test_transactions_run_out() -> None:
    guest = Guest()
    for _ in range(10):
        guest.begin()
    assert guest.ask(START, b"\0") == error("ENOSPC")


def test_a_transaction_has_an_end_of_what_it_does() -> None:
    guest = Guest()
    number = guest.begin()
    answers = [guest.ask(WRITE, b"data/x\0", b"%d" % at, transaction=number) for at in range(MOST_STEPS + 1)]
    assert answers[0] == ok(WRITE)
    assert answers[-1] == error("ENOSPC")
    assert guest.ask(END, b"T\0", transaction=number) == ok(END)


def test_a_guest_reads_and_writes_what_it_may_and_nothing_else() -> None:
    tree = Tree()
    one, two = Guest(tree), Guest(tree, 2)
    one.ask(WRITE, b"data/secret\0", b"x")
    secret = b"/local/domain/1/data/secret\0"
    assert two.ask(READ, secret) == error("EACCES")
    assert two.ask(WRITE, secret, b"y") == error("EACCES")
    assert two.ask(PERMIT, secret, b"n2\0") == error("EACCES")
    assert one.ask(PERMIT, b"data/secret\0", b"n1\0r2\0") == ok(PERMIT)
    assert one.ask(GET, b"data/secret\0") == [(GET, b"n1\0r2\0")]
    assert two.ask(READ, secret) == [(READ, b"x")]
    assert two.ask(WRITE, secret, b"y") == error("EACCES")
    assert one.ask(PERMIT, b"data/secret\0", b"n2\0") == error("EPERM")
    assert one.ask(WRITE, b"mine\0", b"") == error("EACCES")
    assert one.ask(READ, b"domid\0") == [(READ, b"1")]
    assert one.ask(WRITE, b"domid\0", b"2") == error("EACCES")
    assert two.ask(READ, b"/local/domain/1/domid\0") == error("EACCES")


def test_a_watch_does_not_tell_what_may_not_be_read() -> None:
    tree = Tree()
    one, two = Guest(tree), Guest(tree, 2)
    two.ask(WATCH, b"/local/domain/1\0", b"t\0")
    one.ask(WRITE, b"data/secret\0", b"x")
    assert two.replies() == []
    one.ask(WRITE, b"data/open\0", b"x")
    one.ask(PERMIT, b"data/open\0", b"r1\0")
    assert two.replies() == [(EVENT, b"/local/domain/1/data/open\0t\0")]


def test_a_guest_cannot_fill_the_store() -> None:
    tree = Tree()
    Guest(tree)
    view = tree.view()
    for number in range(MOST_NODES - len(OWN)):
        view.write(1, f"/local/domain/1/data/{number}", b"")
    with pytest.raises(StoreError, match="ENOSPC"):
        view.write(1, "/local/domain/1/data/more", b"")
    with pytest.raises(StoreError, match="ENOSPC"):
        tree.view().write(1, "/local/domain/1/data/big", bytes(2049))


def test_a_guest_that_does_not_read_is_not_listened_to() -> None:
    guest = Guest()
    for number in range(128):
        guest.ask(WATCH, b"data\0", b"%d\0" % number)
    assert guest.ask(WATCH, b"data\0", b"more\0") == error("E2BIG")
    payload = b"data/x\0" + b"1"
    for _ in range(400):
        guest.send(HEADER.pack(WRITE, 1, 0, len(payload)) + payload)
    assert len(guest.store._waiting) < 1 << 19
    assert guest.words[2048 >> 2] != guest.words[2052 >> 2]
    assert ok(WRITE)[0] in guest.replies()
    assert guest.words[2048 >> 2] == guest.words[2052 >> 2]


def test_a_request_may_come_in_pieces() -> None:
    guest = Guest()
    whole = HEADER.pack(WRITE, 1, 0, 9) + b"data/x\0yz"
    for byte in whole[:-1]:
        guest.send(bytes([byte]))
    assert guest.replies() == []
    guest.send(whole[-1:])
    assert guest.replies() == ok(WRITE)


@pytest.mark.parametrize("kind", [*range(25), 99])
@pytest.mark.parametrize("payload", [b"", b"\0", b"\xff\xff\0\xff", b"nothing\0", b"//\0", b"/\0", b"a" * 900])
def test_nonsense_gets_an_answer(kind: int, payload: bytes) -> None:
    assert Guest().ask(kind, payload)


def test_a_size_that_cannot_be_is_the_end_of_what_was_sent() -> None:
    guest = Guest()
    guest.send(HEADER.pack(READ, 1, 0, 1 << 30))
    assert guest.replies() == []
    assert guest.ask(LIST, b"device\0") == [(LIST, b"")]
