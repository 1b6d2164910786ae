// One answer as it grows: what is shown, and the message that goes back with the next request.

import { el } from "./dom.js";
import { Strip } from "./tokens.js";

export class Answer {
  constructor(panel) {
    this.reasoning = "";
    this.content = "";
    this.calls = [];
    this.strip = new Strip(panel);
    this.body = el("div", { className: "said" });
    this.notes = el("p", { className: "notes" });
    const fold = el(
      "details",
      { className: "tokens", open: true },
      el("summary", { textContent: "Tokens" }),
      this.strip.element,
    );
    this.element = el("li", { className: "assistant", "aria-busy": "true" }, this.body, fold, this.notes);
  }

  /** Takes in one choice of a chunk. */
  take({ delta, laguna, finish_reason: finish }) {
    if (delta.reasoning_content) this.#think(delta.reasoning_content);
    if (delta.content) this.#say(delta.content);
    for (const part of delta.tool_calls ?? []) this.#call(part);
    for (const token of laguna?.tokens ?? []) this.strip.add(token);
    for (const problem of laguna?.problems ?? []) this.note(problem, "problem");
    if (finish) this.finish = finish;
  }

  #think(text) {
    this.reasoning += text;
    if (!this.thought) {
      this.thought = el("div", { className: "text" });
      const head = el("summary", { textContent: "Thinking" });
      this.body.prepend(el("details", { className: "thinking", open: true }, head, this.thought));
    }
    this.thought.textContent = this.reasoning.trim();
  }

  #say(text) {
    this.content += text;
    if (!this.spoken) {
      this.spoken = el("div", { className: "text content" });
      this.body.append(this.spoken);
    }
    this.spoken.textContent = this.content.trim();
  }

  #call({ index, id, function: { name, arguments: text } }) {
    if (!this.calls[index]) {
      const code = el("code");
      const box = el("section", { className: "call" }, el("h3", { textContent: name }), el("pre", {}, code));
      this.calls[index] = { id, name, arguments: "", code, box };
      this.body.append(box);
    }
    const call = this.calls[index];
    call.arguments += text;
    call.code.textContent = call.arguments;
  }

  note(text, kind = "") {
    this.notes.append(el("span", { className: kind, textContent: text }));
  }

  /** Nothing more comes; calls that were cut short are not sent back, so they are marked. */
  end() {
    this.element.removeAttribute("aria-busy");
    this.whole = this.calls.filter((call) => isObject(call.arguments));
    for (const call of this.whole) call.code.textContent = pretty(call.arguments);
    if (this.whole.length < this.calls.length) this.note("a call was cut short", "problem");
  }

  /** As the API takes it back. */
  message() {
    const message = { role: "assistant", content: this.content };
    if (this.reasoning) message.reasoning_content = this.reasoning;
    if (this.whole.length) {
      message.tool_calls = this.whole.map((call) => ({
        id: call.id, type: "function", function: { name: call.name, arguments: call.arguments },
      }));
    }
    return message;
  }

  /** Fields for what the tools said; `send` gets one message for each call. */
  askForResponses(send) {
    this.fields ??= this.whole.map(responseField);
    this.button ??= el("button", { type: "button", textContent: "Send response" });
    this.button.onclick = () => {
      if (!this.fields.every((field) => field.reportValidity())) return;
      send(this.whole.map((call, at) => (
        { role: "tool", tool_call_id: call.id, content: this.fields[at].value }
      )));
    };
    this.whole.at(-1).box.append(this.button);
    for (const field of this.fields) field.readOnly = false;
    this.fields[0].focus();
  }

  /** A turn further: what was typed stays to be read. */
  closeResponses() {
    this.button?.remove();
    for (const field of this.fields ?? []) field.readOnly = true;
  }
}

function responseField(call) {
  const field = el("textarea", { rows: 2, required: true, spellcheck: false });
  call.box.append(el("label", { className: "response" }, `Response of ${call.name}`, field));
  return field;
}

function isObject(text) {
  try {
    return JSON.parse(text) instanceof Object;
  } catch {
    return false;
  }
}

// Numbers of any length are shown as they came: only a text that survives is laid out anew.
function pretty(text) {
  const value = JSON.parse(text);
  const compact = (one) => one.replace(/\s/g, "");
  const laidOut = JSON.stringify(value, null, 2);
  return compact(laidOut) === compact(text) ? laidOut : text;
}
