/* Light or dark, as chosen last: set before anything is drawn, so that nothing flashes. No module, for these wait. */
"use strict";
try {
  const chosen = localStorage.getItem("dllama-zmq.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // no storage: as the system has it
}
