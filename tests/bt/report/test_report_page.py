"""The page, opened and used in a browser: searched, filtered, read, by mouse and by keys, in both colours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bt.report.account import Account
from bt.report.html import page
from tests.bt.report.browser import Browser, find
from tests.bt.report.small_account import small_account
from tests.bt.rewrite.small_kernel import addresses

MANY = 30_000


def many() -> Account:
    """An account of thirty thousand sites, by repeating those of the small kernel."""
    small = small_account()
    sites = tuple(
        replace(
            small.sites[n % len(small.sites)],
            address=0xFFFF_FFFF_8100_0000 + 64 * n,
            start=0xFFFF_FFFF_8100_0000 + 64 * n,
            file_offset=0x1000 + 64 * n,
            symbol=f"function_{n // 8}+{n % 8 * 64:#x}",
        )
        for n in range(MANY)
    )
    section = replace(small.sections[0], size=64 * MANY)
    return replace(small, sites=sites, sections=(section,))


def embedded(text: str) -> Any:
    """The data that a page holds."""
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def test_the_page_names_no_address_of_the_network() -> None:
    text = page(small_account())
    assert "default-src 'none'" in text
    for word in ("http:", "https:", "//cdn", "@import", "url(", "fetch(", "XMLHttpRequest", "WebSocket"):
        assert word not in text.replace("http://www.w3.org/2000/svg", "").replace("xmlns='", "")


def test_all_sites_are_in_the_page() -> None:
    account = small_account()
    data = embedded(page(account))
    base = [int(section["address"], 16) for section in data["sections"]]
    columns = data["sites"]
    found = [base[s] + offset for s, offset in zip(columns["section"], columns["offset"], strict=True)]
    assert found == [site.address for site in account.sites]
    symbols = [data["strings"][number] for number in columns["symbol"]]
    assert symbols == [site.symbol for site in account.sites]


def test_texts_of_a_hostile_image_stay_texts() -> None:
    small = small_account()
    evil = "</script><img src=x onerror=alert(1)>\u2028@DATA@ @STYLE@"
    sites = (replace(small.sites[0], symbol=evil, reason=evil), *small.sites[1:])
    text = page(replace(small, path=f"/tmp/{evil}", sites=sites))
    assert "<img" not in text
    assert text.count("</script>") == 2
    data = embedded(text)
    assert evil in data["strings"]
    assert data["image"]["path"] == f"/tmp/{evil}"


def test_sites_outside_all_sections_get_a_place() -> None:
    small = small_account()
    data = embedded(page(replace(small, sections=())))
    assert [section["name"] for section in data["sections"]] == [".text"]
    assert len(data["sites"]["offset"]) == len(small.sites)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("there is no Chromium here; apt-get install chromium")
    with Browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("pages")
    made = {"small": small_account(), "many": many()}
    for name, account in made.items():
        (directory / f"{name}.html").write_text(page(account), "utf-8")
    return {name: directory / f"{name}.html" for name in made}


@pytest.fixture
def small(browser: Browser, files: dict[str, Path]) -> Iterator[Browser]:
    """The small kernel's page, freshly opened; afterwards nothing has failed in it and nothing was asked for."""
    yield from _opened(browser, files["small"])


@pytest.fixture
def large(browser: Browser, files: dict[str, Path]) -> Iterator[Browser]:
    """The page of thirty thousand sites."""
    yield from _opened(browser, files["many"])


def _opened(browser: Browser, file: Path) -> Iterator[Browser]:
    browser.size(1440, 1000)
    browser.prefer("light")
    browser.requests.clear()
    browser.errors.clear()
    browser.open(file)
    browser.settle()
    yield browser
    browser.run("1")
    assert browser.errors == []
    assert [request for request in browser.requests if not request.startswith(("file:", "data:", "about:"))] == []


def shown(browser: Browser) -> list[str]:
    """Addresses of the rows in the list."""
    return list(browser.run("[...document.querySelectorAll('.row .address')].map((cell) => cell.textContent)"))


def detail(browser: Browser) -> str:
    return str(browser.run("document.getElementById('detail').innerText"))


