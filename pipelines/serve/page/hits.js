// Hits as cards, side by side or in one list, and a dialog with the details of one hit.

import * as api from "./api.js";
import { bytes, find, heading, icon, make, number, one } from "./dom.js";

const SHOWN_METADATA = 3;

let listed = []; // hits in the order of their cards
let loading = new AbortController(); // cancels the loading of thumbnails that are no longer shown

/** Called with a hit to search for similar assets. */
let moreLike = () => {};

export function onMoreLike(act) {
  moreLike = act;
}

/** Shows columns of hits, [[kind or null, hits]]; null is one list of both kinds. */
export function show(columns) {
  loading.abort();
  loading = new AbortController();
  listed = columns.flatMap(([, hits]) => hits);
  let first = 0;
  const sections = columns.map(([kind, hits]) => {
    const section = column(kind, hits, first);
    first += hits.length;
    return section;
  });
  const results = find("results");
  results.replaceChildren(...sections);
  results.dataset.columns = columns.map(([kind]) => kind ?? "mixed").join(" ");
  layOutTabs(columns);
  makeCurrent(cards()[0]);
}

export const clear = () => show([]);

/** Shows grey cards while a search is running. */
export function showWaiting(kinds) {
  loading.abort();
  listed = [];
  const blank = (kind) =>
    make(
      "section",
      { class: "column", "data-kind": kind },
      make("h2", {}, heading(kind)),
      make("div", { class: "cards", "aria-hidden": "true" }, ...Array.from({ length: 6 }, () => make("div", { class: "blank" }))),
    );
  find("results").replaceChildren(...kinds.map(blank));
  find("results").dataset.columns = kinds.join(" ");
}

function column(kind, hits, first) {
  const title = make("h2", { id: `column-${kind ?? "mixed"}` }, kind === null ? "Both kinds" : heading(kind));
  if (hits.length) title.append(" ", make("span", { class: "count" }, number(hits.length)));
  const section = make("section", { class: "column", "data-kind": kind ?? "mixed", "aria-labelledby": title.id }, title);
  const best = Math.max(...hits.map((hit) => hit.score), 0);
  section.append(
    hits.length
      ? make("ol", { class: "cards" }, ...hits.map((hit, i) => card(hit, first + i, best)))
      : make("p", { class: "none" }, `No ${one(kind ?? "asset")} matches.`),
  );
  return section;
}

function card(hit, position, best) {
  const open = make("button", { class: "open", type: "button", "data-position": position, tabindex: -1 });
  if (hit.kind === "image") open.append(imageOf(hit));
  const words = hit.kind === "text" ? (hit.text ?? hit.asset_id) : hit.text || hit.asset_id;
  const caption = make("span", { class: "caption", dir: "auto" }, words);
  const line = make("span", { class: "line" });
  if (words !== hit.asset_id) line.append(make("span", { class: "id", dir: "auto" }, hit.asset_id));
  const pairs = metadata(hit.metadata);
  open.append(caption, line, ...(pairs ? [pairs] : []));
  open.addEventListener("click", () => showInFull(position));
  open.addEventListener("focus", () => makeCurrent(open));
  const like = make("button", { class: "like", type: "button", tabindex: -1 }, icon("like"), "More like this");
  like.addEventListener("click", () => moreLike(hit));
  const foot = make("div", { class: "foot" }, bar(hit.score, best), like, score(hit.score));
  return make("li", { class: "hit", "data-kind": hit.kind, "data-id": hit.asset_id }, open, foot);
}

function imageOf(hit) {
  const frame = make("span", { class: "frame" });
  const absent = () => frame.replaceChildren(icon("image"), make("span", { class: "absent" }, "image not available"));
  if (!hit.thumbnail) {
    absent();
    return frame;
  }
  const image = make("img", { alt: "", loading: "lazy", decoding: "async", draggable: "false" });
  image.addEventListener("error", absent, { once: true });
  image.addEventListener("load", () => frame.classList.add("loaded"), { once: true });
  api.showThumbnail(image, hit.thumbnail, loading.signal);
  frame.append(image);
  return frame;
}

function metadata(values) {
  const shown = Object.entries(values ?? {}).filter(([, value]) => value !== null);
  const pairs = shown
    .slice(0, SHOWN_METADATA)
    .map(([name, value]) => make("span", { class: "pair", dir: "auto" }, make("span", { class: "name" }, name), " ", written(value)));
  return pairs.length ? make("span", { class: "pairs" }, ...pairs) : null;
}

const written = (value) => (value === true ? "yes" : value === false ? "no" : String(value));

const score = (value) => make("span", { class: "score", title: "Cosine similarity to the query" }, value.toFixed(3));

/** Creates a bar with the score relative to the best hit of the column. */
function bar(value, best) {
  const filled = make("span");
  filled.style.width = `${best > 0 ? Math.max(0, Math.min(1, value / best)) * 100 : 0}%`;
  return make("span", { class: "bar", "aria-hidden": "true" }, filled);
}

