// The map: the whole image with its sections to scale, then a strip for each section that has sites.
const map = document.getElementById("map");
const tip = document.getElementById("tip");
const tracks = [];
const COLUMN = 4; // pixels of a column, its gap included

function siteRanges() {
  // Sites ascend by address, so a section's lie together.
  const ranges = new Map();
  for (let site = 0; site < COUNT; site++) {
    const section = SITES.section[site];
    if (!ranges.has(section)) ranges.set(section, [site, site]);
    ranges.get(section)[1] = site + 1;
  }
  return ranges;
}
const RANGES = siteRanges();

function bytes(size) {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  let unit = 0;
  let left = size;
  while (left >= 1024 && unit < 3) {
    left /= 1024;
    unit++;
  }
  return `${unit && left < 100 ? left.toFixed(1) : Math.round(left)} ${units[unit]}`;
}

function makeOverview() {
  const parts = DATA.sections.map((section, index) => {
    const block = element("span", `block${section.executable ? " executable" : ""}${RANGES.has(index) ? " holds" : ""}`);
    block.style.flexGrow = section.size;
    const sites = RANGES.has(index) ? RANGES.get(index)[1] - RANGES.get(index)[0] : 0;
    if (section.size > DATA.sections.reduce((sum, each) => sum + each.size, 0) / 14) block.textContent = section.name;
    const told = `${section.name}  ${bytes(section.size)}, ${sites ? number(sites) : "no"} sites`;
    block.addEventListener("pointermove", (event) => showTip(event.clientX, event.clientY, told));
    block.addEventListener("pointerleave", hideTip);
    return block;
  });
  map.append(element("div", "track overview", [element("span", "track-name", [element("b", "", "image"), element("small", "", bytes(DATA.sections.reduce((sum, each) => sum + each.size, 0)))]), element("div", "blocks", parts)]));
}

function makeTrack(section) {
  const { name, size } = DATA.sections[section];
  const [first, end] = RANGES.get(section);
  const canvas = element("canvas", "", [], { tabindex: "0", role: "slider", "aria-label": `Sites in ${name}`, "aria-valuemin": "0" });
  const label = element("span", "track-name", [element("b", "", name), element("small", "", `${number(end - first)} in ${bytes(size)}`)], { title: name });
  map.append(element("div", "track", [label, canvas]));
  const track = { section, canvas, columns: 0, at: -1, counts: [] };
  canvas.addEventListener("pointermove", (event) => {
    track.at = Math.floor(event.offsetX / COLUMN);
    drawTrack(track);
    showTip(event.clientX, canvas.getBoundingClientRect().top, describe(track));
  });
  canvas.addEventListener("pointerleave", () => leave(track));
  canvas.addEventListener("blur", () => leave(track));
  canvas.addEventListener("focus", () => {
    if (track.at < 0 && canvas.matches(":focus-visible")) move(track, 0);
  });
  canvas.addEventListener("click", () => choose(track));
  canvas.addEventListener("keydown", (event) => trackKey(track, event));
  tracks.push(track);
}

function leave(track) {
  track.at = -1;
  hideTip();
  drawTrack(track);
}

function bounds(track, column) {
  const { size } = DATA.sections[track.section];
  return [Math.floor((size * column) / track.columns), Math.ceil((size * (column + 1)) / track.columns)];
}

function describe(track) {
  const counts = track.counts[track.at];
  const [from, to] = bounds(track, track.at);
  const base = BASES[track.section];
  const span = `${hex(base + BigInt(from))} to ${hex(base + BigInt(to))}`;
  const told = counts ? [...counts.entries()].filter(([, count]) => count).map(([tactic, count]) => `${count} ${VALUES.tactic[tactic]}`).join(", ") : "no site";
  return `${span}\n${told}`;
}

