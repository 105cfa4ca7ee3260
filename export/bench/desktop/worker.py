"""Runs the repeats of a plan with the wheel's C++ runner and tells each as a line of JSON.

A process of its own (`python -m export.bench.desktop.worker`), whose memory is measured from outside. Its argument is
JSON: pte, tokenizer, new_tokens, repeats, warmups, cooldown_s, load_mode, prompt_tokens (lengths).
Events, each with `at`, seconds of the system's monotonic clock: `phase` (load, prefill, decode, idle), `loaded`,
`warmup`, `repeat`, `refused` (a sentence; nothing was run), `done`. Knows nothing of results and memory.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.engine.native_output import to_nothing
from export.progress import quiet

Tell = Callable[..., None]


@dataclass(frozen=True)
class Answer:
    """What is told of an answer."""

    counted: dict[str, Any]  # tokens, and the times between them
    measures: dict[str, float | None]  # by the names of contract.json


class Model:
    """A loaded file, and how long that took."""

    def __init__(self, pte: Path, numbers: Path, tell: Tell) -> None:
        from export.engine.runner import import_runner

        self.module, self.tell = import_runner(), tell
        tell("phase", phase="load")
        # The runner loads when it is first used: one token in, one out, which is not measured.
        self.runner, took = self.module.TextLLMRunner(str(pte), str(numbers)), list[int]()
        self.runner.generate("0 ", self._settings(1), None, lambda stats: took.append(_load_ms(stats)))
        self.load_ms = took[0]
        tell("phase", phase="idle")
        tell("loaded", load_ms=self.load_ms)

    def _settings(self, new_tokens: int) -> Any:
        return self.module.GenerationConfig(echo=False, max_new_tokens=new_tokens, temperature=0.0)

    def answer(self, ids: list[int], new_tokens: int) -> Answer:
        """One answer: milliseconds, and the rates that follow from them."""
        stamps: list[float] = []

        def take(piece: str) -> None:
            stamps.append(time.monotonic())
            if len(stamps) == 1:
                self.tell("phase", phase="decode")

        self.runner.reset()
        spelled = "".join(f"{token} " for token in ids)
        self.tell("phase", phase="prefill")
        begun = time.monotonic()
        self.runner.generate(spelled, self._settings(new_tokens), take, None)
        self.tell("phase", phase="idle")
        first_s, decode_s = stamps[0] - begun, stamps[-1] - stamps[0]
        token_ms = [round(1e3 * (b - a), 4) for a, b in pairwise(stamps)]
        return Answer(
            {"prompt_tokens": len(ids), "generated_tokens": len(stamps), "token_ms": token_ms},
            {
                "load_ms": None,
                "time_to_first_token_ms": 1e3 * first_s,
                "prefill_tokens_per_s": len(ids) / first_s,
                "decode_tokens_per_s": (len(stamps) - 1) / decode_s if decode_s > 0 else None,
            },
        )


def _load_ms(stats: Any) -> int:
    return int(stats.model_load_end_ms - stats.model_load_start_ms)


def work(spec: dict[str, Any], tell: Tell) -> None:
    """Everything the plan asks for; BadInput where file, tokenizer and plan do not go together."""
    from export.bench.prompts import make_prompts
    from export.engine.runner import check_fits, numbers_tokenizer, read_facts
    from export.engine.tokenizer import load_tokenizer, runner_ids

    pte, path = Path(spec["pte"]), Path(spec["tokenizer"])
    facts, tokenizer = read_facts(pte), load_tokenizer(path)
    check_fits(pte, facts, tokenizer)
    texts = make_prompts(path, tuple(spec["prompt_tokens"]))
    prompts = [runner_ids(path, text) for text in texts]
    for ids in prompts:
        if len(ids) + spec["new_tokens"] > facts.context:
            raise BadInput(
                f"{len(ids)} prompt tokens and {spec['new_tokens']} new ones do not fit into the {facts.context} "
                f"tokens of {pte}"
            )
    with tempfile.TemporaryDirectory() as folder:
        numbers = Path(folder, "tokenizer.json")
        numbers.write_text(numbers_tokenizer(tokenizer.vocab_size))
        _repeats(spec, prompts, lambda: Model(pte, numbers, tell), tell)


def _repeats(spec: dict[str, Any], prompts: list[list[int]], load: Callable[[], Model], tell: Tell) -> None:
    each, new_tokens = spec["load_mode"] == "each", spec["new_tokens"]
    model, fresh, first = load(), True, True
    for configuration, ids in enumerate(prompts):
        for warmup in range(spec["warmups"]):
            model.answer(ids, new_tokens)
            tell("warmup", configuration=configuration, warmup=warmup)
        for repeat in range(spec["repeats"]):
            if not first:
                tell("phase", phase="idle")
                time.sleep(spec["cooldown_s"])
            begun = time.monotonic()
            tell("begin", configuration=configuration, repeat=repeat)
            if each and not first:
                del model  # before the next one, so that never two are in memory
                model, fresh = load(), True
            answer = model.answer(ids, new_tokens)
            if fresh:
                answer.measures["load_ms"] = model.load_ms
            fresh = first = False
            tell("repeat", configuration=configuration, repeat=repeat, begun=begun, **vars(answer))


def main() -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    # The runner prints every piece of text to C's stdout.
    to_nothing(1)
    quiet(verbose=False)

    def tell(event: str, **more: Any) -> None:
        print(json.dumps({"event": event, "at": time.monotonic(), **more}), file=out)

    try:
        work(json.loads(sys.argv[1]), tell)
    except BadInput as problem:
        tell("refused", message=str(problem))
        return 2
    tell("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
