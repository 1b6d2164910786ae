// The two routes that the page needs, spoken as any client speaks them.

/** What the server said instead of an answer. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const headers = (key) => (key ? { authorization: `Bearer ${key}` } : {});

/** The first model served: its name, `max_model_len`, and its sizes under `laguna`. */
export async function firstModel(key) {
  const response = await fetch("v1/models", { headers: headers(key) });
  await requireFine(response);
  return (await response.json()).data[0];
}

/** The chunks of a streamed chat request. */
export async function* chat(body, key, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  await requireFine(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(500, chunk.error.message);
    yield chunk;
  }
  throw new ApiError(0, "the connection broke off");
}

async function requireFine(response) {
  if (response.ok) return;
  let message = `HTTP ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // No JSON: something between here and the server answered.
  }
  throw new ApiError(response.status, message);
}

/** The data of server-sent events; ours have one line each. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) yield part.slice("data: ".length);
    }
  }
}
