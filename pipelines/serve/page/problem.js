// Shows an error, with a button to try again.

import { Problem } from "./api.js";
import { find } from "./dom.js";

let countdown = 0;

/** Shows an error, with a countdown if the server asks to wait; null hides it. */
export function showProblem(error) {
  clearInterval(countdown);
  find("problem").hidden = error === null;
  if (error === null) return;
  if (!(error instanceof Problem)) console.error(error); // a defect of this page
  const sentence = error instanceof Problem ? error.message : "The page failed unexpectedly. Reload it.";
  find("problem-words").textContent = sentence;
  const again = find("problem-again");
  let waitS = Math.ceil(error.waitS ?? 0);
  const update = () => {
    again.disabled = waitS > 0;
    again.textContent = waitS > 0 ? `Try again in ${waitS} s` : "Try again";
    if (waitS <= 0) clearInterval(countdown);
    waitS -= 1;
  };
  update();
  countdown = setInterval(update, 1000);
  again.hidden = ![0, 401, 408, 429].includes(error.status) && error.status < 500;
}
