// Running sums of bytes over time, drawn by uPlot from the same JSON that /api/savings gives to everybody.
"use strict";
(() => {
  const HEIGHT = 280;
  let plot = null;

  const size = (bytes) => {
    if (bytes === null || bytes === undefined) return "–";
    let value = bytes;
    let unit = "B";
    for (const next of ["kB", "MB", "GB", "TB", "PB"]) {
      if (value < 999.5) break;
      value /= 1000;
      unit = next;
    }
    if (unit === "B") return `${value} B`;
    return `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)} ${unit}`;
  };

  const two = (number) => String(number).padStart(2, "0");
  const day = (at) => `${at.getUTCFullYear()}-${two(at.getUTCMonth() + 1)}-${two(at.getUTCDate())}`;
  const time = (at) => `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}`;
  const moment = (seconds) => {
    const at = new Date(seconds * 1000);
    return `${day(at)} ${time(at)}`;
  };

  // Below the axis: the time of day, and the date under the first tick of each day.
  const ticks = (_, places, __, ___, step_s) => {
    let shown = "";
    return places.map((seconds) => {
      const at = new Date(seconds * 1000);
      const date = day(at);
      const first = date !== shown;
      shown = date;
      if (step_s >= 86400) return date.slice(5);
      const clock = step_s < 60 ? `${time(at)}:${two(at.getUTCSeconds())}` : time(at);
      return first ? `${clock}\n${date.slice(5)}` : clock;
    });
  };

  // Without a cursor the legend tells the latest sums.
  const tellLatest = (chart) => chart.setLegend({ idx: chart.data[0].length - 1 });

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const draw = async () => {
    const place = document.getElementById("chart");
    if (!place) return;
    const answer = await fetch(place.dataset.source, { headers: { Accept: "application/json" } });
    if (!answer.ok) return;
    const { series } = await answer.json();
    const axis = {
      stroke: colour("--text-soft"),
      font: "12px Inter, system-ui, sans-serif",
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1 },
    };
    const line = (label, name, extra = {}) => ({
      label,
      stroke: colour(name),
      width: 2,
      points: { show: false },
      paths: uPlot.paths.stepped({ align: 1 }),
      value: (_, value) => size(value),
      ...extra,
    });
    const options = {
      width: place.clientWidth,
      height: HEIGHT,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      cursor: { points: { size: 8 } },
      hooks: { ready: [tellLatest], setCursor: [(chart) => chart.cursor.idx ?? tellLatest(chart)] },
      scales: { y: { range: (_, low, high) => [0, high * 1.08 || 1] } },
      axes: [
        { ...axis, space: 80, values: ticks },
        { ...axis, size: 72, values: (_, values) => values.map(size) },
      ],
      series: [
        { label: "UTC", value: (_, value) => (value ? moment(value) : "–") },
        line("Plain downloads", "--chart-plain", { dash: [6, 4], fill: colour("--chart-saved") }),
        line("LAN", "--chart-lan", { dash: [2, 3] }),
        line("WAN", "--chart-wan", { width: 2.5, fill: colour("--chart-wan-fill") }),
      ],
    };
    const data = [series.at_s, series.plain, series.lan_in, series.wan];
    plot?.destroy();
    place.replaceChildren();
    plot = new uPlot(options, data, place);
  };

  document.addEventListener("DOMContentLoaded", draw);
  document.addEventListener("pcm:refreshed", draw);
  document.addEventListener("pcm:theme", () => plot && draw());
  let waiting = null;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const place = document.getElementById("chart");
      if (plot && place) plot.setSize({ width: place.clientWidth, height: HEIGHT });
    }, 100);
  });
})();
