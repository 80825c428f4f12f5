// The page. The search is in `state` and in the URL; everything else is derived from it.

import * as api from "./api.js";
import { listenForColours } from "./colours.js";
import { bytes, counted, find, heading, make, number, one } from "./dom.js";
import * as filters from "./filters.js";
import * as hits from "./hits.js";
import * as keys from "./keys.js";
import * as images from "./images.js";
import { showProblem } from "./problem.js";
import { DEFAULT_K, NOTHING, fromHash, keepImage, keptImage, toHash } from "./state.js";
import { askForToken } from "./token.js";

const LOOK_EVERY_MS = 20_000;
const WAITING_AFTER_MS = 250;
const SIZES = [6, DEFAULT_K, 24, 48, 96];
const ORDERS = { score: "one list, by score", quota: "one list, in turns", standardised: "one list, standardised" };

let catalog = null;
let state = NOTHING;
let running = new AbortController();

// Searching

/** Changes the state, adds it to the browser history, and searches. */
function go(change, { focusHits = false } = {}) {
  if (catalog === null) return null;
  state = { ...state, ...change };
  const hash = toHash(state);
  if (hash !== (location.hash || "#")) history.pushState(null, "", hash);
  layOutState();
  return search(focusHits);
}

async function search(focusHits = false) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const asked = state;
  showProblem(null);
  if (asked.query === null) {
    document.body.dataset.stage = "home";
    find("status").textContent = "";
    hits.clear();
    return;
  }
  document.body.dataset.stage = "results";
  find("results").setAttribute("aria-busy", "true");
  const waiting = setTimeout(() => hits.showWaiting(kindsOf(asked)), WAITING_AFTER_MS);
  try {
    const answer = await request(asked, signal);
    clearTimeout(waiting);
    show(asked, answer);
    if (focusHits) hits.focusFirst();
  } catch (error) {
    if (signal.aborted) return;
    hits.clear();
    find("status").textContent = "";
    showProblem(error);
  } finally {
    clearTimeout(waiting);
    if (!signal.aborted) find("results").removeAttribute("aria-busy");
  }
}

/** Searches what the URL says: at the start, and after the back button. */
function comeBack(typed = "") {
  state = fromHash(location.hash, catalog);
  find("query").value = state.query?.text ?? typed;
  layOutState();
  search();
}

const kindsOf = (asked) => asked.kinds ?? Object.keys(catalog.kinds);
const isSideBySide = (asked) => asked.merge === null && kindsOf(asked).length > 1;

async function request({ query, ...asked }, signal) {
  const options = { k: asked.k, kinds: asked.kinds, where: asked.where, merge: asked.merge ?? "score" };
  if (isSideBySide(asked)) {
    // With quota, the kinds take turns: k hits per kind contain the k best of each, with one request and one embedding.
    // An asset is left out of its own hits, so it needs one more round.
    const rounds = asked.k + (query.asset ? 1 : 0);
    options.merge = "quota";
    options.k = Math.min(rounds * kindsOf(asked).length, catalog.limits.max_k);
  }
  if (!query.image) return api.search({ ...query, ...options }, signal);
  const file = keptImage(query.image);
  if (file === null) throw new api.Problem("The image of this search is no longer available. Drop it again.", { status: 404 });
  if (file.size > catalog.limits.max_upload_bytes)
    throw new api.Problem(
      `The image has ${bytes(file.size)}, but the limit is ${bytes(catalog.limits.max_upload_bytes)}. Use a smaller image.`,
      { status: 413 },
    );
  return api.searchByImage(file, options, signal);
}

function show(asked, answer) {
  const columns = isSideBySide(asked)
    ? kindsOf(asked).map((kind) => [kind, answer.hits.filter((hit) => hit.kind === kind).slice(0, asked.k)])
    : [[kindsOf(asked).length === 1 ? kindsOf(asked)[0] : null, answer.hits]];
  if (columns.every(([, found]) => found.length === 0)) {
    hits.clear();
    find("status").textContent = asked.where ? "Nothing matches these filters." : "The catalog has no assets to search here.";
  } else {
    hits.show(columns);
    const found = Object.keys(catalog.kinds)
      .map((kind) => [columns.flatMap(([, some]) => some).filter((hit) => hit.kind === kind).length, kind])
      .filter(([count]) => count)
      .map(([count, kind]) => counted(count, kind));
    const took = { embedded: answer.took_ms.embed, searched: answer.took_ms.search };
    const times = Object.entries(took).flatMap(([what, ms]) => (ms >= 0.05 ? [`${what} in ${inMs(ms)}`] : []));
    find("status").textContent = [found.join(" and "), ...times].join(" · ");
  }
  if (answer.version !== catalog.version) {
    noticeVersion(answer.version, true);
    api.catalog().then(meetCatalog, () => {}); // the hits are correct without it
  }
}

