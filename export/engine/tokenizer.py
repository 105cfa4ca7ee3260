"""The checkpoint's tokenizer as the phone will run it, its stop ids and its chat prompts.

Knows the three formats ExecuTorch's runner loads: Hugging Face tokenizer.json, SentencePiece, tiktoken.
Tokenizer.encode is the Python library of the format, set up to give the ids the runner gives (C++, ExecuTorch
1.5.1 with pytorch_tokenizers 1.5.0); check_tokenizer compares the two. Knows nothing of weights or graphs.

What the runner does, found by giving it every code point and a .pte that echoes the ids of its prompt:
- It loads the one file, never tokenizer_config.json, and guesses the eos id, often 0: the .pte must name the
  stop ids. It samples the first N logits, N being the number of entries in the file, not the highest id.
- Special tokens in a text become their ids, whoever wrote them (SentencePiece: never). num_bos above 0 turns
  the post_processor of a tokenizer.json on, and that is all; the other kinds prepend bos num_bos times.
- tokenizer.json: lstrip, rstrip and single_word of added tokens, truncation, padding, dropout are ignored; a
  pre-token in the vocabulary is taken whole, merges or not; a Split drops what its pattern leaves out; NFC is
  wrong, Metaspace does not load. With a lookahead in the pattern, as in Phi-4-mini's, U+180E is white space
  (PCRE2) and nothing else differs; without one white space is ASCII and letters are Unicode 15's (RE2).
- tiktoken: Llama 3's special tokens, and cl100k's pattern less its lookahead. SentencePiece: NUL ends a text.
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
from checkpoints.files import check_fetched, present

TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # by which a tokenizer is found, and *.tiktoken
COMPANIONS = ("tokenizer_config.json", "chat_template.jinja")  # what belongs to it

Kind = Literal["huggingface", "sentencepiece", "tiktoken"]

# The runner's default (tiktoken.h of pytorch_tokenizers), with RE2's ASCII meaning of \s spelled out.
TIKTOKEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\t\n\f\r \p{L}\p{N}]+[\r\n]*|[\t\n\f\r ]*[\r\n]+|[\t\n\f\r ]+"
)
TIKTOKEN_LINE = re.compile(rb"(\S+) (\d{1,9})\r?")

# What check_tokenizer compares: a character of every kind that some tokenizer treats in its own way.
PROBES = [
    "Hello, world! It's 1234567 o'clock; WE'LL say I'VE 3.14 done (a+b)/c <x>", "  two  spaces\tand\ttab   ",
    "line\nline\n\nCRLF\r\n\r\n  indented:\n\treturn {'k': [0x1F]}  # why\n", "café e\u0301 \u212b ﬁ ǅ ſ İ ½",
    "Привет, как дела? Ελληνικά 你好，世界。こんにちは 안녕하세요 \u1112\u1161 مرحبا שָׁלוֹם हिन्दी ไทย ١٢٣ Ⅻ",
    "👩\u200d💻👍🏽🇩🇪  nbsp\xa0\xa0x \u3000\u3000x\u2028x\u200bx\ufeffx \x00 \x0b\x1b[0m\x85\x7f", "",
]  # fmt: skip


@dataclass(frozen=True)
class Tokenizer:
    """One loaded tokenizer; ids are 0 to vocab_size - 1, `special` the tokens no ordinary text makes."""

    kind: Kind
    path: Path
    vocab_size: int  # highest id + 1
    special: Mapping[str, int]
    notes: tuple[str, ...]  # sentences on where the runner's ids may not be those of the training
    _encode: Callable[[str], list[int]] = field(repr=False)
    _decode: Callable[[list[int]], str] = field(repr=False)
    _spelled: Callable[[int], str | bytes | None] = field(repr=False)  # a token as the file has it

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as the runner computes them with num_bos 0; BadInput for unpaired surrogates."""
        try:
            text.encode()
        except UnicodeEncodeError as problem:
            raise BadInput(f"the text has an unpaired surrogate at character {problem.start}") from None
        return self._encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included (SentencePiece: left out); unknown ids are left out."""
        return self._decode([i for i in ids if 0 <= i < self.vocab_size])

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for, which may be part of a character; empty for an id that is none."""
        spelled = self._spelled(token) if 0 <= token < self.vocab_size else b""
        return spelled if isinstance(spelled, bytes) else (spelled or "").encode()

    def token_id(self, text: str) -> int | None:
        """Id of the special token `text`, None if it is not one."""
        return self.special.get(text)


