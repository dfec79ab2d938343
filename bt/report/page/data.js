// What the page holds, and how a site's parts are read: columns of numbers that point into tables of text.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SITES = DATA.sites;
const COUNT = SITES.offset.length;
const TEXT = DATA.strings;
const BASES = DATA.sections.map((section) => BigInt(section.address));
const FACETS = ["tactic", "class", "section", "confidence", "instruction"];
const TITLES = { tactic: "Tactic", class: "Class", section: "Section", confidence: "Confidence", instruction: "Instruction" };
const VALUES = { ...DATA.values, section: DATA.sections.map((section) => section.name) };
const COLOURS = DATA.values.tactic.map((name, index) => `var(--tactic-${DATA.colours[index]})`);

const hex = (value) => value.toString(16).padStart(DATA.image.digits, "0");
const address = (site) => BASES[SITES.section[site]] + BigInt(SITES.offset[site]);
const number = (value) => value.toLocaleString("en").replaceAll(",", " ");
const value = (field, site) => VALUES[field][SITES[field][site]];
const text = (field, site) => TEXT[SITES[field][site]];

// An element with a class, contents as text or elements, and attributes. Text is never read as markup.
function element(tag, className, contents, attributes) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const part of [contents ?? []].flat()) made.append(part);
  for (const [name, content] of Object.entries(attributes ?? {})) made.setAttribute(name, content);
  return made;
}

// A block of code is a flat list of pairs: bytes in hexadecimal, text.
function lines(block, start) {
  const found = [];
  let at = start;
  for (let i = 0; i < block.length; i += 2) {
    const bytes = TEXT[block[i]];
    found.push({ address: at, bytes, text: TEXT[block[i + 1]] });
    at += BigInt(bytes.length / 2);
  }
  return found;
}

let haystacks = null;
function haystack(site) {
  // Made at the first search: most readers never do one.
  haystacks ??= new Array(COUNT);
  if (haystacks[site] === undefined) {
    const code = [...lines(SITES.old[site], 0n), ...lines(SITES.new[site], 0n)].map((line) => line.text).join(" ; ");
    const parts = [hex(address(site)), text("symbol", site), text("source", site), value("instruction", site),
      value("tactic", site), value("class", site), TEXT[SITES.oldBytes[site]], TEXT[SITES.newBytes[site]], code,
      text("reason", site), text("refused", site), text("placing", site), VALUES.section[SITES.section[site]]];
    haystacks[site] = parts.join("\n").toLowerCase();
  }
  return haystacks[site];
}
