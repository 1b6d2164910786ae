// The settings beside the conversation, as fields of a request.

import { byId } from "./dom.js";

/** A setting that cannot be sent. */
export class SettingError extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

/** What the settings add to a request; throws SettingError. */
export function options() {
  const fields = {
    chat_template_kwargs: { enable_thinking: byId("thinking").checked },
    temperature: number("temperature", "Temperature"),
    max_tokens: number("max-tokens", "Most tokens"),
    seed: number("seed", "Seed"),
    tools: tools(),
  };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

/** The system message, where one was typed. */
export function systemMessages() {
  const content = byId("system").value;
  return content.trim() ? [{ role: "system", content }] : [];
}

function number(id, name) {
  const field = byId(id);
  if (!field.checkValidity()) {
    throw new SettingError(`${name}: ${field.validationMessage}`, field);
  }
  return field.value === "" ? undefined : field.valueAsNumber;
}

function tools() {
  const field = byId("tools");
  if (!field.value.trim()) return undefined;
  try {
    const value = JSON.parse(field.value);
    return Array.isArray(value) ? value : [value];
  } catch (problem) {
    throw new SettingError(`Tools: ${problem.message}`, field);
  }
}