def find_tokenizer(folder: Path) -> Path:
    """The tokenizer of a checkpoint: tokenizer.json, else tokenizer.model, else the first *.tiktoken."""
    for path in (*(folder / name for name in TOKENIZERS), *sorted(folder.glob("*.tiktoken"))):
        if present(path):
            return path
    if all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise BadInput(
            f"{folder} has vocab.json and merges.txt and no tokenizer.json: transformers makes one, by "
            f"AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    raise BadInput(f"{folder} has no tokenizer.json, no tokenizer.model and no *.tiktoken")


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer file, its format told by its content; BadInput if it is damaged or none of these."""
    kind, data = _read(path)
    if kind == "huggingface":
        return _huggingface(path)
    return _tiktoken(path, data) if kind == "tiktoken" else _sentencepiece(path, data)


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> tuple[str, ...]:
    """Raise BadInput unless the model and the phone can use `tokenizer`; returns sentences worth telling.

    Every id must be below the model's vocab_size; eos ids must be special tokens; the runner must load the file,
    sample far enough for each eos, and agree with Tokenizer.encode on PROBES and special tokens.
    """
    path, size, notes = tokenizer.path, tokenizer.vocab_size, list(tokenizer.notes)
    if not config.vocab_size // 2 <= size <= config.vocab_size:
        raise BadInput(f"{path} has {size} ids, {config.path} has vocab_size {config.vocab_size}")
    if size < config.vocab_size:
        notes.append(f"{path.name} has {size} ids, the model {config.vocab_size}: the rest is padding")
    sampled = _runner(path).vocab_size()
    if config.bos_token_id is not None and config.bos_token_id not in tokenizer.special.values():
        notes.append(f"{config.path}: bos_token_id is {config.bos_token_id}, no special token of {path.name}")
    for token in config.eos_token_ids:
        place = f"{config.path} or generation_config.json beside it: eos_token_id is {token}"
        if token not in tokenizer.special.values():
            raise BadInput(
                f"{place}, no special token of {path} of {size} ids; --eos-ids takes others in their place"
            )
        if token >= sampled:
            raise BadInput(f"{place}, but the phone samples {sampled} ids of {path}")
    for probe in [*PROBES, " ".join(f"{text}x\n {text}" for text in tokenizer.special)]:
        ours, theirs = tokenizer.encode(probe), runner_ids(path, probe)
        if ours != theirs:
            both = f"{len(ours)} ids {reprlib.repr(ours)}, on the phone {len(theirs)}, {reprlib.repr(theirs)}"
            raise BadInput(f"{path} cannot be used: {probe!r:.90} has {both}")
    return tuple(notes)


def stop_ids(tokenizer: Tokenizer, config: ModelConfig, folder: Path) -> tuple[int, ...]:
    """Ids that end generation: <|end|>, the model's eos ids, tokenizer_config.json's eos, <|endoftext|>."""
    names = [named_tokens(read_settings(folder)).get("eos_token", ""), "<|endoftext|>"]
    found = [tokenizer.token_id("<|end|>"), *config.eos_token_ids, *map(tokenizer.token_id, names)]
    if not (stops := tuple(dict.fromkeys(i for i in found if i is not None))):
        raise BadInput(f"{config.path} names no eos_token_id and {tokenizer.path} has no <|end|>")
    return stops


def runner_ids(path: Path, text: str) -> list[int]:
    """Ids the runner computes of `text` with num_bos 0 and num_eos 0; `path` is read once per process."""
    try:
        return list(_runner(path).encode(text))
    except (RuntimeError, TypeError):
        raise BadInput(f"the phone's tokenizer cannot encode {text!r:.90} with {path}") from None


@lru_cache(maxsize=4)
def _runner(path: Path) -> Any:
    import pytorch_tokenizers as cpp  # prints when imported

    names = {"huggingface": "CppHFTokenizer", "sentencepiece": "CppSPTokenizer", "tiktoken": "CppTiktoken"}
    runner = getattr(cpp, names[_read(path)[0]])()
    try:
        runner.load(str(path))
    except RuntimeError:
        raise BadInput(f"{path} does not load in the phone's tokenizer, which printed why") from None
    return runner


def _read(path: Path) -> tuple[Kind, bytes]:
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None
    check_fetched(path, data)
    if data.lstrip().startswith(b"{"):
        return "huggingface", data
    return "tiktoken" if TIKTOKEN_LINE.fullmatch(data.split(b"\n", 1)[0]) else "sentencepiece", data


def _huggingface(path: Path) -> Tokenizer:
    raw = read_object(path)
    model, added = raw.get("model"), raw.get("added_tokens")
    if not isinstance(model, dict) or not isinstance(added, list):
        raise BadInput(f"{path} has no model or no added_tokens, it is no Hugging Face tokenizer.json")
    if model.get("type", "BPE") != "BPE":
        raise BadInput(f"{path}: model.type is {model['type']!r}, the phone's tokenizer reads only BPE")
    ignored = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    try:
        raw |= {"truncation": None, "padding": None, "model": model | {"dropout": None}}
        raw["added_tokens"] = [token | ignored for token in added]
        library = tokenizers.Tokenizer.from_str(json.dumps(raw))
    except BaseException as problem:  # a panic of the library is not an Exception
        if isinstance(problem, (KeyboardInterrupt, SystemExit)):
            raise
        raise BadInput(f"{path} is not a Hugging Face tokenizer: {problem}") from None
    special = {token["content"]: token["id"] for token in added}
    ids, notes = library.get_vocab(with_added_tokens=True), []
    if lost := special.keys() - ids.keys():
        raise BadInput(f"{path}: the library tokenizers makes no token of {min(lost)!r}")
    # The library numbers added tokens anew where their ids leave a gap, the phone does not.
    anew = {text: ids[text] for text, token in special.items() if ids[text] != token}
    if anew:
        first = min(anew, key=special.__getitem__)
        notes.append(
            f"{path.name}: ids leave gaps, so {first!r} is {special[first]} in the file and on the phone, "
            f"but {anew[first]} for transformers"
        )
    to_file = {number: special[text] for text, number in anew.items()}
    to_library = {token: number for number, token in to_file.items()}
    ids |= special
    if len(set(ids.values())) != len(ids):
        raise BadInput(f"{path}: two tokens have one id")
    if flagged := [token["content"] for token in added if any(token.get(flag) for flag in ignored)]:
        notes.append(f"{path.name}: the phone strips no spaces and looks for no whole word at {flagged[0]!r}")
    if not model.get("ignore_merges"):
        whole = [text for text in ids.keys() - special.keys() if len(library.model.tokenize(text)) > 1]
        if whole and not model.get("byte_fallback"):  # there <0x0A> is not text
            notes.append(f"{path.name}: the phone uses {len(whole)} tokens no merge makes, as {min(whole)!r}")
        library.model.ignore_merges = True
    return Tokenizer(
        "huggingface",
        path,
        max(ids.values(), default=-1) + 1,
        special,
        tuple(notes),
        lambda text: [to_file.get(i, i) for i in library.encode(text, add_special_tokens=False).ids],
        lambda ids: library.decode([to_library.get(i, i) for i in ids], skip_special_tokens=False),
        _speller({token: text for text, token in ids.items()}, set(special.values())),
    )


def _speller(texts: Mapping[int, str], special: set[int]) -> Callable[[int], str | bytes | None]:
    """Bytes of a token of tokenizer.json, which has GPT-2's stand-ins for bytes, or SentencePiece's for spaces."""
    stand_ins = {stand_in: byte for byte, stand_in in _gpt2_stand_ins().items()}
    bytewise = all(char in stand_ins for token, text in texts.items() if token not in special for char in text)

    def spelled(token: int) -> str | bytes | None:
        text = texts.get(token)
        if text is None or token in special:
            return text
        return bytes(stand_ins[char] for char in text) if bytewise else _piece(text)

    return spelled


def _gpt2_stand_ins() -> dict[int, str]:
    """Byte -> the printable character that stands for it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}


