// JSON whose whole numbers keep all their digits: one that a double cannot hold is a BigInt. Browsers from before 2025
// that do not know how a number was written round it.

const isWide = (text) => /^-?\d+$/.test(text) && !Number.isSafeInteger(Number(text));

/** A whole number of any size, or any other, as it was written. */
export const numberOf = (text) => (isWide(text) ? BigInt(text) : Number(text));

/** What a JSON text says. Throws as JSON.parse does. */
export const parse = (text) =>
  JSON.parse(text, (_, value, context) => (typeof value === "number" && context?.source ? numberOf(context.source) : value));

/** A value as JSON. */
export const stringify = (value) =>
  JSON.stringify(value, (_, item) => (typeof item === "bigint" ? (JSON.rawJSON?.(String(item)) ?? Number(item)) : item));
