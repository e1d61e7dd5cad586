"""A policy on a model of one's own: a Hugging Face checkpoint folder, run by torch in this process."""

from __future__ import annotations

import asyncio
import queue
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agemem_mcp.errors import AgeMemError, ConfigurationError, ProviderError
from agemem_policies.local.calls import Call, Options
from agemem_policies.manner import Manner, manner_of

if TYPE_CHECKING:
    from agemem_policies.local.engine import Engine
    from agemem_policies.policy import Completion, OnText, Prompt

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_HOTTEST = 100


class LocalPolicy:
    """Implements ``Policy``; loads the model at the first turn and never touches a network.

    One worker thread owns the model. Calls generate together, one token each per forward pass: a call joins between
    two tokens and is answered as soon as its own last token is there. A turn ends with a token that ends turns, or
    with the tag that ends a tool call or an answer.
    """

    def __init__(  # noqa: PLR0913  one per option
        self,
        path: str | Path,
        *,
        max_tokens: int = 2048,
        temperature: float = 0.0,
        top_p: float = 1.0,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        seed: int | None = None,
        window: int | None = None,
        max_rows: int = 32,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            path: a folder that ``save_pretrained`` wrote: a model, or a LoRA adapter whose base model is a folder too.
            max_tokens: the most tokens of one turn. Near the end of the window a turn may get fewer.
            temperature: 0 takes the most probable token.
            top_p: draw among the most probable tokens that have this much of the probability together. What is
                trained on wants 1: log-probabilities are told before anything is cut off.
            device: as torch names it; ``auto`` is the first GPU, else the processor.
            dtype: ``auto`` is what the weights were saved in.
            seed: makes sampling repeatable: what a prompt is answered depends on the seed, the prompt and how often it
                was asked before, not on what else is generated. None for other answers each time.
            window: the most tokens of prompt and answer together; None for as many as the model's config says.
            max_rows: how many calls generate at once; more wait. Bounds the memory.

        Raises:
            ConfigurationError: an option is out of range.
        """
        self._path = Path(path)
        self._options = Options(max_tokens, temperature, top_p, device, dtype, seed, window, max_rows)
        _check(self._options)
        self._arrivals: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()
        """So that no call comes after the end."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._path.resolve().name

    @cached_property
    def manner(self) -> Manner:
        """How it was trained to be used.

        Raises:
            ConfigurationError: what the folder says of that cannot be read.
        """
        return manner_of(self._path)

    @property
    def native(self) -> bool:
        """False: it writes its calls into its text."""
        return False

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """Take one turn; when cancelled, the model stops generating it at the next token.

        Args:
            prompt: what the model is shown.
            on_text: told the text as it comes, in whole characters, on the event loop's thread.

        Returns:
            The text, which the pieces make up exactly, and the tokens with their log-probabilities. A token that ends
            turns is among the tokens, not in the text; a token in which the last tag ends is there as a whole.

        Raises:
            ConfigurationError: the folder cannot be used as it is.
            ProviderError: the prompt is too long, memory ran out, the model gave no numbers, or the policy is closed.
        """
        call = Call(prompt, streams=on_text is not None)
        with self._lock:
            if self._closed:
                raise _closed()
            if self._worker is None:
                # daemon: a process that is told to end must not wait for a model
                self._worker = threading.Thread(target=self._work, name="agemem-local-policy", daemon=True)
                self._worker.start()
            self._arrivals.put(call)
        return await call.outcome(on_text)

    async def close(self) -> None:
        """Fail the calls that are not answered yet and release the model; closing twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._arrivals.put(None)
            worker = self._worker
        if worker is not None:
            await asyncio.to_thread(worker.join)

    def _work(self) -> None:
        """The worker's life: take in calls, generate a token for each, until the policy is closed."""
        engine: Engine | None = None
        while True:
            calls, closing = self._arrived(block=engine is None or not engine.busy)
            if closing:
                _fail(calls, _closed())
                break
            try:
                engine = engine or self._loaded()
            except Exception as error:  # noqa: BLE001  the thread's outermost boundary; the callers must hear of it
                # the next call tries again: files may have been put in place meanwhile
                _fail(calls, error)
                continue
            for call in calls:
                engine.accept(call)
            engine.turn()
        if engine is not None:
            engine.end(_closed())

    def _loaded(self) -> Engine:
        try:
            # seconds to import; and only who runs a model needs to have them
            from agemem_policies.local.engine import Engine  # noqa: PLC0415
        except ImportError as error:
            message = (
                f"A model in this process needs torch and transformers: {error}. Install torch for your machine, then "
                "`pip install 'agemem-mcp[local]'`."
            )
            raise ConfigurationError(message) from error
        return Engine(self._path, self._options)

    def _arrived(self, *, block: bool) -> tuple[list[Call], bool]:
        """All calls that have come, and whether the end has; blocks for the first one if told to."""
        calls: list[Call] = []
        try:
            while (call := self._arrivals.get(block=block and not calls)) is not None:
                calls.append(call)
        except queue.Empty:
            return calls, False
        return calls, True


def _check(options: Options) -> None:
    ranges = {
        "max_tokens": ("1 or more", options.max_tokens >= 1),
        "temperature": (f"between 0 and {_HOTTEST}", 0 <= options.temperature <= _HOTTEST),
        "top_p": ("above 0 and at most 1", 0 < options.top_p <= 1),
        "dtype": (f"one of {', '.join(_DTYPES)}", options.dtype in _DTYPES),
        "seed": ("0 or more", options.seed is None or options.seed >= 0),
        "window": ("2 or more, for prompt and answer", options.window is None or options.window > 1),
        "max_rows": ("1 or more", options.max_rows >= 1),
    }
    wrong = [
        f"{name} must be {wanted}, not {getattr(options, name)}"
        for name, (wanted, right) in ranges.items()
        if not right
    ]
    if wrong:
        message = f"A local model cannot work like this: {'; '.join(wrong)}."
        raise ConfigurationError(message)


def _fail(calls: list[Call], error: Exception) -> None:
    shown = error
    if not isinstance(shown, AgeMemError):
        shown = ProviderError(f"The model could not be loaded: {error}.")
        shown.__cause__ = error
    for call in calls:
        call.fail(shown)


def _closed() -> ProviderError:
    return ProviderError("The policy is closed.")