function showTip(x, y, told) {
  tip.textContent = told;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, x - width / 2))}px`;
  tip.style.top = `${y - height - 10 < 4 ? y + 24 : y - height - 10}px`;
}

function hideTip() {
  tip.hidden = true;
}

function choose(track) {
  if (track.at < 0 || !track.counts[track.at]) return;
  const [from, to] = bounds(track, track.at);
  const { range } = filter;
  const again = range && range.section === track.section && range.from === from;
  filter.range = again ? null : { section: track.section, from, to };
  update();
}

function move(track, to) {
  track.at = Math.max(0, Math.min(track.columns - 1, to));
  const told = describe(track);
  track.canvas.setAttribute("aria-valuenow", track.at);
  track.canvas.setAttribute("aria-valuetext", told);
  const box = track.canvas.getBoundingClientRect();
  showTip(box.left + (track.at + 0.5) * COLUMN, box.top, told);
  drawTrack(track);
}

function trackKey(track, event) {
  // From one column that holds a site to the next that does.
  const seek = (by) => {
    for (let at = track.at + by; at >= 0 && at < track.columns; at += by) if (track.counts[at]) return at;
    return Math.max(0, track.at);
  };
  const moves = { ArrowRight: () => seek(1), ArrowLeft: () => seek(-1), Home: () => 0, End: () => track.columns - 1 };
  if (event.key in moves) move(track, moves[event.key]());
  else if (event.key === "Enter" || event.key === " ") choose(track);
  else return;
  event.preventDefault();
}

function drawTrack(track) {
  const { canvas, section } = track;
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  track.columns = Math.max(1, Math.floor(width / COLUMN));
  canvas.setAttribute("aria-valuemax", track.columns - 1);
  const [first, end] = RANGES.get(section);
  const { size } = DATA.sections[section];
  const counts = new Array(track.columns);
  const visible = new Array(track.columns);
  const on = shownSet;
  let most = 1;
  for (let site = first; site < end; site++) {
    const column = Math.min(track.columns - 1, Math.floor((SITES.offset[site] * track.columns) / size));
    const here = (counts[column] ??= new Array(VALUES.tactic.length).fill(0));
    here[SITES.tactic[site]]++;
    if (on[site]) (visible[column] ??= new Array(VALUES.tactic.length).fill(0))[SITES.tactic[site]]++;
    most = Math.max(most, here.reduce((sum, count) => sum + count));
  }
  track.counts = counts;
  const style = getComputedStyle(document.documentElement);
  const palette = COLOURS.map((colour) => style.getPropertyValue(colour.slice(4, -1)).trim());
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.fillStyle = style.getPropertyValue("--line").trim();
  context.fillRect(0, height - 1, track.columns * COLUMN, 1);
  const draw = (table, column, alpha) => {
    if (!table[column]) return;
    context.globalAlpha = alpha;
    let y = height - 1;
    const all = counts[column].reduce((sum, count) => sum + count);
    const tall = Math.max(3, (height - 3) * Math.sqrt(all / most));
    table[column].forEach((count, tactic) => {
      const part = (tall * count) / all;
      context.fillStyle = palette[tactic];
      context.fillRect(column * COLUMN, y - part, COLUMN - 1, part);
      y -= part;
    });
    context.globalAlpha = 1;
  };
  for (let column = 0; column < track.columns; column++) {
    draw(counts, column, filtered() ? 0.18 : 0);
    draw(visible, column, 1);
  }
  const mark = (from, to, colour) => {
    context.strokeStyle = colour;
    context.strokeRect(from + 0.5 - 1, 0.5, Math.max(COLUMN, to - from), height - 1);
  };
  const { range } = filter;
  if (range && range.section === section) mark((range.from / size) * track.columns * COLUMN, (range.to / size) * track.columns * COLUMN, style.getPropertyValue("--accent").trim());
  if (track.at >= 0 && track.at < track.columns) mark(track.at * COLUMN, (track.at + 1) * COLUMN, style.getPropertyValue("--ink").trim());
}

let shownSet = new Uint8Array(COUNT);
function drawMap() {
  shownSet = new Uint8Array(COUNT);
  for (const site of shown) shownSet[site] = 1;
  for (const track of tracks) drawTrack(track);
}

makeOverview();
for (const section of [...RANGES.keys()].sort((a, b) => a - b)) makeTrack(section);
