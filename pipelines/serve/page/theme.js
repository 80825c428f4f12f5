// Stands before the style sheet and is not a module, so that a chosen theme is there before the first paint.
{
  const chosen = localStorage.getItem("epithre-beam-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
