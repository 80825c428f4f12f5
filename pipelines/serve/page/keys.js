// Keyboard shortcuts of the page.

import { find } from "./dom.js";
import * as hits from "./hits.js";

const isWriting = (element) => element?.matches("input, textarea, select") ?? false;

/** Listens for keys: `moreLike` takes a hit, `clear` empties the search. */
export function listen({ moreLike, clear }) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented) return;
    if (act(event, { moreLike, clear })) event.preventDefault();
  });
}

function act({ key, target }, { moreLike, clear }) {
  if (document.querySelector("dialog[open]")) return actInDialog(key, moreLike);
  if (key === "Escape") return escape(clear);
  if (isWriting(target)) return key === "ArrowDown" && target.id === "query" && enterHits();
  if (key === "/") return focusBox();
  if (key === "?") {
    find("keys").showModal();
    return true;
  }
  if (key === "m" && hits.focused()) {
    moreLike(hits.focused());
    return true;
  }
  if (/^Arrow|^Home$|^End$/.test(key) && hits.focused()) {
    if (!hits.moveFocus(key) && key === "ArrowUp") focusBox();
    return true;
  }
  return key === "ArrowDown" && target === document.body && enterHits();
}

function actInDialog(key, moreLike) {
  const hit = hits.inFull();
  if (!hit) return false; // the browser handles the keys of the other dialogs
  if (key === "ArrowLeft" || key === "ArrowRight") hits.step(key === "ArrowLeft" ? -1 : 1);
  else if (key === "m") moreLike(hit);
  else return false;
  return true;
}

function escape(clear) {
  const filters = find("filters");
  if (filters.contains(document.activeElement)) {
    filters.hidden = true;
    find("filters-button").setAttribute("aria-expanded", "false");
    find("filters-button").focus();
  } else clear();
  return true;
}

function focusBox() {
  find("query").focus();
  find("query").select();
  return true;
}

function enterHits() {
  if (!hits.cards().length) return false;
  hits.focusFirst();
  document.activeElement.scrollIntoView({ block: "nearest" });
  return true;
}
