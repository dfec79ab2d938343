// The list of sites: only the rows on the screen are in the document, so its length costs nothing.
const list = document.getElementById("list");
const sizer = document.getElementById("sizer");
const viewport = document.getElementById("window");
const rows = [];
let rowHeight = 34;
const OVER = 8; // rows kept above and below the visible ones

const COLUMNS = [["address", "Address"], ["symbol", "Symbol"], ["instruction", "Instruction"], ["class", "Class"], ["tactic", "Tactic"], ["confidence", "Confidence"]];

function makeRow() {
  const cells = COLUMNS.map(([key]) => element("span", `cell ${key}`));
  const row = element("div", "row", cells, { role: "option" });
  row.cells = Object.fromEntries(COLUMNS.map(([key], index) => [key, cells[index]]));
  row.dot = element("i", "dot");
  row.tactic = element("span");
  row.cells.tactic.append(row.dot, row.tactic);
  row.addEventListener("click", () => {
    select(shown[row.index]);
    // Where the code stands below the list, it is brought to the reader.
    if (matchMedia("(max-width: 999px)").matches) detail.scrollIntoView({ block: "start" });
  });
  return row;
}

function fillRow(row, index) {
  const site = shown[index];
  row.index = index;
  row.id = `site-${site}`;
  row.cells.address.textContent = hex(address(site));
  row.cells.symbol.textContent = text("symbol", site);
  row.cells.instruction.textContent = value("instruction", site);
  row.cells.class.textContent = value("class", site);
  row.tactic.textContent = value("tactic", site);
  row.dot.style.background = COLOURS[SITES.tactic[site]];
  const confidence = value("confidence", site);
  row.cells.confidence.textContent = confidence;
  row.classList.toggle("doubtful", confidence === "data?");
  row.classList.toggle("odd", index % 2 === 1);
  row.setAttribute("aria-posinset", index + 1);
  row.setAttribute("aria-setsize", shown.length);
  row.setAttribute("aria-selected", site === selected);
  row.classList.toggle("selected", site === selected);
}

function drawList() {
  rowHeight = parseInt(getComputedStyle(list).getPropertyValue("--row"), 10) || 34;
  sizer.style.height = `${shown.length * rowHeight}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / rowHeight) - OVER);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / rowHeight) + OVER);
  while (rows.length < last - first) rows.push(makeRow());
  viewport.style.transform = `translateY(${first * rowHeight}px)`;
  const wanted = rows.slice(0, Math.max(0, last - first));
  wanted.forEach((row, index) => fillRow(row, first + index));
  if (viewport.childElementCount !== wanted.length) viewport.replaceChildren(...wanted);
  const row = shown.indexOf(selected);
  if (row >= first && row < last) list.setAttribute("aria-activedescendant", `site-${selected}`);
  else list.removeAttribute("aria-activedescendant");
}

function reveal(row) {
  const top = row * rowHeight;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + rowHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + rowHeight - list.clientHeight;
}

function select(site, focus) {
  selected = site;
  const row = shown.indexOf(site);
  if (row >= 0) reveal(row);
  drawList();
  drawDetail();
  remember();
  if (focus) list.focus();
}

function step(by) {
  if (!shown.length) return;
  const at = shown.indexOf(selected);
  const to = at < 0 ? (by > 0 ? 0 : shown.length - 1) : Math.min(shown.length - 1, Math.max(0, at + by));
  select(shown[to]);
}

function drawHead() {
  document.getElementById("head").replaceChildren(...COLUMNS.map(([key, title]) => {
    const current = order.key === key;
    const arrow = element("span", "arrow", current ? (order.down ? "↓" : "↑") : "", { "aria-hidden": "true" });
    const state = current ? `, ${order.down ? "descending" : "ascending"}` : "";
    const button = element("button", `cell ${key}`, [title, arrow], { type: "button", "aria-label": `Sort by ${title.toLowerCase()}${state}` });
    button.addEventListener("click", () => {
      order.down = current && !order.down;
      order.key = key;
      update();
      document.querySelector(`#head .${key}`).focus();
    });
    return button;
  }));
}

let waiting = false;
list.addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    drawList();
  });
}, { passive: true });

list.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(list.clientHeight / rowHeight) - 1);
  const steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: page, PageUp: -page, Home: -COUNT, End: COUNT };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in steps) step(steps[event.key]);
  else if (event.key === "Enter" && selected >= 0) document.getElementById("detail").focus();
  else return;
  event.preventDefault();
});