const inMs = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : `${number(Math.round(ms))} ms`);

function searchByImage(file) {
  if (catalog === null) return;
  if (!catalog.can_embed) {
    showProblem(new api.Problem("This server does not embed images. Start from the id of an asset.", { status: 422 }));
  } else if (file.type && !file.type.startsWith("image/")) {
    showProblem(new api.Problem(`“${file.name}” is not an image. Choose a JPEG, PNG or WebP file.`, { status: 415 }));
  } else {
    find("query").value = "";
    go({ query: { image: keepImage(file) } });
  }
}

function moreLike(hit) {
  if (find("detail").open) find("detail").close();
  find("query").value = "";
  scrollTo({ top: 0 });
  go({ query: { asset: { kind: hit.kind, id: hit.asset_id } } }, { focusHits: true });
}

// Display of the state

/** Updates box, chip and controls from the state. */
function layOutState() {
  const { query } = state;
  document.title = `${query?.text ?? (query ? "More like this" : "Search")} · epithre-beam`;
  const chip = find("chip");
  chip.hidden = !query || Boolean(query.text);
  if (!chip.hidden) layOutChip(query);
  find("query").placeholder = chip.hidden ? placeholder() : "or type text";
  find("kinds").dataset.chosen = state.kinds?.[0] ?? "";
  for (const button of find("kinds").children) {
    button.setAttribute("aria-pressed", button.dataset.kind === find("kinds").dataset.chosen);
  }
  if (![...find("k").options].some(({ value }) => Number(value) === state.k)) addSize(state.k);
  find("k").value = state.k;
  find("merge").value = state.merge ?? "";
  find("merge-label").hidden = kindsOf(state).length < 2;
  filters.write(state.where);
  find("filters-problem").textContent = "";
  find("filters-count").textContent = filters.count(state.where);
  find("filters-count").hidden = state.where === null;
}

function layOutChip({ image, asset }) {
  const chip = find("chip-image");
  const file = image ? keptImage(image) : null;
  chip.hidden = true;
  chip.onload = () => {
    chip.hidden = false;
    if (file) URL.revokeObjectURL(chip.src);
  };
  chip.onerror = () => (chip.hidden = true);
  chip.removeAttribute("src");
  if (file) chip.src = URL.createObjectURL(file);
  if (asset?.kind === "image") showAsset(chip, asset);
  find("chip-words").textContent = asset ? `like ${asset.id}` : (file?.name ?? "an image");
}

async function showAsset(image, asset) {
  try {
    const { thumbnail } = await api.asset(asset.kind, asset.id);
    if (thumbnail && state.query?.asset === asset) api.showThumbnail(image, thumbnail);
  } catch {
    // The search itself reports the error.
  }
}

const placeholder = () => (catalog.can_embed ? "a red bicycle on the beach" : "the id of an asset");

function addSize(k) {
  const sizes = [...new Set([...SIZES.filter((size) => size <= catalog.limits.max_k), k])].sort((a, b) => a - b);
  find("k").replaceChildren(...sizes.map((size) => make("option", { value: size }, number(size))));
}

function noticeVersion(version, isShown) {
  find("notice-words").textContent = isShown
    ? `The catalog has changed. These hits are from the new version ${version}.`
    : `The catalog has changed. The current version is ${version}.`;
  find("notice-again").hidden = isShown || state.query === null;
  find("notice").hidden = false;
}

// The catalog

