"""A tokenizer with a published model's special tokens, words and chat template, and with invented merges."""

from itertools import chain, islice
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from checkpoints.files import write_json
from checkpoints.published import CONFIGS, FIRST, LAST, TEXT_OF, TURN

SPLIT = (  # how the published tokenizer cuts text into words: the pattern of tiktoken's o200k_base
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(folder: Path, like: str, size: int, specials: dict[str, int], more: dict[str, Any]) -> None:
    """tokenizer.json with exactly `size` entries; tokenizer_config.json with the published chat turns and `more`."""
    tail = min(specials[token] for token in LAST[like])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda char: (not char.islower(), char))
    # Pairs of bytes, then pairs with a byte more: every string once, those of lowercase letters first.
    ranked = sorted((max(i, j), i, j) for i in range(256) for j in range(256))
    pairs = [(alphabet[i], alphabet[j]) for _, i, j in ranked]
    triples = ((a + b, c) for a, b in pairs for c in alphabet)
    merges = list(islice(chain(pairs, triples), tail - len(FIRST[like]) - len(alphabet)))
    names = FIRST[like] + alphabet + ["".join(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    by_id = {i: token for token, i in specials.items()}
    added = [by_id.get(i, f"<|dummy_{i}|>") for i in [*range(len(FIRST[like])), *range(tail, size)]]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)

    template = (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>TURN' + message['content'] + '<|end|>TURN' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>TURN' }}{% else %}{{ eos_token }}{% endif %}"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>" if FIRST[like] else "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": CONFIGS[TEXT_OF.get(like, like)]["max_position_embeddings"],
        "chat_template": template.replace("TURN", TURN[like]),
    }
    write_json(folder / "tokenizer_config.json", settings | more)
