// The server's API. Addresses are relative to the page, so that a proxy may put both below a path of its own.

import * as json from "./json.js";

const TOKEN = "epithre-beam-token";

/** What went wrong, as a sentence for a person; the status is 0 where the server gave no answer. */
export class Problem extends Error {
  constructor(sentence, { status = 0, waitS = 0 } = {}) {
    super(sentence);
    this.status = status;
    this.waitS = waitS;
  }
}

const SENTENCES = {
  401: "This server needs its token.",
  404: "The catalog in force has no such asset.",
  413: "This is more than the server takes at once.",
  429: "This server is asked too often at the moment.",
  503: "The server is busy or not ready.",
};

let askForToken = async () => null;
let asking = null;

/** Says how a person is asked for the token: a function of "was refused" that resolves to it, or to null. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

const token = () => sessionStorage.getItem(TOKEN);

/** Many requests may learn at once that a token is needed; the person is asked once. */
async function renewToken(refused) {
  if (token() !== refused) return true; // renewed since this request left
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
    throw new Problem("The server does not answer: look whether it runs, and whether you are online.");
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
    throw new Problem("The server's answer broke off: try again.");
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

/** Resolves when an element comes near the part of the page that is seen. */
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

/** Puts a thumbnail into an <img>. With a token it has to be fetched, since an <img> sends no header. */
export async function showThumbnail(image, path, signal) {
  const address = path.replace(/^.*?\/(?=api\/thumbnails\/)/, ""); // as the page itself is reached, whatever the server knows of that
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
