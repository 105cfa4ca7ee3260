"""What drafts bring our engine: prompt-lookup speculative decoding of a summary, an edit and free text.

    python -m benchmarks.run FILE.pte --drafts [--draft-model FILE.pte] [--draft-tokens 7]

It depends on the text that a model writes, so there are two measurements:
- forced (--drafts): for any weights, random ones too. The text to be written is given, below. Every step is a real
  one of the engine: it feeds the last token and its drafts, those that agree with the given text stay, the rest is
  rewound. Drafts are guessed by the engine's own rule, called from here. It tells what they bring where a model
  writes this text, not that one does. Of a file exported with --speculate 0 it is a little too good, since such a
  file computes the logits of a step's last token only.
- answered (--draft-model): a trained model in a file that can check drafts answers the three prompts by itself. How
  it rounds depends on how many tokens it computes at once, so the answers need not be the same: that is told.
Knows our engine alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure
from checkpoints.errors import BadInput, run

MOST = 7  # drafts in a step
ANSWER = 192  # tokens of an answer at most

SOURCE = (
    "The ferry to the island leaves from the old pier at half past seven. Tickets are sold at the blue kiosk next"
    " to the bakery, and a return ticket costs fourteen euros. The crossing takes forty minutes when the sea is "
    "calm and about an hour when it is not. Bicycles travel free of charge, but they have to be tied to the rail "
    "on the lower deck. There is no shop on the island, so bring water and something to eat. The lighthouse can "
    "be visited between ten and four; the keeper, Martha Lind, shows guests the lamp and the view from the "
    "gallery. The last ferry back to the mainland leaves at six in the evening. In winter the ferry runs on "
    "Saturdays only, and in a storm it does not run at all."
)
CHANGES = {"Martha Lind": "Jonas Berg", "fourteen euros": "sixteen euros", "In winter": "From November to March"}
SUMMARY = (
    "The ferry leaves at half past seven and takes forty minutes when the sea is calm. A return ticket costs "
    "fourteen euros and bicycles travel free of charge. Bring water and something to eat, for there is no shop on"
    " the island. The lighthouse can be visited between ten and four. The last ferry back leaves at six in the "
    "evening."
)
FREE = (
    "Old maps are honest about what their makers did not know. A coast ends in the middle of a bay, a river "
    "begins nowhere, and where nobody had been somebody drew a whale. People like to smile at that whale, yet it "
    "says something that later maps have forgotten to say: beyond this line we are guessing. A good question to "
    "put to any picture of the world is where its whales are."
)


@dataclass(frozen=True)
class Task:
    """Something to write, and how."""

    name: str
    prompt: str
    wanted: str


def _edited() -> str:
    text = SOURCE
    for before, after in CHANGES.items():
        text = text.replace(before, after)
    return text


_CHANGES = ", ".join(f"{before} to {after}" for before, after in CHANGES.items())
TASKS = (
    Task("summary", f"Summarize this text in five sentences:\n\n{SOURCE}", SUMMARY),
    Task("edit", f"Rewrite this text and change {_CHANGES}; leave the rest as it is:\n\n{SOURCE}", _edited()),
    Task("free text", "Write a short reflection on old maps.", FREE),
)


class Guesses:
    """The engine's rule (export/engine/cpp/drafts.h) for one answer, by the C function that its tests call it by."""

    def __init__(self, most: int) -> None:
        from checkpoints.cache import cached_folder
        from export.engine.compiler import run_compiler
        from export.engine.native import CPP, FLAGS

        sources = [CPP / "drafts.cpp", measure.ROOT / "tests/engine/cpp/drafts_calls.cpp"]

        def build(folder: Path) -> None:
            out = ("-shared", "-o", folder / "drafts.so")
            run_compiler(os.environ.get("CXX") or "c++", *FLAGS, f"-I{CPP}", *sources, *out)

        parts = [path.read_bytes() for path in (*sources, CPP / "drafts.h")]
        self._guess = ctypes.CDLL(str(cached_folder("drafts", parts, build) / "drafts.so")).guess
        self._guess.restype = ctypes.c_size_t
        self._most, self._fates = most, list[int]()

    def after(self, tokens: Sequence[int], room: int) -> list[int]:
        """What may follow these tokens, at most `room`."""
        size, ids = ctypes.c_size_t, ctypes.c_int64
        fates, text = (size * len(self._fates))(*self._fates), (ids * len(tokens))(*tokens)
        out = (ids * max(1, room))()
        told = (size(self._most), fates, size(len(fates) // 2), text, size(len(tokens) - 1), ids(tokens[-1]))
        return list(out[: self._guess(*told, size(room), out)])

    def learn(self, guessed: int, right: int) -> None:
        self._fates += [guessed, right]


def forced(path: Path, packed: Path, most: int) -> dict[str, Any]:
    """Each task with and without drafts, in this process."""
    from benchmarks.engines import Ours
    from export.engine.tokenizer import runner_ids

    tokenizer, engine, found = _tokenizer(path), Ours(path, packed), {}
    for task in TASKS:
        prompt, wanted = _prompt(tokenizer, task), runner_ids(tokenizer, task.wanted)
        _check_room(path, task, len(prompt) + len(wanted), engine.context)
        found[task.name] = {
            way: _write(engine, prompt, wanted, drafts) for way, drafts in (("plain", 0), ("drafts", most))
        }
    engine.close()
    return found


def _write(engine: Any, prompt: list[int], wanted: list[int], most: int) -> dict[str, Any]:
    """Write the wanted tokens after the prompt; the first of them comes with the prompt and is not timed."""
    engine.clear()
    for at in range(0, len(prompt), engine.chunk):
        engine.feed(prompt[at : at + engine.chunk], at)
    tokens, end, counts = [*prompt, wanted[0]], len(prompt) + len(wanted), {"steps": 0, "drafted": 0, "accepted": 0}
    guesses = Guesses(most)
    begun = time.perf_counter()
    while len(tokens) < end:
        rest = wanted[len(tokens) - len(prompt) :]
        guess = guesses.after(tokens, len(rest) - 1) if most else []
        engine.feed([tokens[-1], *guess], len(tokens) - 1)
        right = next((n for n, (a, b) in enumerate(zip(guess, rest, strict=False)) if a != b), len(guess))
        guesses.learn(len(guess), right)
        tokens += rest[: right + 1]  # the drafts that are right, and what the logits say after them
        counts = {key: counts[key] + n for key, n in zip(counts, (1, len(guess), right), strict=True)}
    seconds = time.perf_counter() - begun
    return {"tokens": len(wanted), "tokens_per_s": (len(wanted) - 1) / seconds, **counts}


def answered(path: Path, packed: Path, most: int) -> dict[str, Any]:
    """The answers of the model itself, without drafts and with them, in this process."""
    from export.engine.native import End, NativeEngine, Sampling

    tokenizer, found = _tokenizer(path), {}
    with NativeEngine() as engine:
        loaded = engine.load(path, packed)
        if loaded.logits_positions == 1:
            raise BadInput(f"--draft-model {path} gives the logits of one token a step: it cannot check drafts")
        for task in TASKS:
            prompt, ways, ids = _prompt(tokenizer, task), {}, []
            _check_room(path, task, len(prompt) + ANSWER, loaded.context_length)
            for way, drafts in (("plain", 0), ("drafts", most)):
                engine.release()
                answer = engine.generate(prompt, Sampling(max_new_tokens=ANSWER, draft_tokens=drafts))
                after_first = len(answer.token_ids) - (answer.end != End.TOKEN)  # with the one that ended it
                ways[way] = {
                    "tokens": len(answer.token_ids),
                    "tokens_per_s": 1e3 * after_first / answer.decode_ms if answer.decode_ms else 0.0,
                    "steps": answer.steps,
                    "drafted": answer.drafted_tokens,
                    "accepted": answer.accepted_tokens,
                }
                ids.append(answer.token_ids)
            found[task.name] = ways | {"same_tokens": ids[0] == ids[1]}
    return found


def _tokenizer(path: Path) -> Path:
    from export.engine.tokenizer import find_tokenizer

    return find_tokenizer(path.resolve().parent)


def _prompt(tokenizer: Path, task: Task) -> list[int]:
    from export.engine.chat_template import chat_prompt
    from export.engine.tokenizer import runner_ids

    return runner_ids(tokenizer, chat_prompt(tokenizer.parent, [{"role": "user", "content": task.prompt}]))


def _check_room(path: Path, task: Task, tokens: int, context: int) -> None:
    if tokens > context:
        raise BadInput(f"{path} has a context of {context} tokens, the {task.name} takes {tokens}")


def measure_all(
    model: Path | None,
    draft_model: Path | None,
    most: int,
    rounds: int,
    work: Path,
    progress: Callable[[str], object],
) -> dict[str, Any]:
    """What was asked for: by kind and task, medians of the rounds; a process for each round."""
    jobs = {"forced": model, "answered": draft_model}
    results: dict[str, Any] = {}
    for kind, path in jobs.items():
        if path is None:
            continue
        with tempfile.TemporaryDirectory(prefix="pocketphi-", dir=work) as folder:
            trials = []
            for number in range(rounds):
                progress(f"round {number + 1} of {rounds}: {path.name}, drafts {kind}")
                trials.append(_in_child(kind, path, Path(folder), most))
        results[kind] = {"file": str(path), "draft_tokens": most, "tasks": _medians(trials), "trials": trials}
    return results


def _medians(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rates, and of their ratios within a trial; counts are the same in all."""
    tasks = {}
    for name, first in trials[0].items():
        own = [trial[name] for trial in trials]
        tasks[name] = first | {
            way: first[way] | {"tokens_per_s": statistics.median(one[way]["tokens_per_s"] for one in own)}
            for way in ("plain", "drafts")
        }
        ratios = [one["drafts"]["tokens_per_s"] / one["plain"]["tokens_per_s"] for one in own]
        tasks[name]["ratio"] = statistics.median(ratios)
    return tasks


def _in_child(kind: str, path: Path, folder: Path, most: int) -> dict[str, Any]:
    into = folder / "drafts.json"
    what = {"kind": kind, "path": str(path.resolve()), "packed": str(folder / "packed"), "most": most}
    done = measure.run((sys.executable, "-m", "benchmarks.drafts", json.dumps(what), str(into)))
    if done.failure:
        last = "".join(done.tail.strip().splitlines()[-1:]).removeprefix("error: ")
        raise BadInput(f"{path}: drafts could not be measured ({done.failure}): {last}")
    result: dict[str, Any] = json.loads(into.read_text())
    return result


def main() -> int:
    given = json.loads(sys.argv[1])
    work = {"forced": forced, "answered": answered}[given["kind"]]
    Path(sys.argv[2]).write_text(json.dumps(work(Path(given["path"]), Path(given["packed"]), given["most"])))
    return 0


if __name__ == "__main__":
    run(lambda argv: main())
