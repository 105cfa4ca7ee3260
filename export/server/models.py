"""Files as models of a server: their names, and for each as many conversations as it answers requests at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.engine.chat_template import chat_prompt
from export.engine.conversation import Conversation, open_conversation
from export.engine.feeder import EngineName, packed_folder
from export.engine.media_prompt import check_room, take_media, with_media
from export.engine.runner import Facts
from export.manifest import own_manifest
from export.media.settings import TEXT_ONLY, MediaFacts
from export.server.errors import Refused
from export.server.slots import Slots

TOO_LONG = "context_length_exceeded"


@dataclass(frozen=True)
class Prompt:
    """A chat as a conversation goes on from it."""

    ids: list[int]  # those of pictures and sound below zero
    content: list[int] | list[dict[str, Any]]  # for `Conversation.complete`


@dataclass
class Model:
    """A `.pte` that is served."""

    name: str
    path: Path
    slots: Slots[Conversation]
    threads: ThreadPoolExecutor  # one for each conversation: a reply blocks
    fingerprint: str  # changes with the file
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970

    @property
    def context(self) -> int:
        """Tokens."""
        return self.slots.conversations[0].context

    @property
    def media(self) -> MediaFacts:
        """What it takes beside text."""
        return self.slots.conversations[0].media

    @property
    def modalities(self) -> list[str]:
        """What a message may have in it."""
        return ["text", *(["image"] if self.media.image else []), *(["audio"] if self.media.audio else [])]

    def prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> Prompt:
        """Of a chat; Refused where it leaves no room for an answer. Nothing is encoded."""
        tokenizer = self.slots.conversations[0].tokenizer
        if self.media == TEXT_ONLY:
            ids = self._fitting(tokenizer.encode(chat_prompt(tokenizer.path.parent, messages, tools)))
            return Prompt(ids, ids)
        placed = take_media(messages, self.media, self.name)
        text = chat_prompt(tokenizer.path.parent, placed.messages, tools)
        found = with_media(text, placed, tokenizer.encode, self.media)
        try:
            check_room(found, self.context, Facts(self.context, None, frozenset(), self.media))
        except BadInput as problem:
            raise Refused(400, str(problem), code=TOO_LONG) from None
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        parts += [{"type": "image", "image": pixels} for pixels in placed.images]
        parts += [{"type": "audio", "audio": sound} for sound in placed.audios]
        return Prompt(found.ids, parts)

    def text_ids(self, prompt: str | list[int]) -> list[int]:
        """Of a text to go on from; Refused where it leaves no room for an answer."""
        tokenizer = self.slots.conversations[0].tokenizer
        return self._fitting(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)

    def _fitting(self, ids: list[int]) -> list[int]:
        if len(ids) < self.context:
            return ids
        raise Refused(
            400,
            f"the prompt has {len(ids)} tokens, the context of {self.name} is {self.context}, answer included",
            code=TOO_LONG,
        )

    def close(self) -> None:
        """End what is running and free everything."""
        for conversation in self.slots.conversations:
            conversation.cancel()
        self.threads.shutdown()
        for conversation in self.slots.conversations:
            conversation.close()


Models = Mapping[str, Model]


def find_model(models: Models, name: str | None) -> Model:
    """The model of a request; without a name the only one there is."""
    if name is None and len(models) == 1:
        return next(iter(models.values()))
    if name is None:
        raise Refused(400, f"model is missing: it is one of {', '.join(models)}", param="model")
    if name not in models:
        known = ", ".join(models)
        raise Refused(
            404, f"there is no model {name!r:.200} here, only {known}", param="model", code="model_not_found"
        )
    return models[name]


def name_models(files: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """What each file is called: by `names` in the same order, else by its own name without .pte."""
    if names and len(names) != len(files):
        raise BadInput(f"--served-model-name is given {len(names)} times for {len(files)} files")
    found: dict[str, Path] = {}
    for name, path in zip(names or [path.stem for path in files], files, strict=True):
        if not name:
            raise BadInput(f"the name of {path} is empty")
        if name in found:
            raise BadInput(f"{found[name]} and {path} would both be called {name}: --served-model-name names them")
        found[name] = path
    return found


def opener(
    engine: EngineName | None, packed: Path | None, threads: int, context: int | None, tokenizer: Path | None
) -> Callable[[Path], Conversation]:
    """What loads a file as these options say; without `packed`, packed weights lie where those of chats do."""
    if packed is None and engine != "wheel":
        packed = packed_folder(None)

    def open_one(path: Path) -> Conversation:
        return open_conversation(
            path, engine=engine, packed=packed, threads=threads, context=context, tokenizer=tokenizer
        )

    return open_one


def open_models(
    files: Mapping[str, Path],
    parallel: int,
    max_queue: int,
    open_one: Callable[[Path], Conversation],
    progress: Callable[[str], None] = lambda step: None,
) -> dict[str, Model]:
    """Load every file `parallel` times; with our engine the weights are in memory once."""
    models: dict[str, Model] = {}
    with ExitStack() as undo:
        for name, path in files.items():
            conversations = []
            for number in range(parallel):
                progress(f"loading {name}" + (f", conversation {number + 1} of {parallel}" if parallel > 1 else ""))
                conversations.append(open_one(path))
                undo.callback(conversations[-1].close)
            check_media(conversations[0].media)
            with suppress(BadInput):  # of what answers a first chat slowly: transformers is imported; told when asked
                chat_prompt(conversations[0].tokenizer.path.parent, [{"role": "user", "content": ""}])
            threads = ThreadPoolExecutor(parallel, thread_name_prefix=f"answers-{name}")
            models[name] = Model(name, path, Slots(conversations, max_queue), threads, fingerprint(path))
        undo.pop_all()
    return models


def check_media(media: MediaFacts) -> None:
    """Raise BadInput where packages are missing that read what a file takes: told now, and not to who sends some."""
    if media.image:
        import_module("export.media.picture_files")
    if media.audio:
        import_module("export.media.sound_files")


def fingerprint(path: Path) -> str:
    """Some digits that stand for a file: of its manifest's sha256, else of its size and date."""
    with suppress(KeyError, TypeError):
        return f"fp_{(own_manifest(path) or {})['file']['sha256'][:12]}"
    facts = path.stat()
    return f"fp_{sha256(f'{facts.st_size} {facts.st_mtime_ns}'.encode()).hexdigest()[:12]}"
