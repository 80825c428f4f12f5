// The state of the search, and its form in the URL, so that links and the back button restore it.

import * as json from "./json.js";

export const DEFAULT_K = 12;

export const NOTHING = { query: null, kinds: null, k: DEFAULT_K, merge: null, where: null };
/*
 * query: null | {text} | {asset: {kind, id}} | {image: key of the file in `images`}
 * kinds: null means all; merge: null means side by side, each kind with its own best hits
 */

/** Returns the URL hash of a state, with "#"; default values are left out. */
export function toHash(state) {
  const parts = new URLSearchParams();
  if (state.query?.text) parts.set("q", state.query.text);
  if (state.query?.asset) parts.set("like", `${state.query.asset.kind}:${state.query.asset.id}`);
  if (state.query?.image) parts.set("image", state.query.image);
  if (state.kinds) parts.set("kinds", state.kinds.join(","));
  if (state.k !== DEFAULT_K) parts.set("k", state.k);
  if (state.merge) parts.set("merge", state.merge);
  if (state.where) parts.set("where", json.stringify(state.where));
  return parts.size ? `#${parts}` : "#";
}

/** Returns the state of a URL hash; values that this catalog does not support are left out. */
export function fromHash(hash, catalog) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...NOTHING };
  const like = parts.get("like")?.match(/^([^:]+):(.*)$/s);
  if (parts.get("q")) state.query = { text: parts.get("q") };
  else if (like) state.query = { asset: { kind: like[1], id: like[2] } };
  else if (parts.get("image")) state.query = { image: parts.get("image") };
  const kinds = parts.get("kinds")?.split(",").filter((kind) => kind in catalog.kinds) ?? [];
  if (kinds.length && kinds.length < Object.keys(catalog.kinds).length) state.kinds = kinds;
  const k = Number(parts.get("k"));
  if (Number.isInteger(k) && k >= 1) state.k = Math.min(k, catalog.limits.max_k);
  if (catalog.merges.includes(parts.get("merge"))) state.merge = parts.get("merge");
  if (parts.get("where")) {
    try {
      state.where = json.parse(parts.get("where"));
    } catch {
      state.where = parts.get("where"); // the page or the server reports what is wrong with it
    }
  }
  return state;
}

const KEPT = 20;
const images = new Map();

/** Keeps an image for the back button until the page is closed; returns its key in the URL. */
export function keepImage(file) {
  const name = crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
  images.set(name, file);
  if (images.size > KEPT) images.delete(images.keys().next().value);
  return name;
}

export const keptImage = (name) => images.get(name) ?? null;
