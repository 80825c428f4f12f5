// Runs before the style sheet and is not a module, so that the chosen theme applies to the first paint.
{
  const chosen = localStorage.getItem("epithre-beam-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
