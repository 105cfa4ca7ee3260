"""The checkpoint's tokenizer as the phone will run it, its stop ids and its chat prompts.

Knows the three formats ExecuTorch's runner loads: tokenizer.json of Hugging Face, SentencePiece, tiktoken.
Tokenizer.encode is the Python library of the format, set up to give the ids the runner gives (C++, ExecuTorch
1.5.1 with pytorch_tokenizers 1.5.0); check_tokenizer compares the two. Knows nothing of weights or graphs.

What the runner does, found by feeding it every code point, and by a .pte that echoes the prompt's ids:
- It loads the file alone, never tokenizer_config.json: its own guess of the eos id is often 0, so the .pte has to
  name the stop ids. They are not looked at for the first generated token. Only the first N logits are sampled,
  N being the number of entries in the file, not the highest id.
- Special tokens in the text become their ids, whatever the caller meant (SentencePiece: never). num_bos of 1 or
  more only switches a tokenizer.json's post_processor on, and bos goes in front num_bos times for the others.
- tokenizer.json: lstrip, rstrip and single_word of added tokens are ignored, truncation, padding and dropout too; a
  pre-token that is in the vocabulary is taken whole even where the merges do not reach it; NFC and a Split that
  does not cover the text are wrong; Metaspace and most normalizers do not load. U+180E is white space (PCRE2) in
  a pattern with a lookahead, as Phi-4-mini's; in one without, \\s is ASCII only and \\p{L} that of Unicode 15 (RE2).
- tiktoken: always Llama 3's special tokens and cl100k's pattern without its lookahead, in RE2's dialect; letters
  new in Unicode 16 are not letters. An empty file loads as a tokenizer of 256 specials.
- SentencePiece: text ends at the first NUL. Byte pieces other than newline are printed as <0xE6>.
"""

import base64
import binascii
import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import tiktoken
import tokenizers

from checkpoints.config import ModelConfig, read_object
from checkpoints.errors import BadInput

Kind = Literal["huggingface", "sentencepiece", "tiktoken"]

# The runner's default (tiktoken.h of pytorch_tokenizers), with RE2's ASCII meaning of \s spelled out.
TIKTOKEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\t\n\f\r \p{L}\p{N}]+[\r\n]*|[\t\n\f\r ]*[\r\n]+|[\t\n\f\r ]+"
)
TIKTOKEN_SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
    "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{n}|>" for n in range(2, 247)),
]  # fmt: skip
TIKTOKEN_LINE = re.compile(rb"(\S+) (\d{1,9})\r?")

# White_Space of Unicode: what lstrip and rstrip of an added token remove (\s of Python has four more).
SPACES = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"

# What check_tokenizer compares; every line has met a tokenizer that the runner reads differently.
PROBES = [
    "Hello, world! It's 1234567 o'clock; WE'LL say I'VE 3.14 done (a+b)/c <x>", "  two  spaces\tand a\ttab   ",
    "line\nline\n\nCRLF\r\n\r\n  indented:\n\treturn {'k': [0x1F]}  # why\n", "café naïve e\u0301 \u212b ﬁ ǅ ſ İ",
    "Привет, как дела? Ελληνικά 你好，世界。こんにちは 안녕하세요 \u1112\u1161", "مرحبا שָׁלוֹם हिन्दी ไทย ١٢٣ Ⅻ ½",
    "👩\u200d💻👍🏽🇩🇪 🏳️\u200d🌈", "nbsp\xa0\xa0x \u3000\u3000x\u2028x\u200bx\ufeffx \x00 \x0b\x1b[0m\x85\x7f", "",
]  # fmt: skip


@dataclass(frozen=True)
class Tokenizer:
    """One loaded tokenizer; ids run from 0 to vocab_size - 1."""

    kind: Kind
    path: Path
    vocab_size: int  # highest id + 1
    special: Mapping[str, int]  # added, control or special tokens: text -> id
    notes: tuple[str, ...]  # sentences on where the runner's ids are not those the checkpoint was trained with
    _encode: Callable[[str], list[int]] = field(repr=False)
    _decode: Callable[[list[int]], str] = field(repr=False)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as the runner computes them with num_bos 0; BadInput for unpaired surrogates."""
        return self._encode(_valid(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` with the special tokens (SentencePiece: without); ids not in the tokenizer are skipped."""
        return self._decode([i for i in ids if 0 <= i < self.vocab_size])

    def token_id(self, text: str) -> int | None:
        """Id of the special token `text`, None if there is no such special token."""
        return self.special.get(text)


