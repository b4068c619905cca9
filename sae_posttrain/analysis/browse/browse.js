"use strict";
// The pages of an SAE's features. Data files call browse.put; everything from data is set as text, never as markup.

const PAGE_ROWS = 50;
const SHADES = 5;
const byId = (id) => document.getElementById(id);

const browse = {
  values: new Map(),
  waiting: new Map(),
  put(name, value) {
    this.values.set(name, value);
    if (name === "index") start(value);
  },
  // The value of a data file. A script is how a page on a disk can load one.
  load(name) {
    if (this.values.has(name)) return Promise.resolve(this.values.get(name));
    if (!this.waiting.has(name)) {
      this.waiting.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => this.values.has(name) ? resolve(this.values.get(name)) : reject(new Error(name));
        script.onerror = () => { this.waiting.delete(name); reject(new Error(`data/${name}.js cannot be read`)); };
        document.head.append(script);
      }));
    }
    return this.waiting.get(name);
  },
};

let index = null; // what data/index.js gave
let rowOf = new Map(); // feature number to row
let found = []; // rows of the list, in order: {row, text?: how the match is shown}
let numShown = 0;
let hits = new Set(); // numbers of tokens that match
let chosen = new Set(); // rows that the copied line holds, beside the one that is open
let seen = 0; // counts changes of view: what arrives late for an older one is dropped

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const percent = (share) => share === null ? "–" : `${Number((100 * share).toPrecision(2))} %`;
const shown = (value) => value === null ? "–" : String(value);
const isRate = (score) => score.name.startsWith("firing_rate");
const titleOf = (score) => score.name.replaceAll("_", " ") + (score.of ? `: ${score.of}` : "");
const scoreText = (score, row) => isRate(score) ? percent(score.values[row]) : shown(score.values[row]);
const nameOf = (row) => index.names[row] ? `${index.ids[row]} ${index.names[row]}` : String(index.ids[row]);
const color = (group) => `var(--arm-${[2, 1, 3, 4, 5, 0][group % 6]})`;
const marks = { "\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣" };
// Spaces beside letters are seen as a gap; a token of spaces alone would be an empty box.
const visible = (token) => token.replace(token.trim() ? /[\n\r\t]/g : /[\n\r\t ]/g, (space) => marks[space]) || "·";

// Start

function start(value) {
  index = value;
  rowOf = new Map(index.ids.map((id, row) => [id, row]));
  document.title = index.title;
  byId("title").textContent = index.title;
  byId("lead").textContent = index.lead;
  const sort = byId("sort");
  sort.append(element("option", { value: "match", text: "best match" }), element("option", { value: "number", text: "number" }));
  const groups = new Map();
  index.scores.forEach((score, number) => {
    const option = element("option", { value: number, text: score.name.replaceAll("_", " ") });
    if (!score.of) return sort.append(option);
    if (!groups.has(score.of)) groups.set(score.of, sort.appendChild(element("optgroup", { label: score.of })));
    groups.get(score.of).append(option);
  });
  byId("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  byId("query").addEventListener("input", () => { if (byId("where").value === "tokens") search(); });
  byId("where").addEventListener("change", () => { if (byId("where").value === "tokens" || byId("query").value.trim()) search(); });
  for (const id of ["sort", "ascending", "silent"]) byId(id).addEventListener("change", () => list(id === "sort"));
  byId("more").addEventListener("click", () => { numShown += PAGE_ROWS; drawRows(); });
  window.addEventListener("hashchange", route);
  document.addEventListener("keydown", keys);
  sort.value = "0";
  matches = null;
  search();
  browse.load("queries").then(offerQueries, () => {});
  route();
}

function keys(event) {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.key === "Escape" && !byId("feature").hidden) location.hash = "";
  if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "/") {
    event.preventDefault();
    location.hash = "";
    route();
    byId("query").focus();
  }
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && !byId("feature").hidden) go(step);
}

function go(step) {
  const place = found.findIndex((each) => each.row === openRow());
  const next = found[place + step];
  if (next) location.hash = `feature=${index.ids[next.row]}`;
}

function openRow() {
  const asked = /^#feature=(\d+)$/.exec(location.hash);
  return asked && rowOf.has(Number(asked[1])) ? rowOf.get(Number(asked[1])) : null;
}

