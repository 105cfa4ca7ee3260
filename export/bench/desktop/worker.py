"""Runs the repeats of a plan with one of the C++ engines and tells each as a line of JSON.

A process of its own (`python -m export.bench.desktop.worker`), whose memory is measured from outside. Its argument is
JSON: pte, tokenizer, new_tokens, repeats, warmups, cooldown_s, load_mode, prompt_tokens (lengths), modes,
engine, packed (a folder), draft_tokens.
Events, each with `at`, seconds of the monotonic clock: `phase` (load, encode, encoded, prefill, decode, idle),
`loaded`, `warmup`, `repeat`, `refused` (a sentence; nothing was run), `done`. After `idle` and `encoded` it waits for
a line on stdin, or its end: a look at its memory through all its pages would disturb what comes next. Knows nothing
of results and memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.bench.desktop.models import Model, OurModel, RunnerModel, Tell
from export.engine.native_output import to_nothing
from export.progress import quiet


def work(spec: dict[str, Any], tell: Tell) -> None:
    """Everything the plan asks for; BadInput where file, tokenizer and plan do not go together."""
    from export.bench.prompts import make_prompts
    from export.engine.runner import check_fits, read_facts
    from export.engine.tokenizer import load_tokenizer, runner_ids

    pte, path = Path(spec["pte"]), Path(spec["tokenizer"])
    facts, tokenizer = read_facts(pte), load_tokenizer(path)
    check_fits(pte, facts, tokenizer)
    texts = make_prompts(path, tuple(spec["prompt_tokens"]))
    prompts = [runner_ids(path, text) for text in texts]
    others = [mode for mode in spec["modes"] if mode != "text"]
    runs = [(ids, "text") for ids in prompts if "text" in spec["modes"]] + [(prompts[0], mode) for mode in others]
    for ids, _ in runs:
        if len(ids) + spec["new_tokens"] > facts.context:
            raise BadInput(
                f"{len(ids)} prompt tokens and {spec['new_tokens']} new ones do not fit into the {facts.context} "
                f"tokens of {pte}"
            )
    if spec["engine"] == "ours":
        model: Model = OurModel(pte, Path(spec["packed"]), spec["draft_tokens"], tell)
    else:
        model = RunnerModel(pte, tokenizer.vocab_size, tell)
    with model:
        _repeats(spec, runs, model, tell)


def _repeats(spec: dict[str, Any], runs: list[tuple[list[int], str]], model: Model, tell: Tell) -> None:
    each, new_tokens = spec["load_mode"] == "each", spec["new_tokens"]
    model.load()
    fresh = first = True
    for configuration, (ids, mode) in enumerate(runs):
        for warmup in range(spec["warmups"]):
            model.answer(ids, new_tokens, mode)
            tell("warmup", configuration=configuration, warmup=warmup)
        for repeat in range(spec["repeats"]):
            if not first:
                tell("phase", phase="idle")
                time.sleep(spec["cooldown_s"])
            begun = time.monotonic()
            tell("begin", configuration=configuration, repeat=repeat)
            if each and not first:
                model.load()
                fresh = True
            answer = model.answer(ids, new_tokens, mode)
            if fresh:
                answer.measures["load_ms"] = model.load_ms
                answer.told.update(model.packing)
            fresh = first = False
            tell("repeat", configuration=configuration, repeat=repeat, begun=begun, **vars(answer))


def main() -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    # The runner prints every piece of text to C's stdout.
    to_nothing(1)
    quiet(verbose=False)

    def tell(event: str, **more: Any) -> None:
        print(json.dumps({"event": event, "at": time.monotonic(), **more}), file=out)
        if more.get("phase") in ("idle", "encoded"):
            sys.stdin.readline()

    try:
        work(json.loads(sys.argv[1]), tell)
    except BadInput as problem:
        tell("refused", message=str(problem))
        return 2
    tell("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
