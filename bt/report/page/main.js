// The page's frame: figures, tactics, filters, theme, keys; and the one function that brings all of it up to date.
const search = document.getElementById("search");

function drawFigures() {
  const { image, summary } = DATA;
  document.getElementById("name").textContent = image.path.split("/").pop();
  document.getElementById("facts").replaceChildren(
    element("span", "", `${image.title}${image.order === "big" ? ", big-endian" : ""}`),
    element("span", "", `mode ${image.mode}`),
    element("code", "", `SHA-256 ${image.sha256}`, { title: "Of the original ELF, uncompressed" }),
  );
  const figures = [
    ["Sites", number(summary.sites), "sensitive instructions"],
    ["Without a trap", summary.sites ? `${((100 * summary.without_trap) / summary.sites).toFixed(1)} %` : "none", `${number(summary.without_trap)} of ${number(summary.sites)} sites`],
    ["Patched", number(summary.patched), "sites whose bytes were changed"],
    ["Fixups", number(summary.fixups), `${number(summary.fixup_bytes)} bytes of code`],
  ];
  if (image.size && image.rewritten_size) {
    const grown = image.rewritten_size - image.size;
    figures.push(["File", `${grown < 0 ? "−" : "+"}${Math.abs((100 * grown) / image.size).toFixed(2)} %`, `${bytes(image.rewritten_size)} with its manifest`]);
  }
  document.getElementById("figures").replaceChildren(...figures.map(([title, figure, note]) =>
    element("div", "figure", [element("p", "figure-title", title), element("p", "figure-value", figure), element("p", "figure-note", note)])));
  document.getElementById("footer").textContent = `Made by retrap ${DATA.tool}. This page needs no network and asks for none.`;
}

function drawTactics() {
  const totals = VALUES.tactic.map(() => 0);
  for (const tactic of SITES.tactic) totals[tactic]++;
  const chosen = filter.chosen.tactic;
  document.getElementById("bar").replaceChildren(...totals.map((total, tactic) => {
    const part = element("span", chosen.size && !chosen.has(tactic) ? "part faint" : "part");
    part.style.flexGrow = total;
    part.style.background = COLOURS[tactic];
    return part;
  }));
  const focused = document.activeElement?.dataset?.tactic;
  document.getElementById("chips").replaceChildren(...totals.map((total, tactic) => {
    const dot = element("i", "dot");
    dot.style.background = COLOURS[tactic];
    const share = element("small", "", `${((100 * total) / Math.max(1, COUNT)).toFixed(total * 1000 < COUNT ? 2 : 1)} %`);
    const chip = element("button", "chip", [dot, VALUES.tactic[tactic], element("b", "", number(total)), share], {
      type: "button", "aria-pressed": chosen.has(tactic), "data-tactic": tactic, title: DATA.tactics[tactic],
    });
    chip.addEventListener("click", () => {
      toggle("tactic", tactic);
      update();
    });
    return chip;
  }));
  if (focused !== undefined) document.querySelector(`.chip[data-tactic="${focused}"]`)?.focus();
}

const facetParts = {};
function makeFacets() {
  for (const name of FACETS) {
    const boxes = VALUES[name].map((title, index) => {
      const box = element("input", "", [], { type: "checkbox" });
      box.addEventListener("change", () => {
        toggle(name, index);
        update();
      });
      const count = element("span", "count");
      return { box, count, index, label: element("label", "", [box, element("span", "facet-value", title || "(none)"), count]) };
    });
    const chosen = element("span", "facet-chosen");
    const summary = element("summary", "", [TITLES[name], chosen]);
    const menu = element("div", "menu", boxes.map((part) => part.label), { role: "group", "aria-label": TITLES[name] });
    const facet = element("details", "facet", [summary, menu], { "data-facet": name });
    facet.addEventListener("toggle", () => {
      // Of many values those that would leave something come first; never while somebody chooses among them.
      if (facet.open && boxes.length > 8) {
        const counts = facetCounts[name];
        menu.append(...[...boxes].sort((a, b) => counts[b.index] - counts[a.index] || a.index - b.index).map((part) => part.label));
      }
      if (facet.open) for (const other of document.querySelectorAll(".facet[open]")) if (other !== facet) other.open = false;
    });
    facet.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      facet.open = false;
      summary.focus();
      event.stopPropagation();
    });
    facetParts[name] = { boxes, chosen, menu };
    document.getElementById("facets").append(facet);
  }
  document.addEventListener("pointerdown", (event) => {
    for (const open of document.querySelectorAll(".facet[open]")) if (!open.contains(event.target)) open.open = false;
  });
}

