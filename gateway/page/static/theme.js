// Light or dark, before the first paint: a saved choice comes before that of the system.
"use strict";
(() => {
  const saved = localStorage.getItem("headgate-theme");
  if (saved === "light" || saved === "dark") document.documentElement.dataset.theme = saved;
})();
