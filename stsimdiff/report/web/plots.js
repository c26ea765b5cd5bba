// The interactive plots, of the rows that the filter leaves.
"use strict";
{
  const { plots } = data;
  const places = [...document.querySelectorAll(".plot")];
  const kind = document.getElementById("plot-kind");
  const narrow = matchMedia("(max-width: 50rem)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const greek = (text) => text.replace(/\btau(?=[_=])/g, "τ");
  // Plotly reads a small part of HTML in names.
  const plain = (text) => greek(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const known = (value) => value !== null && value !== undefined;

  function byLabel(rows) {
    const found = new Map();
    for (const row of rows) found.set(row.label, [...(found.get(row.label) || []), row]);
    return found;
  }

  function look(row) {
    const { colour: paint, symbol, dash } = row.look;
    return {
      line: { color: paint, width: 1.5, dash },
      marker: { color: paint, symbol, size: symbol === "star" ? 12 : 9, line: { color: paint, width: 2 } },
    };
  }

  function accuracyTraces(plot, rows, cost) {
    const labels = byLabel(rows.filter((row) => known(row.overall) && known(row.cost[cost])));
    const traces = [...labels].map(([label, members]) => {
      members = [...members].sort((a, b) => a.cost[cost] - b.cost[cost]);
      return {
        type: "scatter", mode: "lines+markers", name: plain(label), ...look(members[0]),
        x: members.map((row) => row.cost[cost]), y: members.map((row) => row.overall),
        text: members.map((row) => `${(100 * row.retention).toPrecision(3)} % budget`),
        hovertemplate: "%{y:.1f} % at %{x:.1f}<br>%{text}<extra>%{fullData.name}</extra>",
        error_y: {
          type: "data", symmetric: false, thickness: 1, width: 3,
          array: members.map((row) => (known(row.high) ? row.high - row.overall : 0)),
          arrayminus: members.map((row) => (known(row.low) ? row.overall - row.low : 0)),
        },
        // It stands far below everything else; one click in the legend shows it.
        visible: members[0].method === "no_video" ? "legendonly" : true,
      };
    });
    const front = plot.front[cost];
    traces.push({
      type: "scatter", mode: "lines", name: "Pareto front", x: front.map((p) => p[0]), y: front.map((p) => p[1]),
      line: { color: colour("--soft"), width: 1.2, dash: "dot", shape: "hv" }, hoverinfo: "skip",
    });
    return traces;
  }

  function layerTraces(rows) {
    return rows.filter((row) => row.layers).map((row) => ({
      type: "scatter", mode: "lines+markers", ...look(row),
      name: plain(`${row.label} ${(100 * row.retention).toPrecision(3)} %`),
      x: row.layers.map((_, layer) => layer), y: row.layers,
      hovertemplate: "layer %{x}: %{y:.1f} %<extra>%{fullData.name}</extra>",
    }));
  }

  function mapTraces(plot) {
    return plot.maps.map((map, number) => ({
      type: "heatmap", x: map.x, y: map.y, z: map.z, colorscale: "Cividis", coloraxis: "coloraxis",
      texttemplate: "%{z:.1f}", xaxis: `x${number + 1}`, yaxis: `y${number + 1}`,
      hovertemplate: `${plain(map.names[0])} %{x}, ${plain(map.names[1])} %{y}: %{z:.1f} %<extra></extra>`,
    }));
  }

  function layout(plot, shown) {
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), size: 13 },
      margin: { l: 55, r: 15, t: 25, b: 50 }, dragmode: narrow.matches ? false : "zoom", hovermode: "closest",
      legend: narrow.matches ? { orientation: "h", y: -0.22, font: { size: 11 } } : {},
      xaxis: { ...axis, title: { text: "" } }, yaxis: { ...axis, title: { text: "" } },
    };
    if (shown === "maps") {
      const count = Math.max(1, plot.maps.length);
      const columns = narrow.matches ? 1 : Math.min(3, count);
      base.grid = { rows: Math.ceil(count / columns), columns, pattern: "independent", xgap: 0.2, ygap: 0.35 };
      base.coloraxis = { colorscale: "Cividis", colorbar: { title: { text: "accuracy, %" } } };
      plot.maps.forEach((map, number) => {
        const id = number ? number + 1 : "";
        base[`xaxis${id}`] = { ...axis, type: "category", title: { text: plain(`${map.names[0]} · ${map.title}`) } };
        base[`yaxis${id}`] = { ...axis, type: "category", title: { text: plain(map.names[1]) } };
      });
      return base;
    }
    const layers = shown === "layers";
    base.xaxis.title.text = layers ? "decoder layer" : kind.selectedOptions[0].textContent.replace(/^accuracy against /, "");
    base.yaxis.title.text = layers ? "video tokens entering, %" : "accuracy, %";
    if (layers) base.yaxis.rangemode = "tozero";
    return base;
  }

  // The library is large, and few read on as far as the plots at once: it is unpacked for the first that is seen.
  let library = null;
  function load() {
    library = library || inflate(document.getElementById("plotly").textContent).then((source) => {
      const script = document.createElement("script");
      script.textContent = new TextDecoder().decode(source);
      document.head.append(script);
    });
    return library;
  }

  async function draw() {
    if (!seen.size) return;
    await load();
    const shown = kind.value;
    plots.forEach((plot, number) => {
      if (!seen.has(places[number])) return;
      const rows = plot.rows.filter((row) => filter.shown.has(row.arm));
      const traces = shown === "maps" ? mapTraces(plot)
        : shown === "layers" ? layerTraces(rows) : accuracyTraces(plot, rows, shown);
      const drawn = traces.filter((trace) => trace.name !== "Pareto front");
      const what = layout(plot, shown);
      if (!drawn.length) {
        what.annotations = [{ text: "nothing to show here", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }];
      }
      places[number].setAttribute("aria-label",
        `Plot: ${plot.title}; ${kind.selectedOptions[0].textContent}; ${drawn.length} lines or maps, their numbers stand in the table`);
      Plotly.react(places[number], traces, what, { responsive: true, displaylogo: false, displayModeBar: false });
    });
  }

  const seen = new Set();
  const watch = new IntersectionObserver((changes) => {
    for (const { target } of changes.filter((change) => change.isIntersecting)) {
      seen.add(target);
      watch.unobserve(target);
      draw();
    }
  }, { rootMargin: "200px" });
  places.forEach((place) => watch.observe(place));

  if (plots.every((plot) => !plot.maps.length)) kind.querySelector("[value=maps]").remove();
  kind.addEventListener("change", draw);
  document.addEventListener("filtered", draw);
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
}