/** Updates the page for the catalog's current version, at the start and after a change. */
function meetCatalog(found) {
  const columns = JSON.stringify(catalog?.metadata);
  catalog = found;
  find("version").textContent = found.version;
  find("version").title = `created ${found.created} with ${found.model}, ${number(found.dimension)} dimensions`;
  if (JSON.stringify(found.metadata) !== columns) filters.layOut(found.metadata);
  const kinds = Object.keys(catalog.kinds);
  find("title").textContent = `Search ${kinds.map((kind) => counted(catalog.kinds[kind], kind)).join(" and ")}`;
  const choices = kinds.length > 1 ? [["", "Both"], ...kinds.map((kind) => [kind, heading(kind)])] : [];
  find("kinds").hidden = choices.length === 0;
  find("kinds").replaceChildren(
    ...choices.map(([kind, words]) => make("button", { type: "button", "data-kind": kind }, words)),
  );
  const orders = catalog.merges.map((merge) => [merge, ORDERS[merge] ?? merge]);
  find("merge").replaceChildren(
    ...[["", "side by side"], ...orders].map(([value, words]) => make("option", { value }, words)),
  );
  addSize(state.k);
  find("query").maxLength = catalog.limits.max_text_chars;
  find("choose").hidden = !catalog.can_embed;
  find("query-kind").hidden = catalog.can_embed;
  find("query-kind").replaceChildren(...kinds.map((kind) => make("option", { value: kind }, one(kind))));
  if (!catalog.can_embed) {
    find("query").setAttribute("aria-label", "The id of an asset");
    find("hint").textContent =
      "This server does not embed text or images. Type the id of an asset to find similar ones, then use “More like this”.";
  }
  layOutState();
}

async function lookForVersion() {
  if (catalog === null || document.hidden) return;
  const { version } = catalog;
  try {
    const found = await api.catalog();
    if (found.version === version || catalog.version !== version) return;
    noticeVersion(found.version, false);
    meetCatalog(found);
  } catch {
    // The next search reports the error; the hits on the page stay valid.
  }
}

// User actions

function listen() {
  find("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = find("query").value.trim();
    if (catalog === null) {
      begin().then(() => catalog !== null && find("search").requestSubmit());
      return;
    }
    if (matchMedia("(pointer: coarse)").matches) find("query").blur(); // hides the on-screen keyboard
    if (!text && state.query && !state.query.text) search();
    else if (!text) clear();
    else if (catalog.can_embed) go({ query: { text } });
    else go({ query: { asset: { kind: find("query-kind").value, id: text } } });
  });
  find("kinds").addEventListener("click", ({ target }) => {
    const kind = target.closest("button")?.dataset.kind;
    if (kind !== undefined) go({ kinds: kind ? [kind] : null });
  });
  find("k").addEventListener("change", ({ target }) => go({ k: Number(target.value) }));
  find("merge").addEventListener("change", ({ target }) => go({ merge: target.value || null }));
  find("filters-button").addEventListener("click", () => {
    const isOpen = find("filters").hidden;
    find("filters").hidden = !isOpen;
    find("filters-button").setAttribute("aria-expanded", isOpen);
    if (isOpen) find("filters").querySelector("input, select, textarea").focus();
  });
  find("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      find("filters-problem").textContent = "";
      go({ where: filters.read() });
    } catch (error) {
      find("filters-problem").textContent = error.message;
    }
  });
  find("filters-clear").addEventListener("click", () => {
    filters.empty();
    go({ where: null });
  });
  find("chip-remove").addEventListener("click", clear);
  find("brand").addEventListener("click", (event) => {
    event.preventDefault();
    clear();
  });
  find("problem-again").addEventListener("click", () => (catalog === null ? begin() : search()));
  find("notice-again").addEventListener("click", () => {
    find("notice").hidden = true;
    search();
  });
  find("notice-close").addEventListener("click", () => (find("notice").hidden = true));
  find("detail-like").addEventListener("click", () => moreLike(hits.inFull()));
  find("detail-back").addEventListener("click", () => hits.step(-1));
  find("detail-on").addEventListener("click", () => hits.step(1));
  find("detail-close").addEventListener("click", hits.closeDetail);
  find("detail").addEventListener("click", ({ target }) => target === find("detail") && hits.closeDetail());
  find("detail").addEventListener("cancel", (event) => {
    event.preventDefault();
    hits.closeDetail();
  });
  find("keys-button").addEventListener("click", () => find("keys").showModal());
  images.listen(searchByImage);
  keys.listen({ moreLike, clear });
  hits.onMoreLike(moreLike);
  addEventListener("popstate", () => catalog !== null && comeBack());
  setInterval(lookForVersion, LOOK_EVERY_MS);
  document.addEventListener("visibilitychange", lookForVersion);
}

function clear() {
  find("query").value = "";
  go({ query: null });
  find("query").focus();
}

async function begin() {
  showProblem(null);
  try {
    meetCatalog(await api.catalog());
  } catch (error) {
    showProblem(error);
    return;
  }
  comeBack(find("query").value); // keeps what was typed meanwhile
}

api.onTokenNeeded(askForToken);
listenForColours();
listen();
begin();
