// Live pages: when the archive changes, the part of the page below <main> is asked for again and morphed in place.
"use strict";
(() => {
  const REFRESH_MS_MIN = 2000; // a fleet that reports all at once redraws this often, not once a report
  const REFRESH_MS_MAX = 60000; // ages grow and reports become stale without any change of the archive
  const live = document.getElementById("live");
  const text = document.getElementById("live-text");
  let refreshed = Date.now();
  let planned = null;

  const say = (state, words) => {
    live.dataset.state = state;
    text.textContent = words;
  };

  const refresh = async () => {
    planned = null;
    refreshed = Date.now();
    const active = document.activeElement;
    if (document.hidden || (active && active.matches("#page input, #page select"))) {
      plan(REFRESH_MS_MIN);
      return;
    }
    try {
      await htmx.ajax("GET", location.pathname + location.search, { target: "#page", select: "#page", swap: "outerMorph" });
      document.dispatchEvent(new CustomEvent("pcm:refreshed"));
    } catch {
      say("lost", "Not connected");
    }
  };

  const plan = (wait_ms) => {
    planned ??= setTimeout(refresh, wait_ms);
  };

  live.addEventListener("hello", () => say("on", "Live"));
  live.addEventListener("archive", () => {
    say("on", "Live");
    plan(Math.max(0, refreshed + REFRESH_MS_MIN - Date.now()));
  });
  for (const name of ["htmx:sse:error", "htmx:sse:close"]) {
    live.addEventListener(name, () => say("lost", "Not connected"));
  }
  setInterval(() => {
    if (!document.hidden && Date.now() - refreshed >= REFRESH_MS_MAX) plan(0);
  }, 5000);

  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select, textarea")) return;
    const search = document.querySelector("input[type=search]");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  });
})();
