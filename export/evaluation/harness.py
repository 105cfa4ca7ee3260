"""lm-evaluation-harness over a `.pte`: its model `pocketphi`, and tasks from `export.evaluate --tasks`.

`python -m export.evaluation.harness` is the harness's own command with that model registered:
`… --model pocketphi --model_args pte=FILE,parallel=2 --tasks NAME --include_path DIR`.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from checkpoints.cache import cache_folder
from checkpoints.errors import BadInput
from checkpoints.files import folder_of, sha256

try:
    import lm_eval.models  # noqa: F401  the harness's own, which it registers only where no other is registered yet
    from datasets import Dataset
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as problem:
    raise BadInput(f"tasks need the package lm-eval ({problem}): `uv sync --extra evaluate`") from None

from export.engine.chat_template import chat_prompt
from export.engine.native import compiler
from export.engine.tokenizer import find_tokenizer, load_tokenizer
from export.evaluation import answers, facts
from export.evaluation.answers import Continuation, Prompt, Shared, likelihoods, texts
from export.evaluation.control import permuted_labels
from export.evaluation.record import check_saving, save_evaluation, tasks_part
from export.progress import counting
from export.ptefile.find import resolve_file, resolve_name
from export.ptefile.reader import open_pte
from export.ptefile.weights import constant
from export.subprocess_call import Child, ChildDied

AT_ONCE = 16  # requests whose answers are kept together, for --resume
NEW_TOKENS = 256  # where a task does not say
A = TypeVar("A")
B = TypeVar("B")


@register_model("pocketphi")
class PocketphiLM(TemplateLM):
    """A `.pte` as the harness asks it; `parallel` processes share the requests, and where there is a C++ compiler the
    packed weights: our engine maps them from one file. Numbers are those of one process with the wheel's runtime.
    """

    def __init__(self, pte: str, parallel: int = 1, **unused: Any) -> None:  # batch_size, device … of the command
        super().__init__()
        self.path, self.parallel = resolve_file(pte), int(parallel)
        opened = open_pte(self.path)
        self.max_length = constant(opened, "get_max_context_len")
        self._prefix = constant(opened, "get_bos_id")
        self._folder = folder_of(self.path)
        self._words = load_tokenizer(find_tokenizer(self._folder))
        self._started = ExitStack()  # of the processes, until `close` or the end of this one
        self._shared: Shared | None = None
        self._children: list[Child] = []

    def close(self) -> None:
        """End the processes, and delete what they shared."""
        self._children = []
        self._started.close()

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

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)  # there is a bar of ours
        return found

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        found: dict[int, tuple[float, bool]] = {}
        asked = [Continuation(tuple(context), tuple(ids)) for _, context, ids in requests]
        for number, answer in self._answers("likelihoods", likelihoods, asked, lambda one: one.context + one.ids):
            found[number] = answer
            self.cache_hook.add_partial("loglikelihood", requests[number][0], answer)
        return [found[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        windows: list[Continuation] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                context, new = make_disjoint_window(window)
                windows.append(Continuation(tuple(context), tuple(new)))
                owners.append(number)
        sums, left = [0.0] * len(requests), Counter(owners)
        for window, (likely, _) in self._answers("rolling likelihoods", likelihoods, windows):
            number = owners[window]
            sums[number] += likely
            left[number] -= 1
            if not left[number]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, sums[number])
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        asked = []
        for request in requests:
            prompt, how = request.args
            if how.get("do_sample") and how.get("temperature", 1.0) > 0:
                raise BadInput(f"a task wants answers sampled ({how}), only greedy ones can be had")
            until = how.get("until") or []
            ends = tuple(filter(None, [until] if isinstance(until, str) else until))
            ids = tuple(self.tok_encode(prompt)) or (self.prefix_token_id,)
            asked.append(Prompt(ids, ends, int(how.get("max_gen_toks", NEW_TOKENS))))
        found: dict[int, str] = {}
        for number, answer in self._answers("answers", texts, asked, lambda one: one.ids):
            found[number] = answer
            self.cache_hook.add_partial("generate_until", requests[number].args, answer)
        return [found[number] for number in range(len(requests))]

    def _answers(
        self,
        what: str,
        function: Callable[[Path, Shared | None, Sequence[A]], list[B]],
        asked: Sequence[A],
        ids: Callable[[A], tuple[int, ...]] = lambda one: (),
    ) -> Iterator[tuple[int, B]]:
        """Number of each request and its answer, as they come.

        Requests are asked in the order of their `ids`, so that a common beginning is fed once, and each process has a
        stretch of that order.
        """
        order = sorted(range(len(asked)), key=lambda number: ids(asked[number]))
        share = -(-len(order) // self.parallel)
        with counting() as progress:
            done = 0
            for piece, answers in self._pieces(
                function, asked, [order[at : at + share] for at in range(0, len(order), share)]
            ):
                yield from zip(piece, answers, strict=True)
                done += len(piece)
                progress(f"{self.path.name}: {what}", done, len(asked))

    def _pieces(
        self,
        function: Callable[[Path, Shared | None, Sequence[A]], list[B]],
        asked: Sequence[A],
        shares: Sequence[Sequence[int]],
    ) -> Iterator[tuple[Sequence[int], list[B]]]:
        """Answers to AT_ONCE requests of a share at a time; each share has a process, this one where it is alone."""
        cut = [[share[at : at + AT_ONCE] for at in range(0, len(share), AT_ONCE)] for share in shares]
        if self.parallel == 1:
            for piece in chain(*cut):
                yield piece, function(self.path, None, [asked[number] for number in piece])
            return
        self._start()
        started = {
            child.start(function, self.path, self._shared, [asked[number] for number in piece]): piece
            for child, pieces in zip(self._children, cut, strict=False)
            for piece in pieces
        }
        for answered in as_completed(started):
            try:
                yield started[answered], answered.result()
            except ChildDied as problem:
                raise BadInput(f"{self.path}: a process that answers requests has ended ({problem})") from None

    def _start(self) -> None:
        """The processes, once."""
        if self._children:
            return
        if shutil.which(compiler()):
            folder = Path(self._started.enter_context(TemporaryDirectory(dir=cache_folder(), prefix="packed-")))
            self._shared = Shared(folder, max(1, torch.get_num_threads() // self.parallel))
        self._children = [self._started.enter_context(Child(answers.__name__)) for _ in range(self.parallel)]


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
    """Name of each `.pte` -> the harness's results by task, and a control of each with choices: `permuted_labels`.

    See the flags of `export.evaluate`.
    """
    models = [resolve_name(name) for name in models]
    for name in models:
        if not name.endswith(".pte"):
            raise BadInput(f"{name} is not a .pte, only those answer tasks here: lm_eval --model hf asks checkpoints")
    files = check_saving(models) if save else {}
    for flag, number in (("--parallel", parallel), ("--limit", limit)):
        if number is not None and number < 1:
            raise BadInput(f"{flag} must be at least 1, it is {number}")
    if include is not None and not Path(include).is_dir():
        raise BadInput(f"--include {include} is not a folder")
    manager = TaskManager(include_path=include)
    if unknown := [task for task in tasks if task != facts.NAME and not manager.match_tasks([task])]:
        raise BadInput(f"lm-evaluation-harness has no task {unknown[0]!r}, --include DIR adds tasks of your own")
    results = {}
    for name in models:
        cache = None
        if resume is not None:
            os.makedirs(resume, exist_ok=True)
            cache = str(Path(resume) / sha256(Path(name))[:16])  # answers of another file are another's
        with closing(PocketphiLM(name, parallel)) as model:
            found = simple_evaluate(
                model=model,
                tasks=[_facts(chat) if task == facts.NAME else task for task in tasks],
                task_manager=manager,
                limit=limit,
                use_cache=cache,
                apply_chat_template=chat,
                bootstrap_iters=1000,
            )
        assert found is not None  # as only on other ranks
        controls = {task: permuted_labels(samples) for task, samples in found["samples"].items()}
        found["controls"] = {task: asdict(control) for task, control in controls.items() if control}
        kept = ("results", "n-samples", "versions", "n-shot", "controls")
        results[Path(name).name] = {key: found[key] for key in kept if key in found}
        if save:
            save_evaluation(files[name], tasks=tasks_part(found, version("lm_eval"), limit, chat))
    return results


def _facts(chat: bool) -> ConfigurableTask:
    """The task of the house; a template ends where the answer begins, bare text with a space to come."""
    return ConfigurableTask(
        config={
            "task": facts.NAME,
            "custom_dataset": lambda **metadata: {"test": Dataset.from_list(facts.questions())},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
            "target_delimiter": "" if chat else " ",
            "metric_list": [{"metric": "acc"}],
            "metadata": {"version": 1.0},
        }
    )


def controls_passed(results: dict[str, Any]) -> bool:
    return all(control["passed"] for found in results.values() for control in found["controls"].values())


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
