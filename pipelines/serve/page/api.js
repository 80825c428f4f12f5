// Client of the server's API. URLs are relative to the page, so that a proxy can serve both under a path prefix.

import * as json from "./json.js";

const TOKEN = "epithre-beam-token";

/** An error with a sentence for the user; the status is 0 when the server did not answer. */
export class Problem extends Error {
  constructor(sentence, { status = 0, waitS = 0 } = {}) {
    super(sentence);
    this.status = status;
    this.waitS = waitS;
  }
}

const SENTENCES = {
  401: "This server needs a token.",
  404: "The current catalog version has no such asset.",
  413: "The request is too large for this server.",
  429: "Too many requests. Wait a moment.",
  503: "The server is busy or not ready. Try again later.",
};

let askForToken = async () => null;
let asking = null;

/** Sets the function that asks the user for the token: it takes "was refused", and resolves to the token or to null. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

const token = () => sessionStorage.getItem(TOKEN);

/** Asks the user once, even if several requests need the token at the same time. */
async function renewToken(refused) {
  if (token() !== refused) return true; // renewed after this request was sent
  asking ??= askForToken(refused !== null).finally(() => (asking = null));
  const given = await asking;
  if (given === null) return false;
  sessionStorage.setItem(TOKEN, given);
  return true;
}

async function ask(path, options = {}) {
  const sent = token();
  const headers = new Headers(options.headers);
  if (sent !== null) headers.set("Authorization", `Bearer ${sent}`);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Check that it is running and that you are online.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401 && (await renewToken(sent))) return ask(path, options);
  const sentence = await answer
    .json()
    .then((body) => body.error.message)
    .catch(() => null);
  throw new Problem(sentence || SENTENCES[answer.status] || `The server answered with status ${answer.status}.`, {
    status: answer.status,
    waitS: Number(answer.headers.get("Retry-After")) || 0,
  });
}

async function askForJson(path, options) {
  const answer = await ask(path, options);
  return answer.text().then(json.parse).catch(() => {
    throw new Problem("The server's response is incomplete. Try again.");
  });
}

export const catalog = () => askForJson("api/catalog", { cache: "no-store" });

export const search = (body, signal) =>
  askForJson("api/search", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: json.stringify(body),
    signal,
  });

export function searchByImage(file, options, signal) {
  const form = new FormData();
  form.append("image", file, file.name || "image");
  form.append("options", json.stringify(options));
  return askForJson("api/search/image", { method: "POST", body: form, signal });
}

export const asset = (kind, id, signal) =>
  askForJson(`api/assets/${encodeURIComponent(kind)}?${new URLSearchParams({ id })}`, { signal });

/** Resolves when an element comes close to the visible part of the page. */
function near(element) {
  return new Promise((resolve) => {
    const watch = new IntersectionObserver(
      (entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        watch.disconnect();
        resolve();
      },
      { rootMargin: "600px" },
    );
    watch.observe(element);
  });
}

/** Shows a thumbnail in an <img>. With a token it is fetched, because an <img> cannot send the header. */
export async function showThumbnail(image, path, signal) {
  const address = path.replace(/^.*?\/(?=api\/thumbnails\/)/, ""); // relative to the page, because the server may not know its public path
  if (token() === null) {
    image.src = address;
    return;
  }
  try {
    if (image.loading === "lazy") await near(image);
    const answer = await ask(address, { signal });
    const url = URL.createObjectURL(await answer.blob());
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch (error) {
    if (error.name !== "AbortError") image.dispatchEvent(new Event("error"));
  }
}
