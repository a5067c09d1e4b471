"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // The table of runs: filter by words and by column=value, sort by a heading.
  const table = find("#runs-table");
  const rows = all("tbody tr", table);
  const headings = all("thead th", table);
  const keys = headings.map((heading) => heading.dataset.key.toLowerCase());
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const filter = find("#filter");
  const status = find("#status");
  for (const value of new Set(rows.map((row) => row.dataset.status))) {
    status.add(new Option(value, value));
  }
  const matches = (index, term) => {
    const [key, value] = term.split("=", 2);
    const column = value === undefined ? -1 : keys.indexOf(key);
    if (column < 0) return texts[index].includes(term);
    return rows[index].cells[column].textContent.trim().toLowerCase() === value;
  };
  const applyFilter = () => {
    const terms = filter.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, index) => {
      const keep = (!status.value || row.dataset.status === status.value)
        && terms.every((term) => matches(index, term));
      row.hidden = !keep;
      shown += keep;
    });
    find("#count").textContent = `${shown} of ${rows.length} runs`;
  };
  filter.addEventListener("input", applyFilter);
  status.addEventListener("change", applyFilter);
  applyFilter();

  const valueOf = (cell) => (cell.dataset.v === undefined ? null : Number(cell.dataset.v));
  const sortBy = (column) => {
    const rising = headings[column].getAttribute("aria-sort") !== "ascending";
    headings.forEach((heading) => heading.setAttribute("aria-sort", "none"));
    headings[column].setAttribute("aria-sort", rising ? "ascending" : "descending");
    const numeric = headings[column].classList.contains("number");
    const compare = (one, other) => {
      const [a, b] = [one.cells[column], other.cells[column]];
      if (!numeric) return a.textContent.localeCompare(b.textContent) * (rising ? 1 : -1);
      const [x, y] = [valueOf(a), valueOf(b)];
      // A run without the number stays at the end, whichever way the column is sorted.
      if (x === null || y === null) return (x === null) - (y === null);
      return (x - y) * (rising ? 1 : -1);
    };
    find("tbody", table).append(...[...rows].sort(compare));
  };
  headings.forEach((heading, column) => {
    find("button", heading).addEventListener("click", () => sortBy(column));
  });

  for (const button of all("button.copy")) {
    button.addEventListener("click", async () => {
      const text = find("pre", button.parentElement);
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
      }
    });
  }

  // Interactive charts: the library travels compressed; without it the figures remain.
  const packed = find("#plotly-packed");
  const explore = find("#explore");
  const withoutCharts = () => {
    root.classList.add("without-charts");
    explore.dataset.ready = "without";
  };
  if (!packed) { withoutCharts(); return; }
  const groups = JSON.parse(find("#charts-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const PHASES = {
    data: ["#e69f00", "#e69f00"], h2d: ["#e3cf2a", "#f5e663"], forward: ["#8ecbf0", "#8ecbf0"],
    backward: ["#0b5a8f", "#3b8fd0"], comm_exposed: ["#d55e00", "#f07c26"],
    grad_copy: ["#b0578d", "#cc79a7"], optimizer: ["#2f9c7b", "#3fb893"], other: ["#b0b0b0", "#8a8f94"],
  };
  // Ordered quantities: viridis, the part of it that stands out from the page.
  const RAMPS = [
    ["#440154", "#3b528b", "#21908d", "#35b779", "#6ebf3f"],
    ["#fde725", "#a0da39", "#4ac16d", "#1fa187", "#4f8fc0"],
  ];
  const ramp = (place, of) => {
    const colours = RAMPS[dark.matches ? 1 : 0];
    return colours[of < 2 ? 0 : Math.round((place * (colours.length - 1)) / (of - 1))];
  };
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const colourOf = (meta) => {
    if (meta.phase) return PHASES[meta.phase][dark.matches ? 1 : 0];
    if (meta.absent) return css("--quiet");
    if (meta.memory === "forecast") return css("--quiet");
    if (meta.memory === "did not fit") return PHASES.comm_exposed[dark.matches ? 1 : 0];
    if (meta.memory) return css("--accent");
    return ramp(meta.place, meta.of);
  };
  const themed = (spec) => {
    const data = structuredClone(spec.data);
    const layout = structuredClone(spec.layout);
    for (const trace of data) {
      const colour = colourOf(trace.meta);
      trace.marker = { ...trace.marker, color: colour };
      if (trace.meta.absent) {
        trace.marker.color = "rgba(0,0,0,0)";
        trace.marker.line = { color: colour, width: 1 };
        trace.marker.pattern.fgcolor = colour;
      } else if (trace.marker.pattern) {
        trace.marker.pattern.bgcolor = colour;
        trace.marker.pattern.fgcolor = css("--paper");
      }
      if (trace.line) trace.line.color = colour;
      if (trace.error_y) trace.error_y.color = trace.type === "bar" ? css("--ink") : colour;
    }
    const axis = { gridcolor: css("--line"), linecolor: css("--quiet"), zeroline: false,
      automargin: true };
    for (const name of ["xaxis", "yaxis", "yaxis2"]) {
      if (layout[name]) layout[name] = { ...axis, ...layout[name] };
    }
    layout.xaxis.showgrid = false;
    for (const note of layout.annotations || []) {
      note.font = { size: 11, color: css("--ink") };
      if (note.yref === "y2") note.bgcolor = css("--paper");
    }
    return { data, layout: { ...layout, font: { color: css("--ink"), family: "inherit", size: 13 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
      margin: { t: 16, r: 8, b: 40, l: 56, ...layout.margin },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      hoverlabel: { align: "left", bgcolor: css("--card"), bordercolor: css("--quiet"),
        font: { color: css("--ink"), size: 12 } } } };
  };
  const draw = () => {
    const chosen = Number(find("#group").value) || 0;
    const group = groups[chosen];
    for (const figure of all(".chart")) {
      const spec = group.charts[figure.dataset.chart];
      const plot = find(".plot", figure);
      figure.hidden = !spec;
      if (!spec) continue;
      const { data, layout } = themed(spec);
      const place = `[data-for="${figure.dataset.chart}"][data-group="${chosen}"]`;
      const summary = find(`#chart-summaries ${place}`);
      const caption = find("figcaption span", figure).textContent;
      plot.setAttribute("aria-label", `${caption}. ${summary ? summary.textContent : ""}`);
      window.Plotly.react(plot, data, layout, { displayModeBar: false, responsive: true });
    }
    explore.dataset.ready = "yes";
  };
  const start = async () => {
    const bytes = Uint8Array.from(atob(packed.textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("plotly did not start");
    find("#group").addEventListener("change", draw);
    dark.addEventListener("change", draw);
    draw();
  };
  start().catch(withoutCharts);
})();