def find_tokenizer(folder: Path) -> Path:
    """The tokenizer file of a checkpoint folder: tokenizer.json, else tokenizer.model, else one *.tiktoken."""
    named = [folder / "tokenizer.json", folder / "tokenizer.model", *sorted(folder.glob("*.tiktoken"))]
    found = [path for path in named if path.is_file()]
    if not found:
        raise BadInput(f"{folder} has no tokenizer.json, no tokenizer.model and no *.tiktoken")
    if found[0].suffix == ".tiktoken" and len(found) > 1:
        raise BadInput(f"{folder} has {len(found)} *.tiktoken files, {found[0].name} and {found[1].name}, not one")
    return found[0]


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer file, its format told by its content; BadInput if it is none of the three or damaged."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None
    if data.lstrip().startswith(b"{"):
        return _huggingface(path)
    if TIKTOKEN_LINE.fullmatch(data.split(b"\n", 1)[0]):
        return _tiktoken(path, data)
    return _sentencepiece(path, data)


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> tuple[str, ...]:
    """Raise BadInput unless the model and the phone can use `tokenizer`; returns sentences worth telling.

    Every id must be below the model's vocab_size, bos and eos must be special tokens, and the runner must load
    the file, give the ids of Tokenizer.encode on PROBES and be able to sample every eos.
    """
    path, size, notes = tokenizer.path, tokenizer.vocab_size, list(tokenizer.notes)
    if not config.vocab_size // 2 <= size <= config.vocab_size:
        raise BadInput(f"{path} has {size} ids, {config.path} has vocab_size {config.vocab_size}")
    if size < config.vocab_size:
        notes.append(f"{path.name} has {size} ids, the last {config.vocab_size - size} of the model are padding")
    ends = [("eos_token_id", i) for i in config.eos_token_ids]
    for key, token in [("bos_token_id", config.bos_token_id), *ends]:
        if token is not None and token >= size:
            raise BadInput(f"{config.path}: {key} is {token}, {path} has ids up to {size - 1}")
        if token is not None and token not in tokenizer.special.values():
            raise BadInput(f"{config.path}: {key} is {token}, which {path} does not have as a special token")
    sampled = _runner(path, tokenizer.kind).vocab_size()
    for key, token in ends:
        if token >= sampled:
            raise BadInput(f"{config.path}: {key} is {token}, the phone samples the first {sampled} ids of {path}")
    for probe in [*PROBES, " ".join(f"{text}x {text}\n" for text in tokenizer.special)]:
        python, phone = tokenizer.encode(probe), runner_ids(path, probe, tokenizer.kind)
        if python != phone:
            at = next((i for i, (a, b) in enumerate(zip(python, phone, strict=False)) if a != b), len(phone))
            there = [ids[at] if at < len(ids) else None for ids in (python, phone)]
            raise BadInput(f"{path}: token {at} of {probe!r:.80} is id {there[0]}, on the phone it is id {there[1]}")
    return tuple(notes)


def stop_ids(tokenizer: Tokenizer, config: ModelConfig, folder: Path) -> tuple[int, ...]:
    """Ids that end generation: <|end|>, the checkpoint's eos ids, tokenizer_config.json's eos, <|endoftext|>."""
    found = [tokenizer.token_id("<|end|>"), *config.eos_token_ids]
    settings = _settings(folder)
    if (name := _special_tokens(settings).get("eos_token")) is not None:
        if (token := tokenizer.token_id(name)) is None:
            place = folder / "tokenizer_config.json"
            raise BadInput(f"{place}: eos_token is {name!r}, which {tokenizer.path} does not have as a special token")
        found.append(token)
    found.append(tokenizer.token_id("<|endoftext|>"))
    if not (stops := tuple(dict.fromkeys(i for i in found if i is not None))):
        raise BadInput(f"{config.path} names no eos_token_id and {tokenizer.path} has neither <|end|> nor <|endoftext|>")
    return stops


