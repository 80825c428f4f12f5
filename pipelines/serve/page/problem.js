// What went wrong, in a sentence, and the way to try again.

import { Problem } from "./api.js";
import { find } from "./dom.js";

let countdown = 0;

/** Shows a sentence for what went wrong, with its wait; null takes it away. */
export function showProblem(error) {
  clearInterval(countdown);
  find("problem").hidden = error === null;
  if (error === null) return;
  if (!(error instanceof Problem)) console.error(error); // a defect of this page
  const sentence = error instanceof Problem ? error.message : "The page failed at this: reload it.";
  find("problem-words").textContent = sentence;
  const again = find("problem-again");
  let waitS = Math.ceil(error.waitS ?? 0);
  const tell = () => {
    again.disabled = waitS > 0;
    again.textContent = waitS > 0 ? `Try again in ${waitS} s` : "Try again";
    if (waitS <= 0) clearInterval(countdown);
    waitS -= 1;
  };
  tell();
  countdown = setInterval(tell, 1000);
  again.hidden = ![0, 401, 408, 429].includes(error.status) && error.status < 500;
}
