"""Answers a prompt with pictures and sound: as `generation`, but by a conversation where that has upstream's runner.

The `TextLLMRunner` of the executorch wheel (1.5.1) takes text alone, and its `MultimodalRunner` neither switches
adapters nor takes crops of a picture: the same runtime is driven by `Conversation` instead, with our sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.engine.chat_template import chat_prompt
from export.engine.conversation import Choosing, Piece, open_conversation
from export.engine.generation import Generation, Request, Stats, most_tokens, opened, rate, run_ours, turns
from export.engine.media_prompt import MediaPrompt, OnEncoding, check_room, check_takes, take_media, with_media
from export.engine.memory import own_memory, trim
from export.engine.runner import Facts
from export.engine.tokenizer import Tokenizer
from export.media.settings import MediaFacts


def answer_media(
    path: Path,
    tokenizer_path: Path | None,
    request: Request,
    on_text: Callable[[str], object],
    on_encoding: OnEncoding = lambda done, of: None,
) -> Generation:
    """As `generation.answer`; pictures and sounds stand before the text, or where that says `<|image_1|>`.

    BadInput also for files of them that cannot be read, what the `.pte` does not take, and what is too much for the
    context, all before anything is encoded.
    """
    tokenizer_path, facts, tokenizer = opened(path, tokenizer_path, request.raw)
    check_takes([kind for kind, _ in request.media], facts.media, str(path))
    parts = [*_read(request, facts.media), {"type": "text", "text": request.prompt}]
    if request.engine == "ours":
        prompt = _prompt(path, tokenizer_path.parent, facts, tokenizer, request, parts)
        limit = most_tokens(request, facts.context - len(prompt.ids))
        return run_ours(path, tokenizer, prompt.ids, limit, request, on_text, prompt, on_encoding)
    return _run(path, tokenizer_path, request, parts, on_text, on_encoding)


def _read(request: Request, media: MediaFacts) -> list[dict[str, Any]]:
    """The files as parts of a message."""
    parts: list[dict[str, Any]] = []
    for kind, path in request.media:
        if kind == "image":
            from export.media.picture_files import read_picture  # needs the extra

            parts.append({"type": kind, kind: read_picture(path)})
        else:
            from export.media.sound_files import read_sound  # needs the extra

            assert media.audio is not None
            parts.append({"type": kind, kind: read_sound(path, media.audio)})
    return parts


def _prompt(
    path: Path, folder: Path, facts: Facts, tokenizer: Tokenizer, request: Request, parts: list[dict[str, Any]]
) -> MediaPrompt:
    placed = take_media(turns(request.system, parts), facts.media, str(path))
    text = placed.messages[-1]["content"] if request.raw else chat_prompt(folder, placed.messages)
    prompt = with_media(text, placed, tokenizer.encode, facts.media)
    check_room(prompt, facts.context, facts)
    return prompt


def _run(
    path: Path,
    tokenizer_path: Path,
    request: Request,
    parts: list[dict[str, Any]],
    on_text: Callable[[str], object],
    on_encoding: OnEncoding,
) -> Generation:
    trim()
    before = own_memory().private_dirty
    with open_conversation(path, engine="wheel", tokenizer=tokenizer_path) as talk:
        loaded = talk.feeder.load_ms
        choosing = Choosing(request.max_new_tokens, request.temperature)

        def on_piece(piece: Piece) -> None:
            on_text(piece.text)

        if request.raw:
            reply = talk.complete(parts, choosing, on_piece, on_encoding=on_encoding)
        else:
            messages = turns(request.system, parts)
            reply = talk.reply(messages, choosing, on_piece=on_piece, on_encoding=on_encoding)
        memory = own_memory()
        lately = talk.feeder.load_ms - loaded
    stats = Stats(
        reply.prompt_tokens,
        reply.new_tokens,
        round(loaded + lately),
        round(reply.first_token_ms - lately),
        rate(reply.prompt_tokens, reply.prefill_ms),
        rate(reply.new_tokens - 1, reply.decode_ms),
        memory.peak_resident,
        memory.private_dirty,
        max(0, memory.private_dirty - before),
        mode=reply.mode,
        media=reply.media,
    )
    return Generation(reply.text, reply.token_ids, reply.end == "stop", stats)
