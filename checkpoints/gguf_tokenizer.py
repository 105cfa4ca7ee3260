"""The tokenizer of a GGUF file's metadata as a tokenizer.json of Hugging Face, and what goes beside it.

Two kinds: byte-level BPE ("gpt2"), whose rule for cutting text into words a GGUF file only names, and BPE over
characters with bytes for the rest ("llama", SentencePiece's), whose merges follow from the scores of its pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from checkpoints.config import read_object
from checkpoints.errors import BadInput, show

KEY = "tokenizer.ggml."
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens, as SentencePiece numbers them
SPACE = "▁"
PHI4 = Path(__file__).with_name("phi4-tiny") / "tokenizer.json"  # whose words are Phi-4-mini's, which are GPT-4o's


def gguf_tokenizer(file: Path, metadata: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and the content of tokenizer_config.json; BadInput for a kind that cannot be made."""
    tokens, kinds = metadata.get(f"{KEY}tokens"), metadata.get(f"{KEY}token_type")
    if not _texts(tokens):
        raise BadInput(f"{file} has no {KEY}tokens, so no tokenizer can be made of it")
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise BadInput(f"{file}: {KEY}token_type is not a list of {len(tokens)} kinds, one for each token")
    # The converter fills a vocabulary up to the embedding's rows with unused tokens that no text has.
    vocab = {token: number for number, token in enumerate(tokens) if kinds[number] != UNUSED}
    make = {"gpt2": _byte_level, "llama": _sentence_piece}.get(str(metadata.get(f"{KEY}model")))
    if make is None:
        raise BadInput(f"{file}: {KEY}model is {show(metadata.get(f'{KEY}model'))}, only gpt2 and llama can be read")
    tokenizer = make(file, metadata, vocab)
    added = {tokens[i]: kind == CONTROL for i, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)}
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in added.items()])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": metadata.get("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = metadata.get(f"{KEY}{key}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            settings[f"{name}_token"] = tokens[number]
    return tokenizer, {key: value for key, value in settings.items() if value is not None}


def _byte_level(file: Path, metadata: Mapping[str, Any], vocab: dict[str, int]) -> Tokenizer:
    words = metadata.get(f"{KEY}pre")
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words == "gpt-2":
        cut: pre_tokenizers.PreTokenizer = gpt2
    elif words == "smollm":
        cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    elif words == "gpt-4o":
        pattern = read_object(PHI4)["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
        cut = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        raise BadInput(
            f"{file}: {KEY}pre is {show(words)}, only gpt-2, gpt-4o and smollm are known: give a folder with the "
            f"file as model.gguf and its config.json and tokenizer.json beside"
        )
    merges = metadata.get(f"{KEY}merges")
    if not _texts(merges) or any(merge.count(" ") != 1 for merge in merges):
        raise BadInput(f"{file}: {KEY}merges is not a list of pairs of tokens")
    tokenizer = Tokenizer(_bpe(file, vocab, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(file: Path, metadata: Mapping[str, Any], vocab: dict[str, int]) -> Tokenizer:
    scores, kinds = metadata.get(f"{KEY}scores"), metadata[f"{KEY}token_type"]
    if not isinstance(scores, list) or len(scores) != len(kinds):
        raise BadInput(f"{file}: {KEY}scores is not a list of {len(kinds)} scores, one for each token")
    # SentencePiece joins the two neighbours that make the piece of the highest score.
    pieces = {token: number for token, number in vocab.items() if kinds[number] == NORMAL}
    merges = [
        (-scores[number], pieces[token[:cut]], pieces[token[cut:]], (token[:cut], token[cut:]))
        for token, number in pieces.items()
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    unknown = metadata.get(f"{KEY}unknown_token_id", 0)
    name = next((token for token, number in vocab.items() if number == unknown), None)
    pairs = [merge[-1] for merge in sorted(merges)]
    tokenizer = Tokenizer(_bpe(file, vocab, pairs, unk_token=name, fuse_unk=True, byte_fallback=True))
    prefix = metadata.get(f"{KEY}add_space_prefix", True)
    spaces = [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    texts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*texts, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer


def _bpe(file: Path, vocab: dict[str, int], merges: list[Any], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocab, merges, **options)
    except Exception as problem:  # the library's own kind: a merge of or to a token that is not there
        raise BadInput(f"{file}: the tokens and merges make no tokenizer: {problem}") from None


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
