// The strip of an answer's tokens: one chip each, shaded by its probability.
//
// One chip of a strip is in the tab order; arrow keys go on from there, as in a toolbar.

import { el, percent, visible } from "./dom.js";

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export class Strip {
  /** `panel` shows the token pointed at. */
  constructor(panel) {
    this.panel = panel;
    this.tokens = [];
    this.element = el("div", { className: "strip", role: "toolbar", "aria-label": "Tokens" });
    this.element.addEventListener("mouseover", (event) => this.#hover(event));
    this.element.addEventListener("focusin", (event) => this.#focus(event));
    this.element.addEventListener("click", (event) => this.#click(event));
    this.element.addEventListener("keydown", (event) => this.#key(event));
  }

  add(token) {
    const chip = el("button", {
      type: "button",
      className: "chip",
      textContent: visible(token.text),
      tabIndex: this.tokens.length ? -1 : 0,
      "aria-label": `${visible(token.text)}, ${percent(token.probability)}`,
      "aria-pressed": "false",
    });
    chip.style.setProperty("--probability", token.probability);
    this.tokens.push(token);
    this.element.append(chip);
  }

  #show(chip, keep) {
    const at = [...this.element.children].indexOf(chip);
    if (at >= 0) this.panel.show(this.tokens[at], { at, of: this.tokens.length, chip, keep });
  }

  #hover(event) {
    const chip = event.target.closest(".chip");
    if (chip && !this.panel.kept) this.#show(chip, false);
  }

  #focus(event) {
    for (const chip of this.element.children) chip.tabIndex = chip === event.target ? 0 : -1;
    // Focus by mouse comes with a click, which says more.
    if (event.target.matches(":focus-visible")) this.#show(event.target, true);
  }

  #click(event) {
    const chip = event.target.closest(".chip");
    if (!chip) return;
    if (this.panel.kept === chip) this.panel.release();
    else this.#show(chip, true);
  }

  #key(event) {
    const chips = [...this.element.children];
    const at = chips.indexOf(event.target);
    const to = { Home: 0, End: chips.length - 1 }[event.key] ?? at + (STEPS[event.key] ?? NaN);
    if (at < 0 || !chips[to]) return;
    event.preventDefault();
    chips[to].focus();
    this.#show(chips[to], true);
  }
}