@pytest.mark.browser
def test_typing_a_search_leaves_what_fits(small: Browser) -> None:
    small.key("/")
    assert small.run("document.activeElement.id") == "search"
    small.type("sgdt")
    small.wait("document.querySelectorAll('.row').length === 1")
    assert shown(small) == [f"{addresses()['sgdt']:016x}"]
    assert "completes in user mode" in detail(small)
    small.run("document.getElementById('search').select()")
    small.type("no such thing")
    small.wait("!document.getElementById('empty').hidden")
    small.click("#clear")
    assert len(shown(small)) == len(small_account().sites)


@pytest.mark.browser
def test_old_and_new_code_stand_side_by_side_with_the_fixup_in_its_place(small: Browser) -> None:
    small.run(f"select(shown.find((site) => hex(address(site)) === '{addresses()['flags']:016x}'))")
    small.settle()
    boxes = small.run(
        "[...document.querySelectorAll('.side')].map((e) => e.getBoundingClientRect()).map((b) => [b.left, b.top])"
    )
    assert boxes[0][0] < boxes[1][0]
    assert boxes[0][1] == boxes[1][1]
    old = small.run("document.querySelectorAll('.side')[0].innerText")
    new = small.run("document.querySelectorAll('.side')[1].innerText")
    assert "pushfq" in old
    assert "pop rax" in old
    assert "jmp 0x" in new
    assert "Fixup at" in new
    assert "pushfq" in new
    fixup, jump = (
        small.run(f"document.querySelector('.side {part}').getBoundingClientRect().top")
        for part in (".fixup", ".added")
    )
    assert fixup > jump


@pytest.mark.browser
@pytest.mark.parametrize("facet", ["tactic", "class", "section", "confidence", "instruction"])
def test_every_filter_leaves_its_sites_and_is_undone(small: Browser, facet: str) -> None:
    whole = len(small_account().sites)
    small.click(f".facet[data-facet={facet}] summary")
    assert small.run(f"document.querySelector('.facet[data-facet={facet}]').open")
    small.click(f".facet[data-facet={facet}] label:not([hidden]) input")
    expected = small.run(f"shown.every((site) => filter.chosen['{facet}'].has(SITES['{facet}'][site])) && shown.length")
    assert 0 < expected <= whole
    counted = small.run(f"document.querySelector('.facet[data-facet={facet}] label:not([hidden]) .count').textContent")
    assert int(counted) == expected
    assert small.run("document.querySelectorAll('.row').length") == expected
    small.key("Escape", 27)
    assert not small.run(f"document.querySelector('.facet[data-facet={facet}]').open")
    small.click("#active .chip")
    assert len(shown(small)) == whole


@pytest.mark.browser
def test_a_chip_of_the_tactics_filters_and_two_widen(small: Browser) -> None:
    small.click(".chip[data-tactic='0']")
    one = len(shown(small))
    small.click(".chip[data-tactic='1']")
    assert len(shown(small)) > one
    assert small.run("document.querySelector(\".chip[data-tactic='0']\").getAttribute('aria-pressed')") == "true"
    small.run("document.body.focus(); document.activeElement.blur()")
    small.key("x")
    assert len(shown(small)) == len(small_account().sites)


@pytest.mark.browser
def test_the_map_draws_sites_and_a_column_of_it_filters(small: Browser) -> None:
    painted = small.run(
        "(() => { const c = document.querySelector('.track canvas'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height - 2).data; let n = 0;"
        " for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"
    )
    assert painted > 20
    small.run("tracks[0].canvas.focus()")
    small.key("ArrowRight", 39)
    small.key("Home", 36)
    assert f"{min(addresses().values()):016x} to " in small.run("document.getElementById('tip').textContent")
    small.key("Enter", 13)
    kept = shown(small)
    assert 0 < len(kept) < len(small_account().sites)
    assert kept[0] == f"{addresses()['start']:016x}"
    assert " to " in small.run("document.getElementById('active').innerText")
    small.key("Enter", 13)
    assert len(shown(small)) == len(small_account().sites)
    small.click(".track canvas", x=0.001)
    assert 0 < len(shown(small)) < len(small_account().sites)


