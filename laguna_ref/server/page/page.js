// The conversation: what was said, the request for the next answer, and how it ended.

import { Answer } from "./answer.js";
import { ApiError, chat, firstModel } from "./api.js";
import { byId, el } from "./dom.js";
import { Panel } from "./panel.js";
import { options, SettingError, systemMessages } from "./settings.js";

const ALTERNATIVES = 8;
const panel = new Panel(byId("panel"));
let key = "";
let messages = []; // of the conversation so far, without the system's
let running = null; // the AbortController of the answer that is streaming
let last = null; // the last answer

async function connect() {
  try {
    const model = await firstModel(key);
    byId("model").textContent = model.id;
    panel.model = model.laguna;
    byId("unlock").hidden = true;
    alertOf("");
    byId("message").focus();
  } catch (problem) {
    failed(problem);
  }
}

/** Adds messages and streams the answer to them; true if there was one. */
async function answerTo(added) {
  const conversation = messages; // a new one may have begun when the answer ends
  let body;
  try {
    body = request([...conversation, ...added]);
  } catch (problem) {
    failed(problem);
    return false;
  }
  alertOf("");
  last?.closeResponses();
  const shown = added.filter((message) => message.role === "user").map(showUser);
  const answer = new Answer(panel);
  byId("turns").append(answer.element);
  const problem = await stream(body, answer);
  if (problem && !answer.strip.tokens.length) {
    for (const element of [...shown, answer.element]) element.remove();
    if (problem.name !== "AbortError") failed(problem);
    return false;
  }
  if (problem) answer.note(problem.name === "AbortError" ? "stopped" : problem.message, "problem");
  conversation.push(...added, answer.message());
  if (conversation !== messages) return true;
  last = answer;
  if (answer.finish === "tool_calls" && answer.whole.length) answer.askForResponses(respond);
  return true;
}

function request(conversation) {
  return {
    messages: [...systemMessages(), ...conversation],
    stream: true,
    stream_options: { include_usage: true },
    laguna: { trace: true, top: ALTERNATIVES },
    ...options(),
  };
}

/** What went wrong, if something did: the answer has then what came before. */
async function stream(body, answer) {
  setRunning(new AbortController());
  const mine = running;
  const began = performance.now();
  let seed, usage;
  try {
    for await (const chunk of chat(body, key, mine.signal)) {
      const follow = atEnd();
      for (const choice of chunk.choices) answer.take(choice);
      if (follow) toEnd();
      seed = chunk.laguna?.seed ?? seed;
      usage = chunk.usage ?? usage;
    }
    return null;
  } catch (problem) {
    return problem;
  } finally {
    answer.end();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    if (usage) answer.note(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens in ${seconds} s`);
    if (answer.finish) answer.note(`ended: ${answer.finish}`);
    if (seed !== undefined) answer.note(`seed ${seed}`);
    if (running === mine) setRunning(null);
  }
}

async function respond(responses) {
  if (!(await answerTo(responses)) && last) last.askForResponses(respond);
}

async function send() {
  const field = byId("message");
  const content = field.value;
  if (running || !content.trim()) return;
  field.value = "";
  if (!(await answerTo([{ role: "user", content }])) && !field.value) field.value = content;
}

function showUser({ content }) {
  const element = el("li", { className: "user" }, el("div", { className: "text", textContent: content }));
  byId("turns").append(element);
  toEnd();
  return element;
}

function setRunning(controller) {
  running = controller;
  byId("send").disabled = Boolean(controller);
  byId("stop").disabled = !controller;
}

function failed(problem) {
  if (problem instanceof ApiError && problem.status === 401) {
    byId("unlock").hidden = false;
    byId("key").focus();
    // Without a key nothing has gone wrong yet.
    alertOf(key ? problem.message : "");
    return;
  }
  if (problem instanceof SettingError) {
    byId("settings").open = true;
    problem.field.focus();
  }
  alertOf(problem.message);
}

function alertOf(text) {
  byId("alert").textContent = text;
  byId("alert").hidden = !text;
}

const scroller = document.scrollingElement;
const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
const toEnd = () => scroller.scrollTo(0, scroller.scrollHeight);

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("message").addEventListener("keydown", (event) => {
  // Enter that ends a word of an input method sends nothing.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("options").addEventListener("submit", (event) => event.preventDefault());
byId("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  connect();
});
byId("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  last = null;
  panel.clear();
  alertOf("");
  byId("turns").replaceChildren();
  byId("message").focus();
});
// On a phone the settings would fill the screen.
byId("settings").open = matchMedia("(min-width: 48rem)").matches;
connect();
