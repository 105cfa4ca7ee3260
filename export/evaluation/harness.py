"""lm-evaluation-harness over a `.pte`: its model `pocketphi`, and tasks from `export.evaluate --tasks`.

`python -m export.evaluation.harness` is the harness's own command with that model registered:
`… --model pocketphi --model_args pte=FILE,parallel=2 --tasks NAME --include_path DIR`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from checkpoints.errors import BadInput
from checkpoints.files import folder_of, sha256

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table
except ImportError as problem:
    raise BadInput(f"tasks need the package lm-eval ({problem}): `uv sync --extra evaluate`") from None

from export.engine.chat_template import chat_prompt
from export.engine.tokenizer import find_tokenizer, load_tokenizer
from export.evaluation.answers import Continuation, Prompt, likelihoods, texts
from export.evaluation.record import check_saving, save_evaluation, tasks_part
from export.ptefile.find import resolve_file, resolve_name
from export.ptefile.reader import open_pte
from export.ptefile.weights import constant
from export.subprocess_call import Child

AT_ONCE = 16  # requests whose answers are kept together, for --resume
NEW_TOKENS = 256  # where a task does not say
A = TypeVar("A")
B = TypeVar("B")


@register_model("pocketphi")
class PocketphiLM(TemplateLM):
    """A `.pte` as the harness asks it; `parallel` processes share the requests, each with the file loaded."""

    def __init__(self, pte: str, parallel: int = 1, **unused: Any) -> None:  # batch_size, device … of the command
        super().__init__()
        self.path, self.parallel = resolve_file(pte), int(parallel)
        opened = open_pte(self.path)
        self.max_length = constant(opened, "get_max_context_len")
        self._prefix = constant(opened, "get_bos_id")
        self._folder = folder_of(self.path)
        self._words = load_tokenizer(find_tokenizer(self._folder))

    @property
    def eot_token_id(self) -> int:
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        return str(self._folder)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._words.encode(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if not add_generation_prompt:
            raise BadInput("a task that begins the answer itself cannot be asked by the chat template")
        return chat_prompt(self._folder, chat_history)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        # Those of one context one after another: it is fed once.
        order = sorted(range(len(requests)), key=lambda i: (requests[i][1], requests[i][2]))
        asked = [Continuation(tuple(requests[i][1]), tuple(requests[i][2])) for i in order]
        found: dict[int, tuple[float, bool]] = {}
        for i, answer in zip(order, self._answers(likelihoods, asked), strict=True):
            found[i] = answer
            if requests[i][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
        return [found[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        sums = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            windows = [(None, *make_disjoint_window(window)) for window in rolling]
            sums.append(sum(likely for likely, _ in self._loglikelihood_tokens(windows)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, sums[-1])
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        asked = []
        for request in requests:
            prompt, how = request.args
            if how.get("do_sample") and how.get("temperature", 1.0) > 0:
                raise BadInput(f"a task wants answers sampled ({how}), only greedy ones can be had")
            until = how.get("until") or []
            ends = tuple(filter(None, [until] if isinstance(until, str) else until))
            asked.append(Prompt(tuple(self.tok_encode(prompt)), ends, int(how.get("max_gen_toks", NEW_TOKENS))))
        found = []
        for request, answer in zip(requests, self._answers(texts, asked), strict=True):
            found.append(answer)
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return found

    def _answers(self, function: Callable[[Path, Sequence[A]], list[B]], asked: Sequence[A]) -> Iterator[B]:
        pieces = [asked[at : at + AT_ONCE] for at in range(0, len(asked), AT_ONCE)]
        if self.parallel == 1:
            for piece in pieces:
                yield from function(self.path, piece)
            return
        with ExitStack() as stack:
            children = [stack.enter_context(Child(function.__module__)) for _ in range(self.parallel)]
            started = [
                children[number % self.parallel].start(function, self.path, piece)
                for number, piece in enumerate(pieces)
            ]
            for answers in started:
                yield from answers.result()


def answer_tasks(
    models: Sequence[str],
    limit: int | None,
    save: bool,
    tasks: Sequence[str],
    include: str | None,
    chat: bool,
    resume: str | None,
    parallel: int,
) -> dict[str, Any]:
    """Name of each `.pte` -> the harness's results by task; see the flags of `export.evaluate`."""
    models = [resolve_name(name) for name in models]
    files = check_saving(models) if save else {}
    if parallel < 1:
        raise BadInput(f"--parallel must be at least 1, it is {parallel}")
    if include is not None and not Path(include).is_dir():
        raise BadInput(f"--include {include} is not a folder")
    manager = TaskManager(include_path=include)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise BadInput(f"lm-evaluation-harness has no task {unknown[0]!r}, --include DIR adds tasks of your own")
    results = {}
    for name in models:
        if not name.endswith(".pte"):
            raise BadInput(f"{name} is not a .pte, only those answer tasks here: lm_eval --model hf asks checkpoints")
        cache = None
        if resume is not None:
            os.makedirs(resume, exist_ok=True)
            cache = str(Path(resume) / sha256(Path(name))[:16])  # answers of another file are another's
        found = simple_evaluate(
            model=PocketphiLM(name, parallel),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            use_cache=cache,
            apply_chat_template=chat,
            log_samples=False,
            bootstrap_iters=1000,
        )
        assert found is not None  # as only on other ranks
        results[Path(name).name] = {
            key: found[key] for key in ("results", "n-samples", "versions", "n-shot") if key in found
        }
        if save:
            save_evaluation(files[name], tasks=tasks_part(found, version("lm_eval"), limit, chat))
    return results


def print_tasks(results: dict[str, Any]) -> None:
    """The harness's own table, for each file."""
    for name, found in results.items():
        print(f"{name}\n{make_table(found)}")


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
