// Filters: a field for each metadata column, and a box for a condition as JSON.

import { find, make } from "./dom.js";
import * as json from "./json.js";

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** A field for equality; `parse` returns undefined when the field is empty. */
function equality(name, input, parse, format) {
  return {
    nodes: [make("label", { for: input.id }, name), input],
    read: () => parse(input.value),
    write(condition) {
      const text = format(condition);
      input.value = text ?? "";
      return text !== null;
    },
  };
}

/** A field for a range, with a least and a greatest value. */
function range(name, id, type, parse, format) {
  const input = (side, words) =>
    make("input", { id: `${id}-${side}`, type, step: type === "number" ? "any" : null, "aria-label": words });
  const least = input("least", `${name} from`);
  const greatest = input("greatest", `${name} to`);
  least.placeholder = "from";
  greatest.placeholder = "to";
  return {
    nodes: [
      make("label", { for: least.id }, name),
      make("span", { class: "range" }, least, make("span", { "aria-hidden": "true" }, "–"), greatest),
    ],
    read() {
      const condition = {};
      for (const [operator, { value, validity }] of [["$gte", least], ["$lte", greatest]]) {
        if (validity.badInput) throw new Error(`${name} is incomplete or invalid. Complete it or clear it.`);
        if (value !== "") condition[operator] = parse(value);
      }
      return Object.keys(condition).length ? condition : undefined;
    },
    write(condition) {
      least.value = greatest.value = "";
      if (!isObject(condition) || Object.keys(condition).some((key) => key !== "$gte" && key !== "$lte")) return false;
      const [from, to] = [format(condition.$gte), format(condition.$lte)];
      if (from === null || to === null) return false;
      [least.value, greatest.value] = [from, to];
      return least.value === from && greatest.value === to; // browsers clear an invalid date
    },
  };
}

const asText = (value) => (typeof value === "string" ? value : null);
const asNumber = (value) => (value === undefined ? "" : /^(number|bigint)$/.test(typeof value) ? String(value) : null);
const asDate = (value) => (value === undefined ? "" : asText(value));
const asTime = (value) => (value === undefined ? "" : (asText(value)?.replace(/Z$/, "") ?? null));

function field(name, type, id) {
  if (/^(double|float)/.test(type)) return range(name, id, "number", Number, asNumber);
  if (/^(int|uint|decimal)/.test(type)) return range(name, id, "number", json.numberOf, asNumber);
  if (type.startsWith("date")) return range(name, id, "date", String, asDate);
  if (type.startsWith("timestamp")) return range(`${name} (UTC)`, id, "datetime-local", (v) => `${v}Z`, asTime);
  if (type.startsWith("bool")) {
    const option = (value, words) => make("option", { value }, words);
    const select = make("select", { id }, option("", "any"), option("true", "yes"), option("false", "no"));
    const parse = (value) => (value === "" ? undefined : value === "true");
    return equality(name, select, parse, (value) => (typeof value === "boolean" ? String(value) : null));
  }
  const input = make("input", { id, type: "text", placeholder: "any", autocomplete: "off" });
  return equality(name, input, (value) => (value === "" ? undefined : value), asText);
}

let fields = new Map();
let written = ""; // last condition shown; input that is not yet applied is not overwritten

/** Creates the fields for a catalog's metadata, {name: type}. */
export function layOut(metadata) {
  const names = Object.keys(metadata);
  fields = new Map(names.map((name, i) => [name, field(name, metadata[name], `filter-${i}`)]));
  const rows = [...fields.values()].map(({ nodes }) => make("div", { class: "field" }, ...nodes));
  find("fields").replaceChildren(...rows);
  written = "";
}

/** Returns the condition of the fields and the box, or null. Throws an Error with a sentence for the user. */
export function read() {
  const simple = {};
  for (const [name, { read: value }] of fields) {
    const condition = value();
    if (condition !== undefined) simple[name] = condition;
  }
  const box = find("condition");
  const text = box.value.trim();
  box.removeAttribute("aria-invalid");
  const isSimple = Object.keys(simple).length > 0;
  if (!text) return isSimple ? simple : null;
  let other;
  try {
    other = json.parse(text);
    if (!isObject(other)) throw new Error("it is not an object");
  } catch (error) {
    box.setAttribute("aria-invalid", "true");
    throw new Error(`The condition must be a JSON object such as {"price": {"$lt": 10}}: ${error.message}.`);
  }
  return isSimple ? { $and: [simple, other] } : other;
}

export function empty() {
  clearFields();
  find("condition").value = "";
  find("condition").removeAttribute("aria-invalid");
  written = "";
}

/** Shows a condition in the fields, and parts that fit no field in the box. */
export function write(where) {
  if (json.stringify(where) === written) return;
  empty();
  written = json.stringify(where);
  if (where === null) return;
  const box = find("condition");
  if (!isObject(where)) {
    box.value = typeof where === "string" ? where : json.stringify(where);
    return;
  }
  const both = Object.keys(where).length === 1 && where.$and?.length === 2 && isObject(where.$and[0]);
  const rest = both && Object.entries(where.$and[0]).every(put) ? where.$and[1] : leftOver(where);
  if (!isObject(rest) || Object.keys(rest).length) box.value = json.stringify(rest);
}

const clearFields = () => fields.forEach(({ write: put }) => put(undefined));

const put = ([name, condition]) => fields.get(name)?.write(condition) ?? false;

function leftOver(where) {
  clearFields();
  return Object.fromEntries(Object.entries(where).filter((entry) => !put(entry)));
}

/** Counts the terms of a condition. */
export function count(where) {
  if (where === null) return 0;
  if (!isObject(where)) return 1;
  return Object.entries(where).reduce(
    (sum, [name, value]) => sum + (name === "$and" && Array.isArray(value) ? value.reduce((n, w) => n + count(w), 0) : 1),
    0,
  );
}