function route() {
  const row = openRow();
  seen += 1;
  byId("list").hidden = row !== null;
  byId("feature").hidden = row === null;
  if (row === null) {
    document.title = index.title;
    return;
  }
  document.title = `Feature ${nameOf(row)}`;
  window.scrollTo(0, 0);
  drawFeature(row, seen);
}

// Searching: what matches, the best first, or null for all

let matches = null;

function search() {
  seen += 1;
  for (const button of byId("queries").children) button.setAttribute("aria-pressed", "false");
  const query = byId("query").value;
  hits = new Set();
  if (!query.trim()) {
    matches = null;
    if (byId("sort").value === "match") byId("sort").value = "0";
    return list(false);
  }
  byId("sort").value = "match";
  if (byId("where").value === "texts") return searchTexts(query.trim().toLowerCase(), seen);
  matches = searchTokens(query.trim().toLowerCase());
  list(false);
}

function searchTokens(query) {
  const rank = new Map(); // token number to 0 (the same), 1 (begins so), 2 (holds it)
  index.tokens.forEach((token, number) => {
    const text = token.trim().toLowerCase();
    const how = text === query ? 0 : text.startsWith(query) ? 1 : query.length > 1 && text.includes(query) ? 2 : -1;
    if (how >= 0) rank.set(number, how);
  });
  hits = new Set(rank.keys());
  const best = [];
  index.ids.forEach((id, row) => {
    let score = String(id) === query ? -2 : (index.names[row] || "").toLowerCase().includes(query) ? -1 : Infinity;
    index.fires_on[row].forEach((token, place) => {
      if (rank.has(token)) score = Math.min(score, 10 * rank.get(token) + place / 10);
    });
    index.promotes[row].forEach((token, place) => {
      if (rank.has(token)) score = Math.min(score, 10 * rank.get(token) + 5 + place / 10);
    });
    if (score < Infinity) best.push([score, row]);
  });
  return best.sort((one, other) => one[0] - other[0]).map(([, row]) => ({ row }));
}

// All data files are read; they lie on the same disk, or on the server of this page.
async function searchTexts(query, own) {
  const numFiles = Math.ceil(index.ids.length / index.features_a_file);
  const names = [...index.texts_from.map((_, number) => `texts-${number}`),
    ...Array.from({ length: numFiles }, (_, number) => `features-${number}`)];
  const read = [];
  for (const [number, name] of names.entries()) {
    if (number % 8 === 0) byId("found").textContent = `Reading file ${number + 1} of ${names.length} …`;
    try {
      read.push(await browse.load(name));
    } catch (error) {
      byId("found").textContent = `${error.message}.`;
      return;
    }
    if (own !== seen) return;
  }
  const segments = read.slice(0, index.texts_from.length).flat();
  const places = new Map(); // segment to the tokens that the matches touch
  segments.forEach((segment, number) => {
    const text = segment[1].toLowerCase();
    let at = text.indexOf(query);
    if (at < 0) return;
    const pieces = piecesOf(segment[1], segment[2]);
    const touched = new Set();
    for (; at >= 0; at = text.indexOf(query, at + query.length)) {
      let place = 0;
      pieces.forEach((piece, token) => {
        if (place + piece.length > at && place < at + query.length) touched.add(token);
        place += piece.length;
      });
    }
    places.set(number, touched);
  });
  const best = [];
  read.slice(index.texts_from.length).flat().forEach((record, row) => {
    let level = 0, snippet = null;
    for (const each of record[3]) {
      const touched = places.get(each[0]);
      if (!touched) continue;
      for (let i = 0; i < each[3].length; i += 2) {
        if (each[3][i + 1] > level && touched.has(each[1] + each[3][i])) [level, snippet] = [each[3][i + 1], each];
      }
    }
    if (snippet) best.push({ row, level, snippet, asked: places.get(snippet[0]) });
  });
  matches = best.sort((one, other) => other.level - one.level);
  byId("sort").value = "match";
  list(false);
}

function offerQueries(queries) {
  byId("asked").hidden = !queries.length;
  for (const query of queries) {
    const button = element("button", { type: "button", "aria-pressed": "false", text: query.query });
    button.addEventListener("click", () => {
      byId("query").value = "";
      byId("sort").value = "match";
      seen += 1;
      hits = new Set();
      for (const each of byId("queries").children) each.setAttribute("aria-pressed", String(each === button));
      matches = query.features.map(([row, share, strongest, levels]) => ({ row, share, strongest, query, levels }));
      list(false);
    });
    byId("queries").append(button);
  }
}