def chat_prompt(folder: Path, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
    """The prompt text of a conversation, to be given to the runner as it is; `folder` as of a checkpoint or a .pte.

    Rendered by transformers' sandboxed Jinja from chat_template.jinja, else from tokenizer_config.json (as a
    folder's file it may be given itself), else in Phi-4-mini's format. White space that tokenizer.json's added
    tokens strip is taken out, since the runner does not strip it. Special tokens in a message stay special.
    """
    folder = folder.parent if folder.is_file() else folder
    for at, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise BadInput(f"messages[{at}] must have a string {key!r}, it is {reprlib.repr(message)}")
    settings = _settings(folder)
    template = _chat_template(folder, settings)
    if template is None:
        text = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)
        text += "<|assistant|>" if add_generation_prompt else ""
    else:
        from transformers.utils.chat_template_utils import render_jinja_template  # slow to import

        try:
            (text,), _ = render_jinja_template(
                [list(messages)],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **_special_tokens(settings),
            )
        except Exception as problem:  # the template is a stranger's program: it may raise anything
            reason = f"{type(problem).__name__}: {problem}"
            raise BadInput(f"{folder}: the chat template cannot be rendered: {reason}") from None
    return _strip_spaces(folder, text)


def runner_ids(path: Path, text: str, kind: Kind | None = None) -> list[int]:
    """Ids the phone's runner computes from `text` with num_bos 0 and num_eos 0; `kind` is found out if None."""
    runner = _runner(path, kind or load_tokenizer(path).kind)
    try:
        return list(runner.encode(_valid(text)))
    except RuntimeError as problem:
        raise BadInput(f"the phone's tokenizer cannot encode {text!r:.80} with {path}: {problem}") from None


def _huggingface(path: Path) -> Tokenizer:
    raw = read_object(path)
    model, added = raw.get("model"), raw.get("added_tokens")
    if not isinstance(model, dict):
        raise BadInput(f"{path} has no model: it is not a Hugging Face tokenizer.json")
    if model.get("type", "BPE") != "BPE":
        raise BadInput(f"{path}: model.type is {model['type']!r}, the phone's tokenizer reads BPE only")
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise BadInput(f"{path}: added_tokens is not a list of objects, the phone's tokenizer needs one")
    ignored = ("lstrip", "rstrip", "single_word")
    flagged = [token.get("content") for token in added if any(token.get(flag) for flag in ignored)]
    plain = [token | dict.fromkeys(ignored, False) for token in added]
    changed = raw | {"truncation": None, "padding": None, "added_tokens": plain, "model": model | {"dropout": None}}
    try:
        library = tokenizers.Tokenizer.from_str(json.dumps(changed))
    except BaseException as problem:  # Rust's panics are not Exceptions
        if isinstance(problem, (KeyboardInterrupt, SystemExit)):
            raise
        raise BadInput(f"{path} is not a Hugging Face tokenizer: {problem}") from None
    vocabulary = library.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise BadInput(f"{path}: model.vocab is empty")
    for token in added:
        # The library renumbers added tokens that leave a gap; the runner takes the file at its word.
        if vocabulary.get(token["content"]) != token["id"]:
            found = vocabulary.get(token["content"])
            raise BadInput(f"{path}: added token {token['content']!r} has id {token['id']}, but is number {found}")

    notes = []
    if flagged:
        some = reprlib.repr(flagged)
        notes.append(f"{path.name}: the phone does not strip white space next to {some} nor ask for whole words")
    if not model.get("ignore_merges"):
        pieces = library.get_vocab(with_added_tokens=False)
        whole = [text for text, i in pieces.items() if [piece.id for piece in library.model.tokenize(text)] != [i]]
        whole = [text for text in whole if text not in {token["content"] for token in added}]
        if whole:
            notes.append(f"{path.name}: the phone takes {len(whole)} tokens whole that no merge makes, as {whole[0]!r}")
        library.model.ignore_merges = True
    for pattern in _patterns([raw.get("normalizer"), raw.get("pre_tokenizer")]):
        if "\\s" in pattern and not re.search(r"\(\?<?[=!]", pattern):
            notes.append(f"{path.name}: on the phone \\s is ASCII only in the pattern {pattern!r:.60}")
    return Tokenizer(
        kind="huggingface",
        path=path,
        vocab_size=max(vocabulary.values()) + 1,
        special={token["content"]: token["id"] for token in added},
        notes=tuple(notes),
        _encode=lambda text: library.encode(text, add_special_tokens=False).ids,
        _decode=lambda ids: library.decode(ids, skip_special_tokens=False),
    )


