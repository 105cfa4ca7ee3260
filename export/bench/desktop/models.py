"""What the desktop measures with: the wheel's C++ runner as phones configure it, and our own C++ engine.

Both load, answer greedily from an empty session and tell the phases of it. Knows nothing of repeats.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from checkpoints.errors import BadInput
from export.bench.contract import MEDIA

Tell = Callable[..., None]


@dataclass(frozen=True)
class Answer:
    """What is told of an answer."""

    counted: dict[str, Any]  # tokens, and the times between them
    measures: dict[str, float | None]  # by the names of contract.json
    told: dict[str, Any] = field(default_factory=dict)  # by the optional names of a repeat


class Model(Protocol):
    """A model that can be loaded again and again; leaving its `with` frees it."""

    load_ms: float
    packing: dict[str, str | None]  # of the last load, as a repeat holds it; empty where weights are in no file

    def __enter__(self) -> Model: ...
    def __exit__(self, *error: object) -> None: ...
    def load(self) -> None:
        """Load, in place of what was loaded before: never two are in memory."""

    def answer(self, ids: list[int], new_tokens: int, mode: str = "text") -> Answer:
        """Answer a prompt, in another mode than text after the standard picture or sound."""


class RunnerModel:
    """`TextLLMRunner`, with the XNNPACK options of the libraries that phones run.

    Those have the cache of packed weights on the heap; a file of them the runner has no option for.
    """

    packing: dict[str, str | None]

    def __init__(self, pte: Path, vocab_size: int, tell: Tell) -> None:
        from export.engine.phone_options import PHONE, set_options
        from export.engine.runner import import_runner, numbers_tokenizer

        self.module, self.pte, self.tell = import_runner(), pte, tell
        set_options(PHONE)
        self.load_ms, self.packing = 0.0, {}
        self.runner: Any = None
        self.folder = tempfile.TemporaryDirectory()
        self.numbers = Path(self.folder.name, "tokenizer.json")
        self.numbers.write_text(numbers_tokenizer(vocab_size))

    def __enter__(self) -> RunnerModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.runner = None
        self.folder.cleanup()

    def load(self) -> None:
        self.runner = None
        self.tell("phase", phase="load")
        # The runner loads when it is first used: one token in, one out, which is not measured.
        self.runner, took = self.module.TextLLMRunner(str(self.pte), str(self.numbers)), list[Any]()
        self.runner.generate("0 ", self._settings(1), None, took.append)
        self.load_ms = float(took[0].model_load_end_ms - took[0].model_load_start_ms)
        self.tell("phase", phase="idle")
        self.tell("loaded", load_ms=self.load_ms)

    def _settings(self, new_tokens: int) -> Any:
        return self.module.GenerationConfig(echo=False, max_new_tokens=new_tokens, temperature=0.0)

    def answer(self, ids: list[int], new_tokens: int, mode: str = "text") -> Answer:
        if mode != "text":
            raise BadInput(f"upstream's runner has no mode {mode}")
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
        return Answer(
            {
                "prompt_tokens": len(ids),
                "generated_tokens": len(stamps),
                "token_ms": [round(1e3 * (b - a), 4) for a, b in pairwise(stamps)],
            },
            {
                "load_ms": None,
                "time_to_first_token_ms": 1e3 * first_s,
                "prefill_tokens_per_s": len(ids) / first_s,
                "decode_tokens_per_s": (len(stamps) - 1) / decode_s if decode_s > 0 else None,
            },
        )


class OurModel:
    """`export/engine/cpp`, with its packed weights in a folder; goes on after stop tokens."""

    packing: dict[str, str | None]

    def __init__(self, pte: Path, packed: Path, draft_tokens: int, tell: Tell) -> None:
        from export.engine.native import NativeEngine

        self.pte, self.packed, self.draft_tokens, self.tell = pte, packed, draft_tokens, tell
        self.engine, self.load_ms, self.packing = NativeEngine(), 0.0, {}  # compiled here, before anything is timed
        self.sound_rate = 0

    def __enter__(self) -> OurModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()

    def load(self) -> None:
        from export.engine.native import Packing

        self.tell("phase", phase="load")
        loaded = self.engine.load(self.pte, self.packed)
        self.tell("phase", phase="idle")
        if self.draft_tokens and loaded.logits_positions == 1:
            raise BadInput(
                f"--draft-tokens {self.draft_tokens} needs a file that can check drafts: {self.pte} gives the logits "
                "of one token a step"
            )
        kind = {Packing.UNPACKED: "none", Packing.PACKED: "cold", Packing.REUSED: "warm"}[loaded.packing]
        self.sound_rate = loaded.sound_rate
        self.load_ms, self.packing = loaded.load_ms, {"packing": kind, "packing_note": loaded.packed_note or None}
        self.tell("loaded", load_ms=round(loaded.load_ms))

    def _encode(self, mode: str) -> tuple[list[int], dict[str, float | None]]:
        """Ids of the standard picture or sound, encoded anew, and how long that took."""
        if mode == "text":
            return [], {}
        media = standard(mode, self.sound_rate)
        self.engine.forget_media()
        self.tell("phase", phase="encode")
        encoded = (
            self.engine.picture(media) if mode == "vision" else self.engine.sound(media, self.sound_rate, "speech")
        )
        self.tell("phase", phase="encoded")
        return encoded.ids, {"encode_ms": encoded.prepare_ms + encoded.encode_ms}

    def answer(self, ids: list[int], new_tokens: int, mode: str = "text") -> Answer:
        from export.engine.native import Sampling

        count = 0

        def take(token: int) -> None:
            nonlocal count
            count += 1
            if count == 1:
                self.tell("phase", phase="decode")

        self.engine.release()  # else only what the last answer did not have in common would be computed
        media, encoding = self._encode(mode)
        ids = media + ids
        self.tell("phase", phase="prefill")
        sampling = Sampling(max_new_tokens=new_tokens, draft_tokens=self.draft_tokens, ignore_eos=True)
        found = self.engine.generate(ids, sampling, on_token=take)
        self.tell("phase", phase="idle")
        return Answer(
            {
                "prompt_tokens": len(ids),
                "generated_tokens": len(found.token_ids),
                "token_ms": [round(ms, 4) for ms in found.token_ms[1:]],
            },
            encoding
            | {
                "load_ms": None,
                "time_to_first_token_ms": found.first_token_ms,
                "prefill_tokens_per_s": 1e3 * len(ids) / found.prefill_ms,
                "decode_tokens_per_s": 1e3 * (len(found.token_ids) - 1) / found.decode_ms
                if found.decode_ms
                else None,
            },
            {"drafted_tokens": found.drafted_tokens, "accepted_tokens": found.accepted_tokens}
            | ({"media_tokens": len(media)} if media else {}),
        )


def standard(mode: str, rate: int) -> np.ndarray:
    """The picture, uint8 [height, width, 3], or the sound, float32 [n], that contract.json says."""
    from export.media.vectors import painted, tone

    if mode == "vision":
        return painted(MEDIA["width"], MEDIA["height"])
    return tone(rate, MEDIA["seconds"], MEDIA["hertz"], MEDIA["loudness"])
