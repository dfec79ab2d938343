// The chosen site: what it is, what was done and why, and its code before and after with the fixup in its place.
const detail = document.getElementById("detail");
const EFFECTS = {
  traps: "traps in user mode",
  ignored: "completes in user mode without its privileged part",
  leaks: "completes in user mode and shows or changes privileged state",
  differs: "completes in user mode with another effect",
};

// Where the bytes begin that a tactic stands for: the site, or what comes before it.
const startOf = (site) => address(site) - BigInt(SITES.start[site]);

function codeTable(code, className) {
  const body = element("tbody", "", code.map((line) => {
    const [mnemonic, ...rest] = line.text.split(" ");
    const words = [element("b", "", mnemonic)];
    if (rest.length) words.push(` ${rest.join(" ")}`);
    const bytes = line.bytes.replace(/(..)(?=.)/g, "$1 ");
    return element("tr", "", [element("td", "at", hex(line.address)), element("td", "bytes", bytes), element("td", "text", words)]);
  }));
  return element("table", className, body);
}

function fact(title, contents) {
  return [element("dt", "", title), element("dd", "", contents)];
}

// The site whose fixup does this one's work as well: the nearest before it that replaces these bytes.
function coveredBy(site) {
  for (let i = site - 1; i >= 0 && SITES.section[i] === SITES.section[site]; i--) {
    if (SITES.offset[site] - SITES.offset[i] > 64) break;
    if (SITES.offset[i] - SITES.start[i] + TEXT[SITES.oldBytes[i]].length / 2 > SITES.offset[site] && SITES.fixup[i] >= 0) return i;
  }
  return -1;
}

function fixupBox(index) {
  const fixup = DATA.fixups[index];
  const start = BigInt(fixup.address);
  const code = lines(fixup.code, start);
  const size = code.reduce((sum, line) => sum + line.bytes.length / 2, 0);
  const head = element("p", "fixup-head", [element("strong", "", "Fixup"), ` at ${hex(start)}, ${size} bytes${fixup.file === null ? "" : `, ${hex(BigInt(fixup.file))} in the file`}`]);
  const parts = [head, codeTable(code)];
  if (fixup.clobbers) parts.push(element("p", "note", `Uses up: ${fixup.clobbers}.`));
  return element("div", "fixup", parts);
}

function after(site) {
  const code = lines(SITES.new[site], startOf(site));
  if (!code.length) return [element("p", "note", "Left as it is.")];
  const parts = [codeTable(code, "added")];
  if (SITES.fixup[site] >= 0) parts.push(fixupBox(SITES.fixup[site]));
  const all = TEXT[SITES.newBytes[site]];
  const done = code.reduce((sum, line) => sum + line.bytes.length, 0);
  const rest = all.slice(done).replace(/(..)(?=.)/g, "$1 ");
  if (rest && SITES.fixup[site] >= 0) parts.push(element("p", "note", [element("code", "", rest), " behind it is never reached."]));
  return parts;
}

function drawDetail() {
  if (selected < 0) {
    detail.replaceChildren(element("p", "empty", "Choose a site to see its code before and after."));
    return;
  }
  const site = selected;
  const name = value("instruction", site);
  const row = DATA.rows[name] ?? {};
  const row_ = shown.indexOf(site);
  const back = element("button", "icon", "←", { type: "button", "aria-label": "The site before", title: "The site before (k)" });
  const next = element("button", "icon", "→", { type: "button", "aria-label": "The next site", title: "The next site (j)" });
  back.disabled = row_ === 0;
  next.disabled = row_ === shown.length - 1;
  back.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  const dot = element("i", "dot");
  dot.style.background = COLOURS[SITES.tactic[site]];
  const badges = [element("span", "badge strong", [dot, value("tactic", site)]), element("span", "badge", value("class", site))];
  const confidence = value("confidence", site);
  badges.push(element("span", confidence === "data?" ? "badge warning" : "badge", confidence));
  const facts = [
    ...fact("Address", element("code", "", hex(address(site)))),
    ...fact("File offset", element("code", "", `0x${SITES.file[site].toString(16)}`)),
    ...fact("Section", VALUES.section[SITES.section[site]]),
    ...(text("source", site) ? fact("Source", element("code", "", text("source", site))) : []),
    ...(row.operation ? fact("Stands for", element("code", "", row.operation)) : []),
    ...fact("Class", `${EFFECTS[value("class", site)] ?? value("class", site)}${row.condition ? ` (${row.condition})` : ""}`),
    ...fact("Why this tactic", text("reason", site)),
    ...(text("refused", site) ? fact("Why none better", text("refused", site)) : []),
    ...(text("placing", site) ? fact("Fixup reached by", text("placing", site)) : []),
    ...(text("home", site) ? fact("Runs at", element("code", "", text("home", site))) : []),
    ...fact("Confidence", `${confidence}: ${text("why", site)}`),
    ...(row.manual ? fact("Manual", row.manual) : []),
  ];
  const other = coveredBy(site);
  if (other >= 0) {
    const link = element("button", "link", `${value("instruction", other)} at ${hex(address(other))}`, { type: "button" });
    link.addEventListener("click", () => select(other));
    facts.push(...fact("Done by", link));
  }
  const before = element("section", "side", [element("h4", "", "Before"), codeTable(lines(SITES.old[site], startOf(site)), TEXT[SITES.newBytes[site]] !== TEXT[SITES.oldBytes[site]] ? "removed" : "")]);
  detail.replaceChildren(
    element("div", "detail-head", [element("h3", "", [element("span", "what", name), " ", element("span", "where", text("symbol", site))]), element("div", "steps", [back, next])]),
    element("p", "badges", badges),
    element("div", "code", [before, element("section", "side", [element("h4", "", "After"), ...after(site)])]),
    element("dl", "facts", facts),
  );
  detail.scrollTop = 0;
}

detail.addEventListener("keydown", (event) => {
  if (event.key === "Escape") list.focus();
  else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  else return;
  event.preventDefault();
});