@pytest.mark.browser
def test_the_list_is_used_by_keys_alone(small: Browser) -> None:
    sites = [f"{site.address:016x}" for site in small_account().sites]
    chosen = "document.querySelector('.row.selected .address').textContent"
    small.key("/")
    small.key("Enter", 13)
    assert small.run("document.activeElement.id") == "list"
    assert small.run(chosen) == sites[0]
    small.key("ArrowDown", 40)
    assert small.run(chosen) == sites[1]
    active = small.run(
        "document.getElementById(document.getElementById('list').getAttribute('aria-activedescendant')).textContent"
    )
    assert active.startswith(sites[1])
    small.key("End", 35)
    assert small.run(chosen) == sites[-1]
    small.key("k")
    assert small.run(chosen) == sites[-2]
    small.key("Enter", 13)
    assert small.run("document.activeElement.id") == "detail"
    small.key("Escape", 27)
    assert small.run("document.activeElement.id") == "list"
    small.key("?")
    assert small.run("document.getElementById('help').open")


@pytest.mark.browser
def test_everything_that_can_be_done_can_be_reached_by_tab(small: Browser) -> None:
    reached = set()
    small.run("document.activeElement.blur()")
    for _ in range(60):
        small.key("Tab", 9)
        reached.add(small.run("((e) => e.id || (e.dataset.tactic && 'chip') || e.tagName)(document.activeElement)"))
    assert {"theme", "help-button", "chip", "CANVAS", "search", "SUMMARY", "list"} <= reached


@pytest.mark.browser
def test_the_system_says_light_or_dark_and_the_switch_overrules_it(small: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = small.run(paper)
    small.prefer("dark")
    dark = small.run(paper)
    assert light != dark
    small.click("#theme")
    assert small.run(paper) == light
    small.key("d")
    assert small.run(paper) == dark
    assert small.run("(localStorage.removeItem('retrap-theme'), 1)") == 1


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 800, 1440, 2200])
def test_no_width_makes_the_page_wider_than_the_window(small: Browser, width: int) -> None:
    small.size(width, 900)
    assert small.run("document.documentElement.scrollWidth") <= width
    assert len(shown(small)) > 0


@pytest.mark.browser
def test_on_a_narrow_window_choosing_a_site_brings_its_code_into_view(small: Browser) -> None:
    small.size(390, 800)
    small.click(".row")
    small.wait("document.querySelector('.detail .code').getBoundingClientRect().bottom <= innerHeight")
    assert "Before" in detail(small)


@pytest.mark.browser
def test_a_view_can_be_sent_by_its_address(small: Browser, files: dict[str, Path]) -> None:
    small.click(".chip[data-tactic='0']")
    kept, address = shown(small), small.run("location.hash.slice(1)")
    assert address.startswith("tactic=")
    small.open(files["small"], address)
    small.settle()
    assert shown(small) == kept


@pytest.mark.browser
def test_sorting_by_a_column_turns_round_at_the_second_click(small: Browser) -> None:
    names = "[...document.querySelectorAll('.row .instruction')].map((cell) => cell.textContent)"
    small.click("#head .instruction")
    first = small.run(names)
    assert first == sorted(first)
    small.click("#head .instruction")
    assert small.run(names) == sorted(first, reverse=True)


@pytest.mark.browser
def test_thirty_thousand_sites_need_a_screenful_of_rows(large: Browser) -> None:
    assert large.run("COUNT") == MANY
    assert len(shown(large)) < 100
    large.run("list.focus(); list.scrollTop = list.scrollHeight")
    large.wait(
        f"document.querySelector('.row:last-child .symbol').textContent.startsWith('function_{(MANY - 1) // 8}+')"
    )
    assert len(shown(large)) < 100
    large.key("Home", 36)
    assert shown(large)[0] == f"{0xFFFF_FFFF_8100_0000:016x}"
    large.key("/")
    large.type("function_3749+")
    large.wait("document.querySelectorAll('.row').length === 8")


@pytest.mark.browser
def test_thirty_thousand_sites_are_filtered_and_scrolled_without_delay(large: Browser) -> None:
    """By the work done and not by a clock: rows made, and no row of the document made anew."""
    large.run("window.made = 0; const old = makeRow; makeRow = () => { window.made++; return old(); }; 1")
    for part in range(40):
        large.run(f"list.scrollTop = list.scrollHeight * {part} / 40")
        large.settle()
    assert large.run("window.made") < 60
    assert large.run("document.querySelectorAll('*').length") < 1500