// The list

function list(sorted) {
  const value = byId("sort").value;
  if (value === "match" && matches === null) byId("sort").value = "0";
  const score = index.scores[byId("sort").value];
  const silent = byId("silent").checked;
  const never = index.scores.find((each) => each.name === "firing_rate" && !each.of);
  let rows = (matches || index.ids.map((_, row) => ({ row }))).filter((each) => silent || matches || never.values[each.row] > 0);
  const sign = byId("ascending").checked ? 1 : -1;
  if (byId("sort").value === "number") rows = [...rows].sort((one, other) => -sign * (one.row - other.row));
  else if (score) {
    const at = (each) => score.values[each.row];
    rows = [...rows].sort((one, other) => at(one) === null || at(other) === null
      ? (at(one) === null) - (at(other) === null) : sign * (at(one) - at(other)));
  } else if (sign === 1) rows = [...rows].reverse();
  found = rows;
  numShown = PAGE_ROWS;
  byId("found").textContent = `${rows.length.toLocaleString("en")} ${matches ? "match" : "features"}${matches && rows.length !== 1 ? "es" : ""}.`;
  if (matches && !rows.length && byId("where").value === "tokens") {
    byId("found").textContent = "No feature has such a token among those it fires on or promotes most. Search in the texts of snippets.";
  }
  byId("rows").replaceChildren();
  drawRows();
}

function drawRows() {
  const rows = byId("rows");
  const score = index.scores[byId("sort").value] || index.scores[0];
  for (const each of found.slice(rows.children.length, numShown)) {
    const { row } = each;
    const figures = each.share !== undefined
      ? `${each.share === null ? "fires on no text here" : `${percent(each.share)} of its strongest`}, ${each.strongest}`
      : each.level !== undefined ? `${percent(each.level / index.levels)} of its strongest` : `${titleOf(score)} ${scoreText(score, row)}`;
    const item = element("li", {},
      element("a", { class: "number", href: `#feature=${index.ids[row]}`, text: nameOf(row) }),
      element("div", { class: "tokens-of" }, chips("fires on", index.fires_on[row]), chips("promotes", index.promotes[row])),
      element("span", { class: "figures muted", text: figures }));
    if (each.query) {
      const levels = levelsOf(each.levels);
      item.append(element("div", { class: "snippet" }, textOf(piecesOf(each.query.text, each.query.lengths), levels, new Set())));
    }
    if (each.snippet) {
      const box = element("div", { class: "snippet" });
      item.append(box);
      drawSnippet(box, each.snippet, row, each.asked);
    }
    rows.append(item);
  }
  byId("more").hidden = found.length <= numShown;
}

function chips(what, tokens) {
  return element("div", { class: "chips" }, element("span", { class: "what", text: what }),
    tokens.length ? null : element("span", { class: "what", text: "none" }),
    ...tokens.slice(0, 5).map((token) => element("span", { class: hits.has(token) ? "chip hit" : "chip", text: visible(index.tokens[token]) })));
}

// Snippets

function piecesOf(text, lengths) {
  const pieces = [];
  let at = 0;
  for (const length of lengths) {
    const size = typeof length === "number" ? length : parseInt(length, 36);
    pieces.push(text.slice(at, at + size));
    at += size;
  }
  return pieces;
}

function levelsOf(flat) {
  const levels = new Map();
  for (let i = 0; i < flat.length; i += 2) levels.set(flat[i], flat[i + 1]);
  return levels;
}

function textOf(pieces, levels, asked, top = null, cuts = [0, 0]) {
  const text = element("p", { class: "text", dir: "auto" });
  if (cuts[0]) text.append(element("span", { class: "cut", text: "… " }));
  pieces.forEach((piece, token) => {
    const level = levels.get(token) || 0;
    if (!level && !asked.has(token)) return text.append(piece);
    const shade = Math.max(1, Math.round(SHADES * level / index.levels));
    const classes = [level ? `a${shade}` : "", asked.has(token) ? "asked" : ""].filter(Boolean).join(" ");
    const mark = element("mark", { class: classes, text: piece || "·" });
    if (level && top !== null) mark.title = String(Number((level / index.levels * top).toPrecision(3)));
    text.append(mark);
  });
  if (cuts[1]) text.append(element("span", { class: "cut", text: " …" }));
  return text;
}