/** Creates tabs for phones, which show one column at a time. */
function layOutTabs(columns) {
  const tabs = find("tabs");
  tabs.hidden = columns.length < 2;
  const choose = (kind) => {
    find("results").dataset.shown = kind;
    for (const tab of tabs.children) tab.setAttribute("aria-pressed", tab.dataset.kind === kind);
  };
  tabs.replaceChildren(
    ...columns.map(([kind, hits]) => {
      const tab = make("button", { type: "button", "data-kind": kind }, `${heading(kind ?? "asset")} `);
      tab.append(make("span", { class: "count" }, number(hits.length)));
      tab.addEventListener("click", () => choose(kind));
      return tab;
    }),
  );
  if (columns.length) {
    const stays = columns.some(([kind, hits]) => kind === find("results").dataset.shown && hits.length);
    choose(stays ? find("results").dataset.shown : (columns.find(([, hits]) => hits.length) ?? columns[0])[0]);
  }
}

// Only one card is in the Tab order; arrow keys move the focus to another one.

export const cards = () => [...document.querySelectorAll("#results .open")].filter((card) => card.offsetParent !== null);

function makeCurrent(card) {
  for (const other of document.querySelectorAll("#results .hit button")) other.tabIndex = -1;
  for (const button of card?.closest(".hit").querySelectorAll("button") ?? []) button.tabIndex = 0;
}

/** Returns the hit whose card, or a button in it, has the focus. */
export function focused() {
  const open = document.activeElement?.closest?.(".hit")?.querySelector(".open");
  return open ? listed[Number(open.dataset.position)] : null;
}

export function focusFirst() {
  cards()[0]?.focus({ preventScroll: true });
}

/** Moves the focus to the next card in a direction; returns false when there is none. */
export function moveFocus(key) {
  const all = cards();
  const here = document.activeElement.closest(".hit")?.querySelector(".open");
  if (!all.length || !here) return false;
  if (key === "Home" || key === "End") {
    all.at(key === "Home" ? 0 : -1).focus();
    return true;
  }
  const from = here.getBoundingClientRect();
  const [x, y] = [from.left + from.width / 2, from.top + from.height / 2];
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  let best = null;
  let least = Infinity;
  for (const card of all) {
    const box = card.getBoundingClientRect();
    const along = (box.left + box.width / 2 - x) * dx + (box.top + box.height / 2 - y) * dy;
    const across = Math.abs((box.left + box.width / 2 - x) * dy) + Math.abs((box.top + box.height / 2 - y) * dx);
    const distance = along + 3 * across; // prefer cards straight ahead over closer ones
    if (along > 4 && distance < least) [best, least] = [card, distance];
  }
  best?.focus();
  return best !== null;
}

// The dialog with the details of one hit.

let shown = 0;
let asking = new AbortController();

/** Opens the dialog for a hit; `step` moves to a neighbour. */
export function showInFull(position) {
  shown = position;
  const hit = listed[position];
  asking.abort();
  asking = new AbortController();
  const frame = find("detail-image");
  frame.hidden = !hit.thumbnail;
  if (hit.thumbnail) {
    const image = make("img", { alt: hit.text || hit.asset_id });
    image.addEventListener("error", () => (frame.hidden = true), { once: true });
    api.showThumbnail(image, `${hit.thumbnail}&size=640`, asking.signal);
    frame.replaceChildren(image);
  }
  find("detail-title").textContent = hit.text || hit.asset_id;
  layOutFacts(hit, {});
  api
    .asset(hit.kind, hit.asset_id, asking.signal)
    .then((found) => layOutFacts(hit, found))
    .catch(() => {}); // the facts of the hit itself are shown already
  const dialog = find("detail");
  if (!dialog.open) dialog.showModal();
}

export function step(by) {
  const position = shown + by;
  if (position >= 0 && position < listed.length) showInFull(position);
}

export const inFull = () => (find("detail").open ? listed[shown] : null);

export function closeDetail() {
  find("detail").close();
  document.querySelector(`#results [data-position="${shown}"]`)?.focus();
}

function layOutFacts(hit, asset) {
  const facts = [
    ["id", hit.asset_id],
    ["kind", one(hit.kind)],
    ["score", hit.score.toFixed(4)],
    ["from", hit.uri],
    ["type", asset.media_type],
    ["pixels", asset.width && asset.height ? `${asset.width} × ${asset.height}` : null],
    ["size", asset.size_bytes ? bytes(asset.size_bytes) : null],
    ...Object.entries(hit.metadata ?? {}),
  ];
  find("detail-facts").replaceChildren(
    ...facts
      .filter(([, value]) => value !== null && value !== undefined)
      .flatMap(([name, value]) => [make("dt", { dir: "auto" }, name), make("dd", { dir: "auto" }, written(value))]),
  );
}
