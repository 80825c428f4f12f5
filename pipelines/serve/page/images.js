// Pictures that are chosen, pasted or dropped.

import { Problem } from "./api.js";
import { find } from "./dom.js";
import { showProblem } from "./problem.js";

/** Hands every picture's file to `take`. */
export function listen(take) {
  find("choose").addEventListener("click", () => find("file").click());
  find("file").addEventListener("change", ({ target }) => {
    if (target.files.length) take(target.files[0]);
    target.value = ""; // the same file may be chosen again
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    take(file);
  });
  const drop = find("drop");
  const carries = (event) => [...event.dataTransfer.types].some((type) => type === "Files" || type === "text/uri-list");
  document.addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    drop.hidden = false;
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && (drop.hidden = true));
  document.addEventListener("drop", (event) => {
    drop.hidden = true;
    if (!carries(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) take(file);
    else {
      const sentence = "Only a picture's file can be dropped here, not its address: save it first.";
      showProblem(new Problem(sentence, { status: 415 }));
    }
  });
}
