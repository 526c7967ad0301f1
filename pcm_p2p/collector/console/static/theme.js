// Colours: as the system, light or dark. Runs before the first paint, so that nothing flashes.
"use strict";
(() => {
  const themes = { system: "System", light: "Light", dark: "Dark" };
  const root = document.documentElement;
  const read = () => {
    try {
      const kept = localStorage.getItem("pcm-theme");
      return kept in themes ? kept : "system";
    } catch {
      return "system";
    }
  };
  const show = (theme) => {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      button.setAttribute("aria-label", `Colours: ${themes[theme].toLowerCase()}. Press to change.`);
      document.getElementById("theme-text").textContent = themes[theme];
    }
    document.dispatchEvent(new CustomEvent("pcm:theme"));
  };
  show(read());
  document.addEventListener("DOMContentLoaded", () => {
    show(read());
    document.getElementById("theme")?.addEventListener("click", () => {
      const names = Object.keys(themes);
      const next = names[(names.indexOf(read()) + 1) % names.length];
      try {
        localStorage.setItem("pcm-theme", next);
      } catch {
        // A browser that keeps nothing still changes this page.
      }
      show(next);
    });
  });
})();
