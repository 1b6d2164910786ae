// Chosen experts of one forward pass: a grid of layers by experts, and the same as a table.

import { el, svg } from "./dom.js";

const WIDTH = 340; // of the drawing, which is then scaled to its place
const LEFT = 22; // for the numbers of layers
const TOP = 14; // for the numbers of experts
const PALEST = 0.3;

/** `experts`: for each sparse layer [[expert, weight], …]; `model` has the sizes. */
export function expertGrid(experts, model) {
  const { num_hidden_layers: layers, num_experts: count } = model;
  const row = layers <= 16 ? 16 : 9;
  const height = TOP + layers * row;
  const column = (WIDTH - LEFT) / count;
  const most = Math.max(...Object.values(experts).flat().map(([, weight]) => weight));
  const drawing = svg("svg", {
    class: "experts",
    viewBox: `0 0 ${WIDTH} ${height}`,
    role: "img",
    "aria-label": `Chosen experts of ${layers} layers; the table below has the same`,
  });
  for (let layer = 0; layer < layers; layer++) {
    const y = TOP + layer * row;
    drawing.append(background(y, row, layer in experts));
    if (layer % (layers <= 16 ? 1 : 5) === 0) drawing.append(label(layer, LEFT - 4, y + row - 2, "end"));
    for (const [expert, weight] of experts[layer] ?? []) {
      drawing.append(cell(LEFT + expert * column, y, column, row, { layer, expert, weight, most }));
    }
  }
  drawing.append(...rulers(count, column, height));
  const caption = `${count} experts across, ${layers} layers down; the strongest has ${most.toFixed(3)} of its layer's weight.`;
  const dense = Object.keys(experts).length < layers ? " A dashed layer has no experts." : "";
  return el("figure", {}, drawing, el("figcaption", { textContent: caption + dense }));
}

function background(y, row, sparse) {
  const place = { x: LEFT, y: y + 0.5, width: WIDTH - LEFT, height: row - 1 };
  const kind = { class: sparse ? "layer" : "layer dense" };
  if (sparse) return svg("rect", { ...place, ...kind });
  const middle = y + row / 2;
  return svg("path", { ...kind, d: `M${LEFT} ${middle}H${WIDTH}` });
}

function cell(x, y, column, row, { layer, expert, weight, most }) {
  const name = `layer ${layer}, expert ${expert}: ${weight.toFixed(3)}`;
  return svg(
    "rect",
    {
      class: "chosen", x, y: y + 0.5, height: row - 1,
      width: Math.max(column, 1.5), // of 256 columns each would be hard to see
      "fill-opacity": PALEST + ((1 - PALEST) * weight) / most,
    },
    svg("title", {}, name),
  );
}

/** Lines between experts, with numbers: each of 16, every 32nd of 256. */
function rulers(count, column, height) {
  const step = count <= 32 ? 1 : count / 8;
  const named = count <= 32 ? Math.ceil(count / 8) : step;
  const found = [];
  for (let expert = 0; expert < count; expert += step) {
    const x = LEFT + expert * column;
    if (expert > 0) found.push(svg("path", { class: "ruler", d: `M${x} ${TOP}V${height}` }));
    if (expert % named === 0) found.push(label(expert, x + Math.min(column, 14) / 2, TOP - 4, "middle"));
  }
  return found;
}

function label(text, x, y, anchor) {
  return svg("text", { x, y, "text-anchor": anchor }, String(text));
}

export function expertTable(experts) {
  const rows = Object.entries(experts).map(([layer, chosen]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row", textContent: layer }),
      el("td", { textContent: chosen.map(([id, weight]) => `${id} (${weight.toFixed(3)})`).join(", ") }),
    ),
  );
  const head = el("tr", {}, el("th", { textContent: "layer" }), el("th", { textContent: "experts (weights)" }));
  return el(
    "details",
    { className: "expert-table" },
    el("summary", { textContent: "As a table" }),
    el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)),
  );
}
