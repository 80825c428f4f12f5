// JSON that keeps all digits of integers: an integer that a double cannot hold becomes a BigInt. Browsers from before
// 2025, which do not expose the source text of a number, round it.

const isWide = (text) => /^-?\d+$/.test(text) && !Number.isSafeInteger(Number(text));

/** Parses a number; integers of any size keep all digits. */
export const numberOf = (text) => (isWide(text) ? BigInt(text) : Number(text));

/** Parses JSON. Throws like JSON.parse. */
export const parse = (text) =>
  JSON.parse(text, (_, value, context) => (typeof value === "number" && context?.source ? numberOf(context.source) : value));

/** Formats a value as JSON. */
export const stringify = (value) =>
  JSON.stringify(value, (_, item) => (typeof item === "bigint" ? (JSON.rawJSON?.(String(item)) ?? Number(item)) : item));