async function drawSnippet(box, [segment, begin, length, flat], row, asked = new Set()) {
  let file = index.texts_from.length - 1;
  while (file > 0 && index.texts_from[file] > segment) file -= 1;
  let record;
  try {
    record = (await browse.load(`texts-${file}`))[segment - index.texts_from[file]];
  } catch (error) {
    box.append(element("p", { class: "muted", text: `${error.message}.` }));
    return;
  }
  const all = piecesOf(record[1], record[2]);
  const pieces = all.slice(begin, begin + length);
  const cuts = [record[3] || begin > 0, record[4] || begin + length < all.length];
  const inside = new Set([...asked].map((token) => token - begin).filter((token) => token >= 0 && token < length));
  const top = index.scores.find((score) => score.name === "strongest_activation").values[row];
  const levels = levelsOf(flat);
  box.append(textOf(pieces, levels, inside, top, cuts));
  const strongest = Math.max(...levels.values()) / index.levels * top;
  const group = index.groups.length > 1 && record[0] >= 0 ? `${index.groups[record[0]][0]}. ` : "";
  box.append(element("p", { class: "facts", text: `${group}Strongest ${Number(strongest.toPrecision(3))}.` }));
}

// A feature

async function drawFeature(row, own) {
  const view = byId("feature");
  view.replaceChildren(element("p", { class: "muted", text: "Reading …" }));
  const file = Math.floor(row / index.features_a_file);
  let record;
  try {
    record = (await browse.load(`features-${file}`))[row - file * index.features_a_file];
  } catch (error) {
    view.replaceChildren(element("p", { class: "notice", text: `${error.message}.` }));
    return;
  }
  if (own !== seen) return;
  const [kinds, near, histogram, snippets] = record;
  const place = found.findIndex((each) => each.row === row);
  const link = (text, target) => target ? element("a", { href: `#feature=${index.ids[target.row]}`, text }) : null;
  const heading = element("h2", { text: `Feature ${nameOf(row)}`, tabindex: "-1" });
  const figures = index.scores.filter((score) => !(score.of && isRate(score)) && score.values[row] !== null);
  const parts = [
    element("nav", { "aria-label": "Features" }, element("a", { href: "#", text: "All features" }),
      link("Previous", found[place - 1]), place >= 0 ? link("Next", found[place + 1]) : null),
    heading,
    line(row),
    index.dashboard ? element("p", {}, element("a", { href: index.dashboard + index.ids[row], rel: "noreferrer", text: "This feature on Neuronpedia" })) : null,
    section("Snippets", snippets.length ? element("div", {}, ...snippets.map((snippet) => {
      const box = element("div", { class: "snippet" });
      drawSnippet(box, snippet, row);
      return box;
    })) : element("p", { class: "muted", text: "It fires on none of the texts." })),
    section("Tokens", element("div", { class: "two" },
      element("div", {}, element("h4", { text: "It fires on" }), chipList(index.fires_on[row])),
      ...kinds.map((flat, kind) => element("div", {}, element("h4", { text: ["Its direction promotes", "and suppresses"][kind] }),
        chipList(flat.filter((_, i) => i % 2 === 0), flat.filter((_, i) => i % 2 === 1)))))),
    section("How often and how strongly it fires", element("div", { class: "two" }, rates(row, histogram), drawHistogram(row, histogram))),
    section("Scores", table(figures.map((score) => [titleOf(score), scoreText(score, row)]))),
    section("Nearest features, by the cosine of their directions", neighbours(near)),
  ];
  view.replaceChildren(...parts.filter((part) => part !== null));
  heading.focus({ preventScroll: true });
}

function section(title, ...content) {
  return element("section", {}, element("h3", { text: title }), ...content);
}

function chipList(tokens, scores = []) {
  if (!tokens.length) return element("p", { class: "muted", text: "None." });
  return element("div", { class: "chips" }, ...tokens.map((token, i) => {
    const chip = element("span", { class: "chip", text: visible(index.tokens[token]) });
    if (i < scores.length) chip.title = `${scores[i] > 0 ? "+" : ""}${scores[i]} standard deviations`;
    return chip;
  }));
}

function table(rows) {
  return element("table", { class: "rates" }, element("tbody", {}, ...rows.map(([name, ...cells]) =>
    element("tr", {}, element("th", { scope: "row", text: name }), ...cells.map((cell) =>
      cell instanceof Node ? element("td", { class: "bar-cell" }, cell) : element("td", { text: cell }))))));
}

