// What is known about one token: its probability, what else was likely, who computed it.

import { el, percent, visible } from "./dom.js";
import { expertGrid, expertTable } from "./experts.js";

export class Panel {
  constructor(element) {
    this.element = element;
    this.hint = element.firstElementChild;
    this.kept = null; // the chip clicked or reached by keys: pointing at others changes nothing
    this.model = null;
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.clear();
    });
  }

  show(token, { at, of, chip, keep }) {
    this.release();
    if (keep) {
      this.kept = chip;
      chip.setAttribute("aria-pressed", "true");
    }
    this.element.classList.add("shown");
    this.element.replaceChildren(
      el("button", { type: "button", className: "close", textContent: "Close", onclick: () => this.clear() }),
      el("h2", {}, el("q", { className: "token", textContent: visible(token.text) })),
      el("dl", { className: "facts" }, ...facts(token, at, of)),
      el("h3", { textContent: "What it was drawn from" }),
      likeliest(token),
      ...this.#experts(token),
    );
  }

  /** Lets pointing at other tokens change what is shown. */
  release() {
    this.kept?.setAttribute("aria-pressed", "false");
    this.kept = null;
  }

  clear() {
    this.release();
    this.element.classList.remove("shown");
    this.element.replaceChildren(this.hint);
  }

  #experts(token) {
    if (!token.experts || !this.model) return [];
    return [
      el("h3", { textContent: "Who computed it" }),
      expertGrid(token.experts, this.model),
      expertTable(token.experts),
    ];
  }
}

function facts(token, at, of) {
  const pairs = [
    ["id", String(token.id)],
    ["probability", percent(token.probability)],
    ["place", `${at + 1} of ${of}`],
  ];
  return pairs.map(([name, value]) =>
    el("div", {}, el("dt", { textContent: name }), el("dd", { className: name, textContent: value })),
  );
}

/** The likeliest tokens as bars; the chosen one is marked, and added where it is not among them. */
function likeliest(token) {
  const rows = token.top.map((one) => bar(one, one.id === token.id));
  if (!token.top.some((one) => one.id === token.id)) rows.push(bar(token, true));
  return el("ol", { className: "likeliest" }, ...rows);
}

function bar({ id, text, probability }, chosen) {
  const fill = el("span", { className: "fill" });
  fill.style.inlineSize = `${100 * probability}%`;
  return el(
    "li",
    { className: chosen ? "chosen" : "", title: `id ${id}` },
    el("span", { className: "token", textContent: visible(text) }),
    el("span", { className: "bar" }, fill),
    el("span", { className: "figure", textContent: percent(probability) }),
  );
}
