"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);
  const name = () => (button.textContent = isDark() ? "Light" : "Dark");
  if (location.hash === "#dark" || location.hash === "#light") {
    root.dataset.theme = location.hash.slice(1);
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  wantsDark.addEventListener("change", name);
  name();
})();