function rates(row, histogram) {
  const overall = index.scores.find((score) => score.name === "firing_rate" && !score.of).values[row];
  const shares = index.groups.map(([group]) => {
    const score = index.scores.find((each) => each.name === "firing_rate" && each.of === group);
    return score ? score.values[row] : overall;
  });
  const most = Math.max(...shares, 1e-9);
  return element("div", {}, element("h4", { text: "Share of tokens, by group" }), table(index.groups.map(([group, size], i) => {
    const bar = element("span", { class: "bar" });
    bar.style.width = `${100 * shares[i] / most}%`;
    if (shares.length > 1) bar.style.background = color(i);
    const fires = histogram[i].reduce((sum, count) => sum + count, 0);
    return [group, bar, percent(shares[i]), `${fires} of ${size} texts`];
  })));
}

function drawHistogram(row, histogram) {
  const [width, height, left, bottom, top] = [380, 150, 34, 34, 8];
  const svg = (tag, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const shares = histogram.map((counts, i) => {
    const size = index.groups[i][1];
    return [size - counts.reduce((sum, count) => sum + count, 0), ...counts].map((count) => count / size);
  });
  const tallest = Math.max(...shares.flat(), 1e-9);
  const alt = "Share of the texts of each group by their strongest activation";
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "font-size": 11, "aria-label": alt });
  const bin = (width - left) / (index.bins + 1), base = height - bottom;
  shares.forEach((each, i) => each.forEach((share, at) => {
    const bar = 0.84 * bin / shares.length, tall = (base - top) * share / tallest;
    if (share) picture.append(svg("rect", { x: left + at * bin + 0.08 * bin + i * bar, y: base - tall, width: bar, height: tall, fill: color(i) }));
  }));
  picture.append(
    svg("line", { x1: left, y1: base, x2: width, y2: base, stroke: "var(--line)" }),
    svg("text", { x: left - 4, y: top + 8, "text-anchor": "end", fill: "var(--muted)" }, `${Math.round(100 * tallest)} %`),
    svg("text", { x: left, y: base + 14, fill: "var(--muted)" }, "never"),
    svg("text", { x: width, y: base + 14, "text-anchor": "end", fill: "var(--muted)" },
      shown(index.scores.find((score) => score.name === "strongest_activation").values[row])),
    svg("text", { x: (left + width) / 2, y: base + 28, "text-anchor": "middle", fill: "var(--muted)" }, "strongest activation in a text"));
  const key = element("p", { class: "muted key" }, ...(shares.length > 1 ? index.groups.map(([group], i) => {
    const swatch = element("span", { class: "bar" });
    swatch.style.width = "0.7em";
    swatch.style.background = color(i);
    return element("span", {}, swatch, ` ${group}`);
  }) : []));
  return element("figure", {}, element("h4", { text: "Share of texts" }), picture, key);
}

function neighbours(near) {
  const rows = [];
  for (let i = 0; i < near.length; i += 2) {
    const row = near[i];
    rows.push(element("li", {}, element("span", { class: "muted", text: near[i + 1].toFixed(2) }),
      element("a", { href: `#feature=${index.ids[row]}`, text: nameOf(row) }), chips("fires on", index.fires_on[row])));
  }
  return element("ul", { class: "near" }, ...rows);
}

// The line that makes a FeatureSet

function line(row) {
  const numbers = [...new Set([...chosen, row])].map((each) => index.ids[each]).sort((one, other) => one - other);
  const code = element("code", { text: `features = FeatureSet.from_sae(${index.source}, [${numbers.join(", ")}])` });
  const copy = element("button", { type: "button", text: "Copy the line" });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // a page on a disk may not write to the clipboard in every browser
      copy.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl-C";
    }
    setTimeout(() => { copy.textContent = "Copy the line"; }, 2000);
  });
  const keep = element("button", { type: "button", "aria-pressed": String(chosen.has(row)), text: "Keep in the line" });
  keep.title = "The line of other features then holds this one too.";
  const box = element("div", { class: "line" }, code, copy, keep);
  keep.addEventListener("click", () => {
    if (!chosen.delete(row)) chosen.add(row);
    const drawn = line(row);
    box.replaceWith(drawn);
    drawn.lastChild.focus();
  });
  return box;
}
