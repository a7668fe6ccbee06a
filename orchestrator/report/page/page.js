"use strict";
// Draws the figures of the page, marks a trial in all of them, and sorts and filters the table of trials.
const sections = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const canHover = window.matchMedia("(hover: hover)").matches;
const picker = document.getElementById("trial");
const memory = (() => { try { return window.sessionStorage; } catch { return { getItem: () => null, setItem: () => {} }; } })();
const state = JSON.parse(memory.getItem("report" + location.pathname) || "{}"); // what a person chose, kept over a reload
const plots = []; // divs that are drawn
const remember = (name, value) => {
  state[name] = value;
  memory.setItem("report" + location.pathname, JSON.stringify(state));
};
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The page's colours as plotly takes them.
function theme(layout) {
  const grid = { gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
  const themed = {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, ...layout.legend },
    autosize: true,
    dragmode: canHover ? "zoom" : false, // a finger that drags scrolls the page
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--ink") },
    annotations: (layout.annotations || []).map((one) => (one.name === "on page" ? { ...one, bgcolor: colour("--card") } : one)),
  };
  for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name)) themed[name] = { ...grid, ...layout[name] };
  return themed;
}

// What is drawn above a figure for the trial that is marked: its points, gathered by their `customdata`.
function overlay(figure, number) {
  const x = [], y = [];
  for (const trace of figure.full) {
    const which = trace.customdata;
    if (!which || trace.type !== "scatter") continue;
    for (let place = 0; place < which.length; place++)
      if (which[place] === number) { x.push(trace.x[place]); y.push(trace.y[place]); }
    if (x.length) { x.push(null); y.push(null); }
  }
  const lines = (figure.layout.meta || {}).overlay === "lines" || x.length > 8;
  return {
    x, y, type: "scatter", mode: lines ? "lines+markers" : "markers", hoverinfo: "skip", showlegend: false,
    line: { color: colour("--ink"), width: 3 },
    marker: { color: colour("--ink"), size: lines ? 5 : 12, symbol: lines ? "circle" : "circle-open", line: { width: 3, color: colour("--ink") } },
  };
}

function draw(div) {
  const figure = div.figure;
  const marked = picker.value === "" ? [] : [overlay(figure, Number(picker.value))];
  // Plotly's own list has a button that uploads the figure to its makers.
  const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  const settings = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", modeBarButtons: buttons, displayModeBar: canHover ? "hover" : false };
  return Plotly.react(div, [...figure.data, ...(figure.full ? marked : [])], theme(figure.layout), settings).then(() => {
    if (figure.full) return;
    figure.full = div._fullData.map((trace) => ({ type: trace.type, x: trace.x, y: trace.y, customdata: trace.customdata }));
    div.dataset.drawn = "yes";
    plots.push(div);
    div.on("plotly_click", (event) => {
      const number = event.points.map((point) => point.customdata).find((one) => one !== undefined);
      if (number !== undefined) mark(number);
    });
    if (picker.value !== "") draw(div);
  });
}

// Figures are drawn when they come near the window, the others while the browser is idle.
const waiting = new Set();
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) begin(entry.target);
}, { rootMargin: "400px" });
function begin(div) {
  near.unobserve(div);
  if (waiting.delete(div)) draw(div);
}
const idle = window.requestIdleCallback ? (work) => requestIdleCallback(work, { timeout: 300 }) : (work) => setTimeout(work, 30);
function drawRest() {
  const next = waiting.values().next().value;
  if (!next) { document.body.dataset.drawn = "yes"; return; }
  begin(next);
  idle(drawRest);
}

function show(name, choice) {
  const place = document.querySelector("#" + name + " .figures");
  for (const old of place.querySelectorAll(".figure")) {
    near.unobserve(old); waiting.delete(old); Plotly.purge(old);
    if (plots.includes(old)) plots.splice(plots.indexOf(old), 1);
  }
  place.replaceChildren();
  const figures = sections[name][choice];
  const metas = figures.map((figure) => figure.layout.meta || {});
  place.classList.toggle("narrow", figures.length > 1 && metas.every((meta) => meta.narrow));
  place.classList.toggle("many", figures.length > 1 && !metas.every((meta) => meta.narrow));
  figures.forEach((figure, number) => {
    const scroll = document.createElement("div"), div = document.createElement("div");
    scroll.className = "scroll";
    div.className = "figure";
    if (metas[number].minWidth) { div.style.minWidth = metas[number].minWidth + "px"; scroll.tabIndex = 0; }
    div.style.height = figure.layout.height + "px";
    div.figure = { data: figure.data, layout: figure.layout };
    scroll.append(div);
    if (metas[number].title) {
      const block = document.createElement("div"), title = document.createElement("h3");
      title.textContent = metas[number].title;
      block.append(title, scroll);
      place.append(block);
    } else place.append(scroll);
    waiting.add(div);
    near.observe(div);
  });
  if (document.body.dataset.drawn) idle(drawRest);
}

for (const name of Object.keys(sections)) {
  const choices = Object.keys(sections[name]);
  const select = document.querySelector("#" + name + " .choice select");
  let chosen = choices[0];
  if (select) {
    if (choices.includes(state[name])) chosen = state[name];
    select.value = chosen;
    select.addEventListener("change", () => { remember(name, select.value); show(name, select.value); });
  }
  show(name, chosen);
}
idle(drawRest);
dark.addEventListener("change", () => plots.forEach(draw));

// The trial that is marked.
function mark(number) {
  picker.value = picker.value === String(number) ? "" : String(number);
  marked();
}
function marked() {
  remember("trial", picker.value);
  for (const row of document.querySelectorAll("#trials tbody tr")) row.classList.toggle("marked", picker.value !== "" && row.dataset.trial === picker.value);
  plots.forEach(draw);
}
picker.addEventListener("change", marked);

// The table of trials.
const table = document.querySelector("#trials table");
if (table) {
  const body = table.tBodies[0], rows = [...body.rows];
  const search = document.getElementById("search"), status = document.getElementById("status"), count = document.getElementById("count");
  const value = (row, place) => row.cells[place].dataset.value ?? row.cells[place].textContent;
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let number = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || (status.value !== "" && row.dataset.status !== status.value);
      number += !row.hidden;
    }
    count.textContent = number + " of " + rows.length + " trials";
  };
  search.addEventListener("input", filter);
  status.addEventListener("change", filter);
  filter();
  [...table.tHead.rows[0].cells].forEach((head, place) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (first, second) => {
      const [a, b] = [value(first, place), value(second, place)];
      if (a === "" || b === "") return (a === "") - (b === ""); // what is missing stays below
      const difference = Number.isNaN(Number(a)) || Number.isNaN(Number(b)) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
      return down ? -difference : difference;
    };
    body.append(...rows.sort(order));
  }));
  body.addEventListener("click", (event) => { if (!event.target.closest("a")) mark(event.target.closest("tr").dataset.trial); });
  body.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.matches("tr")) mark(event.target.dataset.trial); });
}
if (state.trial && [...picker.options].some((option) => option.value === state.trial)) { picker.value = state.trial; marked(); }

// A sweep that runs: its report is written again, and the page follows.
const seconds = Number(document.body.dataset.refresh);
if (seconds) setTimeout(() => location.reload(), 1000 * seconds);
