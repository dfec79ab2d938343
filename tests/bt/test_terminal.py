"""Screen and keyboard by themselves: bytes in, bytes out."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bt.terminal import PREFIX, Keyboard, KeyFilter, Screen, Typed


def filtered(*keys: bytes) -> tuple[bytes, int, list[str]]:
    """What is for the guest, how often the user left, and what was said."""
    left: list[None] = []
    said: list[str] = []
    keys_of = KeyFilter(lambda: left.append(None), said.append)
    return b"".join(keys_of.feed(part) for part in keys), len(left), said


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_keys_without_the_prefix_reach_the_guest_as_they_are(parts: list[bytes]) -> None:
    keys = [part.replace(bytes([PREFIX]), b"") for part in parts]
    assert filtered(*keys) == (b"".join(keys), 0, [])


@given(st.binary(max_size=30), st.lists(st.integers(0, 30), max_size=4))
def test_it_does_not_matter_how_keys_are_cut_into_pieces(keys: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(keys)]
    parts = [keys[a:b] for a, b in itertools.pairwise(places)]
    assert filtered(*parts) == filtered(keys)


def test_ctrl_a_commands() -> None:
    assert filtered(b"a\x01xb") == (b"ab", 1, [])
    assert filtered(b"\x01", b"X") == (b"", 1, [])
    assert filtered(b"\x01\x01") == (b"\x01", 0, [])
    assert filtered(b"\x01a") == (b"\x01", 0, [])
    assert filtered(b"\x01qz") == (b"z", 0, [])
    assert len(filtered(b"\x01h")[2]) == 1


@given(st.lists(st.binary(max_size=6000), max_size=6))
def test_the_screen_shows_everything_in_order(parts: list[bytes]) -> None:
    with tempfile.TemporaryFile() as file:
        screen = Screen(file.fileno())
        for part in parts:
            screen.write(part)
        text = b"".join(parts)
        assert screen.sha256 == hashlib.sha256(text).hexdigest()
        assert screen.size == len(text)
        assert screen.in_line == (bool(text) and not text.endswith(b"\n"))
        file.seek(0)
        assert file.read() == text


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=4), st.integers(1, 7))
def test_the_awaited_text_is_found_wherever_pieces_are_cut(text: bytes, until: bytes, step: int) -> None:
    reached: list[int] = []
    screen = Screen(None, until, lambda: reached.append(1))
    for at in range(0, len(text), step):
        screen.write(text[at : at + step])
    assert len(reached) == (until in text)


def test_a_line_is_out_at_its_end_and_a_prompt_at_the_next_look() -> None:
    reader, writer = os.pipe()
    screen = Screen(writer)
    screen.write(b"one\ntwo")
    screen.write(b"!")
    assert os.read(reader, 100) == b"one\ntwo"
    screen.flush()
    assert os.read(reader, 100) == b"!"
    os.close(reader)
    os.close(writer)


def test_the_end_of_a_pipe_is_the_end_of_input() -> None:
    reader, writer = os.pipe()
    with Keyboard(reader, lambda: None) as keyboard:
        assert not keyboard.interactive
        assert keyboard.poll(0) == b""
        os.write(writer, b"keys \x01x")
        assert keyboard.poll(0) == b"keys \x01x"
        os.close(writer)
        assert keyboard.poll(0) is None
        assert keyboard.poll(0) is None
    os.close(reader)


def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"k" * 5000)
    descriptor = os.open(tmp_path / "keys", os.O_RDONLY)
    keyboard = Keyboard(descriptor, lambda: None)
    assert keyboard.poll(0) == b"k" * 4096
    assert keyboard.poll(0) == b"k" * 904
    assert keyboard.poll(0) is None
    os.close(descriptor)


def test_no_input_is_none_from_the_start() -> None:
    assert Keyboard(None, lambda: None).poll(0) is None


class Line:
    """A serial port that is told whether its guest listens."""

    listening = False
    unread = 0


def test_input_is_kept_until_the_guest_listens() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"early")
    line = Line()
    typed = Typed(Keyboard(reader, lambda: None), line, lambda: True)
    assert typed.poll(0.0) == b""
    line.listening = True
    assert typed.poll(0.0) == b"early"
    line.listening = False  # for a moment, as while a driver is busy
    os.write(writer, b"later")
    assert typed.poll(0.0) == b"later"
    os.close(writer)
    assert typed.poll(0.0) is None
    os.close(reader)


def test_kept_input_does_not_keep_a_guest_that_nothing_can_wake(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"never read")
    descriptor = os.open(tmp_path / "keys", os.O_RDONLY)
    wakes = [True]
    typed = Typed(Keyboard(descriptor, lambda: None), Line(), lambda: wakes[0])
    assert [typed.poll(0.05) for _ in range(3)] == [b"", b"", b""]
    wakes[0] = False
    assert typed.poll(0.0) == b"", "the guest is not idle"
    assert typed.poll(0.05) is None
    os.close(descriptor)


def test_no_more_is_read_than_the_guest_takes() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"y" * 60000)
    line = Line()
    typed = Typed(Keyboard(reader, lambda: None), line, lambda: True)
    for _ in range(10):
        assert typed.poll(0.0) == b""
    line.listening, line.unread = True, 4096
    assert len(typed.poll(0.0) or b"") <= 8192
    assert typed.poll(0.0) == b""
    os.close(reader)
    os.close(writer)
