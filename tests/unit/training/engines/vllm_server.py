"""A server that speaks vLLM's wire format, with a small model of transformers behind it.

Routes and fields are those of vLLM 0.10.2's ``/v1/completions`` with token ids, and of its LoRA routes. What vLLM
passes over without a word (an unknown field) is passed over here too.
"""

# torch is an extra; who imports this skips where it is absent
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

MODEL = "tiny"


@dataclass
class VLLM:
    """The server's state, and what it was asked."""

    model: Any
    tokenizer: Any
    lora: bool = True
    """Whether it was started with ``VLLM_ALLOW_RUNTIME_LORA_UPDATING``."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What stands in a choice instead of what would; None takes a field away."""
    failures: list[Response] = field(default_factory=list)
    """Answered first, one request after the other."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of completions."""
    commands: list[tuple[str, Any]] = field(default_factory=list)
    """Path with query, and body, of everything else."""
    adapters: dict[str, str] = field(default_factory=dict)
    url: str = ""

    def complete(self, body: dict[str, Any]) -> Response:
        """Answer a request for a completion."""
        if body["model"] not in (MODEL, *self.adapters):
            return refusal(404, f"The model `{body['model']}` does not exist.")
        ids, logprobs, reason = self.generated(body)
        choice: dict[str, Any] = {"index": 0, "text": "unused", "finish_reason": reason, "stop_reason": None}
        if body.get("return_token_ids"):
            choice |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        if body.get("logprobs") is not None:
            tokens = [self.tokenizer.decode([one]) for one in ids]
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": [], "text_offset": []}
        choice = {name: value for name, value in (choice | self.changes).items() if value is not None}
        return JSONResponse({"id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": [choice]})

    @torch.inference_mode()
    def generated(self, body: dict[str, Any]) -> tuple[list[int], list[float], str]:
        """Tokens, their log-probabilities (processed), and why they end."""
        chance = torch.Generator().manual_seed(body["seed"])
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < body["max_tokens"]:
            logits_V = self.model(input_ids=torch.tensor([body["prompt"] + ids])).logits[0, -1].float()
            if body["temperature"]:
                logprobs_V = (logits_V / body["temperature"]).log_softmax(-1)
                chosen = int(torch.multinomial(logprobs_V.exp(), 1, generator=chance))
            else:
                logprobs_V = logits_V.log_softmax(-1)
                chosen = int(logprobs_V.argmax())
            ids.append(chosen)
            logprobs.append(float(logprobs_V[chosen]))
            text = self.tokenizer.decode(ids, skip_special_tokens=body["skip_special_tokens"])
            if chosen in body["stop_token_ids"] or any(stop in text for stop in body["stop"]):
                return ids, logprobs, "stop"
        return ids, logprobs, "length"

    def load(self, body: dict[str, Any]) -> Response:
        """Load an adapter."""
        if body["lora_name"] in self.adapters:
            return refusal(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        self.adapters[body["lora_name"]] = body["lora_path"]
        return PlainTextResponse(f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    def unload(self, body: dict[str, Any]) -> Response:
        """Forget an adapter."""
        if self.adapters.pop(body["lora_name"], None) is None:
            return refusal(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return PlainTextResponse("Success")

    def command(self, path: str, body: Any) -> Response:
        """Answer whatever is no completion."""
        if self.lora and path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            return self.load(body) if "unload" not in path else self.unload(body)
        return JSONResponse({"detail": "Not Found"}, status_code=404)


def refusal(status: int, message: str) -> Response:
    """An error as vLLM writes it."""
    return JSONResponse({"error": {"message": message, "type": "Error", "param": None, "code": status}}, status)


@asynccontextmanager
async def serving(vllm: VLLM) -> AsyncGenerator[VLLM]:
    """The server on a port of this machine."""
    app = FastAPI()

    @app.post("/{path:path}")
    async def answer(path: str, request: Request) -> Response:
        body = await request.json()
        completion = path == "v1/completions"
        if completion:
            vllm.bodies.append(body)
        else:
            vllm.commands.append((f"/{path}{'?' if request.url.query else ''}{request.url.query}", body))
        if vllm.failures:
            return vllm.failures.pop(0)
        return vllm.complete(body) if completion else vllm.command(f"/{path}", body)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        vllm.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
        )
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield vllm
        finally:
            server.should_exit = True
            await running
