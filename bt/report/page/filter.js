// Which sites are shown, in which order; and how that is kept in the page's address, so that a view can be sent.
const filter = { query: "", chosen: Object.fromEntries(FACETS.map((name) => [name, new Set()])), range: null };
const order = { key: "address", down: false };
let shown = Array.from({ length: COUNT }, (_, site) => site);
let selected = -1; // a site, not a row
let facetCounts = {};

const SORTS = {
  address: (a, b) => a - b, // sites ascend by address
  symbol: (a, b) => compareText(text("symbol", a), text("symbol", b)),
  instruction: (a, b) => compareText(value("instruction", a), value("instruction", b)),
  class: (a, b) => compareText(value("class", a), value("class", b)),
  tactic: (a, b) => SITES.tactic[a] - SITES.tactic[b],
  confidence: (a, b) => SITES.confidence[a] - SITES.confidence[b],
};
const compareText = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

function refresh() {
  const words = filter.query.toLowerCase().replace(/^0x/, "").split(/\s+/).filter(Boolean);
  const { range } = filter;
  facetCounts = Object.fromEntries(FACETS.map((name) => [name, new Array(VALUES[name].length).fill(0)]));
  shown = [];
  for (let site = 0; site < COUNT; site++) {
    if (range && (SITES.section[site] !== range.section || SITES.offset[site] < range.from || SITES.offset[site] >= range.to)) continue;
    if (words.length && !words.every((word) => haystack(site).includes(word))) continue;
    let refusing = null;
    let refusals = 0;
    for (const name of FACETS) {
      if (filter.chosen[name].size && !filter.chosen[name].has(SITES[name][site])) {
        refusals++;
        refusing = name;
      }
    }
    // A facet counts what would be shown if it alone were open.
    if (refusals === 0) for (const name of FACETS) facetCounts[name][SITES[name][site]]++;
    else if (refusals === 1) facetCounts[refusing][SITES[refusing][site]]++;
    if (refusals === 0) shown.push(site);
  }
  if (order.key !== "address" || order.down) {
    const by = SORTS[order.key];
    shown.sort((a, b) => (order.down ? by(b, a) : by(a, b)) || a - b);
  }
}

const filtered = () => filter.query !== "" || filter.range !== null || FACETS.some((name) => filter.chosen[name].size > 0);

function clearFilters() {
  filter.query = "";
  filter.range = null;
  for (const name of FACETS) filter.chosen[name].clear();
}

function toggle(name, index) {
  const chosen = filter.chosen[name];
  if (!chosen.delete(index)) chosen.add(index);
}

function remember() {
  const parts = new URLSearchParams();
  if (filter.query) parts.set("q", filter.query);
  for (const name of FACETS) if (filter.chosen[name].size) parts.set(name, [...filter.chosen[name]].map((i) => VALUES[name][i]).join("|"));
  if (filter.range) parts.set("range", `${VALUES.section[filter.range.section]}|${filter.range.from}|${filter.range.to}`);
  if (selected >= 0) parts.set("site", hex(address(selected)));
  const tail = parts.toString();
  try {
    history.replaceState(null, "", tail ? `#${tail}` : location.pathname + location.search);
  } catch { /* a page without an address keeps nothing */ }
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  clearFilters();
  filter.query = parts.get("q") ?? "";
  for (const name of FACETS) {
    for (const wanted of (parts.get(name) ?? "").split("|")) {
      const index = VALUES[name].indexOf(wanted);
      if (wanted !== "" && index >= 0) filter.chosen[name].add(index);
    }
  }
  const [section, from, to] = (parts.get("range") ?? "").split("|");
  const index = VALUES.section.indexOf(section ?? "");
  if (index >= 0 && Number(to) > Number(from)) filter.range = { section: index, from: Number(from), to: Number(to) };
  const site = parts.get("site");
  selected = -1;
  if (site) for (let i = 0; i < COUNT && selected < 0; i++) if (hex(address(i)) === site) selected = i;
}