def _piece(text: str) -> str | bytes:
    """What a piece of SentencePiece stands for."""
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", text):
        return bytes.fromhex(byte[1])
    return text.replace("\u2581", " ")


def _sentencepiece(path: Path, data: bytes) -> Tokenizer:
    library = sentencepiece.SentencePieceProcessor()
    try:
        library.LoadFromSerializedProto(data)
    except RuntimeError:
        kinds = "no whole Hugging Face tokenizer.json, SentencePiece model or tiktoken file"
        raise BadInput(f"{path} ({len(data)} bytes) is {kinds}") from None
    size = library.get_piece_size()
    special = {library.id_to_piece(i): i for i in range(size) if library.is_control(i)}
    return Tokenizer(
        "sentencepiece",
        path,
        size,
        special,
        (),
        lambda text: library.encode(text.split("\0", 1)[0]),
        library.decode,
        lambda token: _piece(library.id_to_piece(token)),
    )


def _tiktoken(path: Path, data: bytes) -> Tokenizer:
    ranks: dict[bytes, int] = {}
    lines = data.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            token, rank = TIKTOKEN_LINE.fullmatch(line).groups()  # type: ignore[union-attr]
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (AttributeError, binascii.Error):
            raise BadInput(f"{path}: line {number} is not base64, a space and a rank: {line!r:.60}") from None
    if missing := set(range(len(lines))) - set(ranks.values()):
        raise BadInput(f"{path} has {len(lines)} lines, {len(ranks)} tokens and none of rank {min(missing)}")
    if missing := {byte for byte in range(256) if bytes([byte]) not in ranks}:
        raise BadInput(f"{path} has {256 - len(missing)} of 256 single bytes, not 0x{min(missing):02x}")
    special = {_runner(path).decode(i): i for i in range(len(ranks), _runner(path).vocab_size())}
    bpe = tiktoken.Encoding(path.name, pat_str=TIKTOKEN_SPLIT, mergeable_ranks=ranks, special_tokens=special)
    note = f"{path.name}: the phone uses Llama 3's special tokens and splits white space in a way of its own"
    return Tokenizer(
        "tiktoken",
        path,
        bpe.n_vocab,
        special,
        (note,),
        lambda text: bpe.encode(text, allowed_special="all"),
        bpe.decode,
        bpe.decode_single_token_bytes,
    )


def read_settings(folder: Path) -> dict[str, Any]:
    return read_object(path) if present(path := folder / "tokenizer_config.json") else {}


def named_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """bos_token, eos_token and so on of tokenizer_config.json, where they are strings or objects."""
    named = {key: value for key, value in settings.items() if key.endswith("_token")}
    plain = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: value for key, value in plain.items() if isinstance(value, str)}
