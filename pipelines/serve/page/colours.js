// The button for light and dark colours; theme.js brings the choice back.

import { find } from "./dom.js";

export function listenForColours() {
  const root = document.documentElement;
  const wished = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (wished.matches ? "dark" : "light")) === "dark";
  const tell = () => find("theme-button").setAttribute("aria-pressed", isDark());
  find("theme-button").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("epithre-beam-theme", root.dataset.theme);
    tell();
  });
  wished.addEventListener("change", tell);
  tell();
}
