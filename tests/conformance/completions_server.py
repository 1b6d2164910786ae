"""A server process that shows log-probabilities of a model, in the manner of one engine or another.

    python -m tests.conformance.completions_server --style vllm --port-file FILE [--dies-after N]

Styles: ``vllm`` (prompt_logprobs, ids as ``token_id:N``, the prompt's own token beside the
likeliest), ``echo`` (texts), ``llama`` (llama-server's /completion, entries with ids), ``continue``
(OpenAI's form, no echo), ``entries`` (the form with ``content``), ``text`` (refuses ids), ``bos``
(puts a token of its own before every prompt), ``blind`` (shows nothing). It dies for good after
``--dies-after`` answers, and answers the first ``--busy`` requests with 503.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.conformance.adapters.openai_modes import words_of
from laguna_ref.conformance.partial import log_softmax
from laguna_ref.load import EMBEDDED, load

Row = dict[int, float]
LIMIT = 20


class RefusedError(Exception):
    """HTTP 400."""


class Served:
    """The model, in its own numerics, and how it answers."""

    def __init__(self, style: str, scale: float, drift: float) -> None:
        self.style, self.scale, self.drift = style, scale, drift
        self.model = load(engine="numpy")
        words = words_of(EMBEDDED)
        self.text = {i: text for text, i in words.ids.items()}
        self.lock = threading.Lock()

    def logprobs(self, tokens: list[int]) -> Any:
        scale = self.scale * (1 + self.drift * len(tokens))
        with self.lock:
            return log_softmax(self.model(tokens).astype(np.float64) * scale)

    def likeliest(self, tokens: list[int], k: int) -> list[Row]:
        logprobs = self.logprobs(tokens)
        order = np.argsort(-logprobs, axis=1, kind="stable")[:, :k]
        return [
            {int(i): float(row[i]) for i in ids} for row, ids in zip(logprobs, order, strict=True)
        ]

    def with_own(self, rows: list[Row], tokens: list[int]) -> list[Row]:
        """Each row with the token that came next."""
        logprobs = self.logprobs(tokens)
        return [
            row | {token: float(logprobs[place, token])}
            for place, (row, token) in enumerate(zip(rows, tokens[1:], strict=True))
        ]

    def named(self, row: Row) -> dict[str, float]:
        if self.style in ("vllm", "continue", "bos"):
            return {f"token_id:{i}": value for i, value in row.items()}
        return {self.text[i]: value for i, value in row.items()}

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        if self.style == "text" and not isinstance(prompt, str):
            raise RefusedError("prompt: input should be a valid string")
        if path.endswith("/v1/completions") and self.style != "llama":
            return self.completion(prompt, body)
        if path == "/completion" and self.style == "llama":
            return self.native(prompt, body)
        raise RefusedError("no such endpoint")

    def completion(self, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        k = int(body["logprobs"])
        if k > LIMIT:
            raise RefusedError(f"logprobs must be at most {LIMIT}")
        tokens = [2, *prompt] if self.style == "bos" else prompt
        rows = self.likeliest(tokens, k)
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length"}
        last = {"top_logprobs": [self.named(rows[-1])]}
        if self.style == "vllm":
            choice["prompt_logprobs"] = [None] + [
                {str(i): {"logprob": v, "rank": n + 1} for n, (i, v) in enumerate(row.items())}
                for row in self.with_own(rows[:-1], tokens)
            ]
        if self.style == "echo" and body.get("echo"):
            last = {"top_logprobs": [None, *map(self.named, rows)]}
        if self.style == "entries":
            top = [{"id": i, "token": "?", "logprob": v} for i, v in rows[-1].items()]
            last = {"content": [{**top[0], "top_logprobs": top}]}
        choice["logprobs"] = None if self.style == "blind" else last
        return {"choices": [choice], "usage": {"prompt_tokens": len(tokens)}}

    def native(self, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        row = self.likeliest(prompt, int(body["n_probs"]))[-1]
        top = [{"id": i, "token": "?", "bytes": [], "logprob": v} for i, v in row.items()]
        return {
            "content": "", "tokens_evaluated": len(prompt),
            "completion_probabilities": [{**top[0], "top_logprobs": top}],
        }  # fmt: skip


def handler(served: Served, dies_after: int, busy: int) -> type[BaseHTTPRequestHandler]:
    counts = {"answers": 0, "requests": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "laguna-tiny"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            counts["requests"] += 1
            if counts["requests"] <= busy:
                self.reply(503, {"error": "loading"})
                return
            counts["answers"] += 1
            if dies_after and counts["answers"] > dies_after:
                os._exit(1)
            try:
                self.reply(200, served.answer(self.path, body))
            except RefusedError as problem:
                self.reply(400, {"error": str(problem)})

        def reply(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--style", required=True)
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--dies-after", type=int, default=0)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="Logits are multiplied by it.")
    parser.add_argument("--drift", type=float, default=0.0, help="And so much more for each token.")
    given = parser.parse_args()
    served = Served(given.style, given.scale, given.drift)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(served, given.dies_after, given.busy))
    waiting = given.port_file.with_suffix(".new")
    waiting.write_text(str(server.server_address[1]))
    waiting.replace(given.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
