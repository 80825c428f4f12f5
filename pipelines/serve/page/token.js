// The dialog that asks for the server's token.

import { find } from "./dom.js";

/** Resolves to the token, or to null. */
export function askForToken(wasRefused) {
  const dialog = find("token");
  const value = find("token-value");
  find("token-title").textContent = wasRefused ? "The token is wrong" : "This server needs a token";
  value.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  find("token-cancel").onclick = () => dialog.close("");
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given" ? value.value.trim() : null), {
      once: true,
    });
  });
}
