// Images that are chosen, pasted or dropped.

import { Problem } from "./api.js";
import { find } from "./dom.js";
import { showProblem } from "./problem.js";

/** Passes each image file to `take`. */
export function listen(take) {
  find("choose").addEventListener("click", () => find("file").click());
  find("file").addEventListener("change", ({ target }) => {
    if (target.files.length) take(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
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
      const sentence = "Only image files can be dropped here, not links. Save the image first, then drop the file.";
      showProblem(new Problem(sentence, { status: 415 }));
    }
  });
}