function drawFacets() {
  for (const name of FACETS) {
    const { boxes, chosen } = facetParts[name];
    for (const { box, count, index, label } of boxes) {
      box.checked = filter.chosen[name].has(index);
      count.textContent = number(facetCounts[name][index]);
      label.hidden = name === "section" && !RANGES.has(index);
      label.classList.toggle("nothing", facetCounts[name][index] === 0);
    }
    chosen.textContent = filter.chosen[name].size ? filter.chosen[name].size : "";
    chosen.hidden = !filter.chosen[name].size;
  }
}

function drawActive() {
  const parts = [];
  const add = (told, remove) => {
    const chip = element("button", "chip small", [told, element("span", "cross", "×", { "aria-hidden": "true" })], { type: "button", "aria-label": `Remove the filter ${told}` });
    chip.addEventListener("click", () => {
      remove();
      update();
      search.focus();
    });
    parts.push(chip);
  };
  for (const name of FACETS) for (const index of filter.chosen[name]) add(`${TITLES[name].toLowerCase()}: ${VALUES[name][index] || "(none)"}`, () => filter.chosen[name].delete(index));
  if (filter.range) {
    const { section, from, to } = filter.range;
    add(`${VALUES.section[section]} ${hex(BASES[section] + BigInt(from))} to ${hex(BASES[section] + BigInt(to))}`, () => { filter.range = null; });
  }
  if (parts.length) {
    const clear = element("button", "link", "Clear all", { type: "button" });
    clear.addEventListener("click", () => {
      clearFilters();
      update();
    });
    parts.push(clear);
  }
  document.getElementById("active").replaceChildren(...parts);
}

function update() {
  refresh();
  if (search.value !== filter.query) search.value = filter.query;
  const all = shown.length === COUNT;
  document.getElementById("count").textContent = all ? number(COUNT) : `${number(shown.length)} of ${number(COUNT)}`;
  document.getElementById("empty").hidden = shown.length > 0;
  list.hidden = shown.length === 0;
  if (selected >= 0 && !shown.includes(selected)) selected = -1;
  if (selected < 0 && shown.length && matchMedia("(min-width: 1000px)").matches) selected = shown[0];
  drawTactics();
  drawFacets();
  drawActive();
  drawHead();
  list.scrollTop = Math.min(list.scrollTop, Math.max(0, shown.length * rowHeight - list.clientHeight));
  const row = shown.indexOf(selected);
  if (row >= 0) reveal(row);
  drawList();
  drawDetail();
  drawMap();
  remember();
}

function drawChanges() {
  if (!DATA.changes.length) return;
  document.getElementById("changes").hidden = false;
  const rows_ = DATA.changes.map((change) => {
    const places = change.addresses.slice(0, 200).map((place) => hex(BigInt(place))).join("  ");
    const more = change.count > 200 ? `  and ${number(change.count - 200)} more` : "";
    return element("details", "change", [
      element("summary", "", [element("b", "", `${number(change.count)} ×`), ` ${change.reason}`]),
      element("p", "places", places + more),
    ]);
  });
  document.getElementById("change-list").replaceChildren(...rows_);
}

const dark = matchMedia("(prefers-color-scheme: dark)");
function theme() {
  return document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
}

function drawTheme() {
  const button = document.getElementById("theme");
  button.textContent = theme() === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Change to ${theme() === "dark" ? "light" : "dark"} colours`);
}

function switchTheme(to) {
  document.documentElement.dataset.theme = to;
  try {
    localStorage.setItem("retrap-theme", to);
  } catch { /* a page that may keep nothing asks the system every time */ }
  drawTheme();
  drawMap();
}

function start() {
  try {
    const kept = localStorage.getItem("retrap-theme");
    if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  } catch { /* as above */ }
  drawTheme();
  drawFigures();
  makeFacets();
  drawChanges();
  recall();
  update();
}

document.getElementById("theme").addEventListener("click", () => switchTheme(theme() === "dark" ? "light" : "dark"));
dark.addEventListener("change", () => {
  drawTheme();
  drawMap();
});
document.getElementById("clear").addEventListener("click", () => {
  clearFilters();
  update();
});
const help = document.getElementById("help");
document.getElementById("help-button").addEventListener("click", () => help.showModal());

let typing = 0;
search.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    filter.query = search.value;
    update();
  }, COUNT > 5000 ? 120 : 0);
});
search.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "Enter") {
    list.focus();
    if (selected < 0) step(1);
    event.preventDefault();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (event.target instanceof HTMLInputElement && event.target.type === "search") return;
  const keys = {
    "/": () => search.focus(),
    "?": () => help.showModal(),
    d: () => switchTheme(theme() === "dark" ? "light" : "dark"),
    x: () => {
      clearFilters();
      update();
    },
  };
  if (!(event.key in keys)) return;
  keys[event.key]();
  event.preventDefault();
});
addEventListener("resize", () => {
  drawList();
  drawMap();
});
addEventListener("hashchange", () => {
  recall();
  update();
});
start();
