// The button for light and dark colours; theme.js restores the choice.

import { find } from "./dom.js";

export function listenForColours() {
  const root = document.documentElement;
  const wished = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (wished.matches ? "dark" : "light")) === "dark";
  const update = () => find("theme-button").setAttribute("aria-pressed", isDark());
  find("theme-button").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("epithre-beam-theme", root.dataset.theme);
    update();
  });
  wished.addEventListener("change", update);
  update();
}
