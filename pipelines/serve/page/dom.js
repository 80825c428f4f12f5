// Creates elements from data, as text or attribute values and never as markup.

/** Creates an element. An attribute `true` becomes an empty value; null, undefined and false are left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Creates an icon from a symbol in index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

export const find = (id) => document.getElementById(id);

const NUMBERS = new Intl.NumberFormat("en");
const KINDS = { image: ["image", "images"], text: ["text", "texts"] };

export const number = (value) => NUMBERS.format(value);

/** "1 image", "1,200 texts". */
export function counted(count, kind) {
  const many = KINDS[kind]?.[1] ?? kind;
  return `${number(count)} ${count === 1 ? one(kind) : many}`;
}

export const one = (kind) => KINDS[kind]?.[0] ?? kind;

/** "Images", as a heading. */
export function heading(kind) {
  const many = KINDS[kind]?.[1] ?? kind;
  return many[0].toUpperCase() + many.slice(1);
}

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const [size, unit] = count < 1e6 ? [count / 1e3, "kB"] : [count / 1e6, "MB"];
  return `${size < 10 ? size.toFixed(1) : Math.round(size)} ${unit}`;
}