def _sentencepiece(path: Path, data: bytes) -> Tokenizer:
    library = sentencepiece.SentencePieceProcessor()
    try:
        library.LoadFromSerializedProto(data)
    except RuntimeError:
        kinds = "a Hugging Face tokenizer.json, a SentencePiece model nor a tiktoken file"
        raise BadInput(f"{path} ({len(data)} bytes) is neither {kinds}, or is cut short") from None
    size = library.get_piece_size()
    return Tokenizer(
        kind="sentencepiece",
        path=path,
        vocab_size=size,
        special={library.id_to_piece(i): i for i in range(size) if library.is_control(i)},
        notes=(),
        _encode=lambda text: library.encode(text.split("\0", 1)[0]),
        _decode=library.decode,
    )


def _tiktoken(path: Path, data: bytes) -> Tokenizer:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        if (match := TIKTOKEN_LINE.fullmatch(line)) is None:
            raise BadInput(f"{path}: line {number} is not base64, a space and a rank: {reprlib.repr(line)}")
        try:
            token = base64.b64decode(match[1], validate=True)
        except binascii.Error as problem:
            raise BadInput(f"{path}: line {number} is not base64: {problem}") from None
        if token in ranks:
            raise BadInput(f"{path}: line {number} has the token of rank {ranks[token]} again, as rank {int(match[2])}")
        ranks[token] = int(match[2])
    for expected, rank in enumerate(sorted(ranks.values())):
        if rank != expected:
            raise BadInput(f"{path}: rank {min(rank, expected)} is {'missing' if rank > expected else 'there twice'}")
    if absent := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise BadInput(f"{path} has {256 - len(absent)} of the 256 single bytes, 0x{absent[0]:02x} is missing")
    special = {text: len(ranks) + i for i, text in enumerate(TIKTOKEN_SPECIAL)}
    library = tiktoken.Encoding(
        path.name, pat_str=TIKTOKEN_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    note = f"{path.name}: the phone uses Llama 3's special tokens and splits white space unlike cl100k and o200k"
    return Tokenizer(
        kind="tiktoken",
        path=path,
        vocab_size=len(ranks) + len(special),
        special=special,
        notes=(note,),
        _encode=lambda text: library.encode(text, allowed_special="all"),
        _decode=library.decode,
    )


def _runner(path: Path, kind: Kind) -> Any:
    status = path.stat()
    return _load_runner(path, kind, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _load_runner(path: Path, kind: Kind, modified: int, size: int) -> Any:
    """The runner's tokenizer for `path`; time in ns and size in bytes only tell a changed file apart."""
    import pytorch_tokenizers  # prints when imported

    classes = {"huggingface": "CppHFTokenizer", "sentencepiece": "CppSPTokenizer", "tiktoken": "CppTiktoken"}
    runner = getattr(pytorch_tokenizers, classes[kind])()
    try:
        runner.load(str(path))
    except RuntimeError:
        version = pytorch_tokenizers.__version__
        raise BadInput(f"{path} does not load in the phone's tokenizer (pytorch_tokenizers {version})") from None
    return runner


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise BadInput(f"the text has an unpaired surrogate at character {problem.start}") from None
    return text


def _patterns(part: Any) -> list[str]:
    """Every regular expression inside a normalizer or pre_tokenizer of tokenizer.json."""
    if isinstance(part, dict):
        found = [part["Regex"]] if isinstance(part.get("Regex"), str) else []
        part = list(part.values())
    else:
        found = []
    return found + [pattern for child in part if isinstance(child, (dict, list)) for pattern in _patterns(child)]


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and their like, which tokenizer_config.json writes as strings or objects."""
    plain = {key: token["content"] if isinstance(token, dict) else token for key, token in settings.items() if key.endswith("_token")}
    return {key: token for key, token in plain.items() if isinstance(token, str)}
