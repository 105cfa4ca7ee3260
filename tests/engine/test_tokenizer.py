"""The phone's C++ tokenizer and the Python libraries give the same ids for every format and kind of text.

The reference is the untouched Python library of each format, and once the runner itself: a .pte that answers
with its own prompt. Also what is refused, and the stop ids.
"""

import base64
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_tokenizers
import sentencepiece
import tiktoken
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, trainers

from checkpoints.config import ModelConfig, read_config
from checkpoints.errors import BadInput
from export.engine.chat_template import chat_prompt
from export.engine.tokenizer import (
    PROBES,
    TIKTOKEN_SPLIT,
    check_tokenizer,
    load_tokenizer,
    runner_ids,
    stop_ids,
)
from tests.engine.test_chat_template import TURNS

PHI4 = Path(__file__).parents[2] / "checkpoints" / "phi4-tiny"
FORMATS = ["huggingface", "sentencepiece", "tiktoken"]

TEXTS = [
    *PROBES, " ", "a", "\n", "don't DON'T we'Ll I'VE 'S 'ſ 'd", "1 12 123 1234 12345 1,000.00 ١٢٣٤ Ⅷ½²",
    "def f(x):\n\tif x != 0:\n\t\treturn x**2  # ok\n\n\n", "a\r\nb\r\r\n\n c \t \n", "tail   ", "   head",
    "e\u0301\u0323 a\u0308\u0300 \u0301 cafe\u0301s ñ n\u0303", "汉字漢字かなカナ한글\u1112\u1161\u11ab，。",
    "ǅungla ʰa İIıi ẞß", "שלום עולם", "السَّلَامُ عَلَيْكُمْ", "नमस्ते", "👨\u200d👩\u200d👧 👍🏿 🏴\u200d☠️ 🇺🇳 ❤️",
    "\u200b\u200c\u200d\u2060\ufeff\xad", "\ufffd\U0010ffff\ue000", "\x01\x02\x1b[31m\x7f\x80\x9f", "a\0b\0",
    "\xa0\xa0 \u2003\u3000\u3000x\u2028y\x85z\x0bw\x0cv", "▁a▁▁b ▁", "<0x41><0x0A>", "<s>x</s><unk>",
    "<|user|>hi<|end|> <|assistant|>", "<|end|><|end|>\n\n<|end", "x<|endoftext|>", "<|<|user|>|>",
    "<|begin_of_text|>x<|eot_id|><|reserved_special_token_1|>", "ab" * 500, " " * 300, "é日😀" * 100,
]  # fmt: skip
BITS = [
    *"abzABZ019 .,'’-_/\\<|>{}\t\n\réßøИяλعש日本한नไ\u0301\u200d\u200b\x00\x7f\xa0\u3000😀👍🏽½Ⅷǅſ", "  ",
    "\r\n", "'re", "'LL", "the ", " return", "<|user|>", "<|end|>", "<s>", "<|eot_id|>", "▁", "123",
]  # fmt: skip


# GPT-2's printable stand-in of each byte, which tokenizer.json spells tokens with.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): bytes([byte]) for byte in PRINTABLE}
BYTES |= {chr(256 + i): bytes([byte]) for i, byte in enumerate(sorted({*range(256)} - {*PRINTABLE}))}


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(BITS, k=rng.randint(1, 40))) for _ in range(count)]


def corpus() -> list[str]:
    return [*TEXTS, *Path(__file__).read_text(encoding="utf-8").splitlines(keepends=True)]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tokenizer file per format, named so that only the content tells it."""
    folder = tmp_path_factory.mktemp("tokenizers")
    sentencepiece.SentencePieceTrainer.train(  # as Phi-3's tokenizer.model, which is Llama 2's
        sentence_iterator=(line for text in corpus() if (line := text.strip("\n").replace("\0", ""))),
        model_prefix=str(folder / "sp"), model_type="bpe", vocab_size=900, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
        split_digits=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2, character_coverage=0.98,
    )  # fmt: skip
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=list(BYTES), show_progress=False)
    bpe.train_from_iterator(corpus(), trainer)
    ranks = sorted(bpe.get_vocab().items(), key=lambda entry: entry[1])
    write_tiktoken(folder / "c", [b"".join(BYTES[char] for char in token) for token, _ in ranks])
    (folder / "a").write_bytes((PHI4 / "tokenizer.json").read_bytes())
    (folder / "b").write_bytes((folder / "sp.model").read_bytes())
    return dict(zip(FORMATS, [folder / "a", folder / "b", folder / "c"], strict=True))


def write_tiktoken(path: Path, tokens: list[bytes]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


def library_ids(kind: str, path: Path) -> Callable[[str], list[int]]:
    """The format's Python library as anybody would call it."""
    if kind == "huggingface":
        whole = tokenizers.Tokenizer.from_file(str(path))
        return lambda text: whole.encode(text, add_special_tokens=False).ids
    if kind == "sentencepiece":
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return lambda text: pieces.encode(text)
    lines = [line.split() for line in path.read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    names = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"]
    names += ["finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id"]
    special = {f"<|{name}|>": len(ranks) + i for i, name in enumerate([*names, "python_tag"])}  # Llama 3's
    bpe = tiktoken.Encoding("t", pat_str=TIKTOKEN_SPLIT, mergeable_ranks=ranks, special_tokens=special)
    return lambda text: bpe.encode(text, allowed_special="all")


def config(**changes: Any) -> ModelConfig:
    return replace(read_config(PHI4), **changes)


def changed(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "tokenizer.json") -> Path:
    """phi4-tiny's tokenizer.json after `change`, as a new file."""
    raw = json.loads((PHI4 / "tokenizer.json").read_bytes())
    change(raw)
    (folder / name).write_text(json.dumps(raw))
    return folder / name


def pairs_json(path: Path) -> Path:
    """Phi-4-mini's split with a token for each pair of bytes: any other split of the text gives other ids."""
    raw = json.loads((PHI4 / "tokenizer.json").read_bytes())
    pairs = [(a, b) for a in BYTES for b in BYTES]
    vocab = {token: i for i, token in enumerate([*BYTES, *(a + b for a, b in pairs)])}
    raw["model"] |= {"vocab": vocab, "merges": pairs}
    raw["added_tokens"] = []
    path.write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_library_and_runner_give_the_same_ids(kind: str, files: dict[str, Path]) -> None:
    tokenizer, library = load_tokenizer(files[kind]), library_ids(kind, files[kind])
    assert tokenizer.kind == kind
    for text in [*TEXTS, *random_texts(400, seed=1)]:
        ids = tokenizer.encode(text)
        assert ids == runner_ids(files[kind], text), repr(text)
        kept = text.split("\0")[0] if kind == "sentencepiece" else text  # the runner's C string
        assert ids == library(kept), repr(text)
        if kind == "sentencepiece":
            kept = kept.replace("▁", " ")
        assert tokenizer.decode(ids) == kept, repr(text)


@pytest.mark.parametrize("kind", FORMATS)
def test_phone_picks_the_same_format(kind: str, files: dict[str, Path]) -> None:
    """load_tokenizer in llm_runner_helper.cpp takes the first of these that loads."""
    order = [
        pytorch_tokenizers.CppHFTokenizer,
        pytorch_tokenizers.CppTiktoken,
        pytorch_tokenizers.CppSPTokenizer,
    ]
    place = ["huggingface", "tiktoken", "sentencepiece"].index(kind)
    for loader in order[:place]:
        with pytest.raises(RuntimeError):
            loader().load(str(files[kind]))
    order[place]().load(str(files[kind]))


class Echo(torch.nn.Module):
    """A "model" whose k-th answer is the k-th id of the prompt, one-hot."""

    seen: torch.Tensor
    calls: torch.Tensor

    def __init__(self, vocab: int, context: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.register_buffer("seen", torch.zeros(context, dtype=torch.long))
        self.register_buffer("calls", torch.zeros(1, dtype=torch.long))

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        self.seen.index_put_((input_pos[0] + torch.arange(tokens.shape[1]),), tokens[0])
        answer = torch.index_select(self.seen, 0, self.calls[0:1])
        self.calls.add_(1)
        return torch.eq(torch.arange(self.vocab).unsqueeze(0), answer.unsqueeze(1)).float()


def test_runner_itself_computes_these_ids(files: dict[str, Path], tmp_path: Path) -> None:
    from executorch.exir import to_edge
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    context = 512
    shapes: Any = ({1: torch.export.Dim("n", min=1, max=context - 1)}, {})
    example = (torch.ones(1, 3, dtype=torch.long), torch.tensor([0]))
    facts: dict[str, Any] = {"get_max_seq_len": context - 1, "get_max_context_len": context}
    facts |= {"enable_dynamic_shape": True, "use_kv_cache": True, "get_eos_ids": [2047]}
    program = torch.export.export(Echo(2048, context), example, dynamic_shapes=shapes)
    pte = tmp_path / "echo.pte"
    pte.write_bytes(to_edge(program, constant_methods=facts).to_executorch().buffer)

    def answers(tokenizer: Path, text: str, num_bos: int, count: int) -> list[str]:
        found: list[str] = []
        settings = GenerationConfig(echo=False, temperature=0.0, num_bos=num_bos, max_new_tokens=count)
        TextLLMRunner(str(pte), str(tokenizer)).generate(text, settings, found.append)
        return found

    # Without a decoder the runner answers with the byte-level spelling, one string per id.
    plain = changed(tmp_path, lambda raw: raw.update(decoder=None))
    names = {i: name for name, i in tokenizers.Tokenizer.from_file(str(plain)).get_vocab().items()}
    for text in ["it's  two\r\n\tlines ", "<|user|> \n日本 é<|end|><|assistant|>", "a\0\xa0\u3000\u180e 12"]:
        ids = runner_ids(plain, text)
        for num_bos in (0, 1):  # no bos without a post_processor
            assert answers(plain, text, num_bos, len(ids)) == [names[i] for i in ids]

    for kind, bos in (("sentencepiece", " "), ("tiktoken", "<|begin_of_text|>")):
        tokenizer = load_tokenizer(files[kind])
        ids = tokenizer.encode("two  words 12")
        found = answers(files[kind], "two  words 12", 2, len(ids) + 2)
        assert found[:2] == [bos, bos] and len(found) == len(ids) + 2
        assert "".join(found[2:]).strip() == tokenizer.decode(ids)


def differing(path: Path) -> list[str]:
    """Code points around which the two split a text differently, out of white space, ASCII and each seventh.

    The whole of Unicode gives U+180E for Phi-4-mini's pattern, and for tiktoken's what Unicode 16 added.
    """
    tokenizer = load_tokenizer(path)
    known = {0x180E, 0x1C89, 0x200B, 0x2060, 0xFEFF, 0x1F469, 0x1F3FD}
    found = []
    for code in sorted(known | {i for i in range(0x3101) if i < 128 or i % 7 == 0 or chr(i).isspace()}):
        text = "ab{0}cd AB{0}Cd  {0}  12{0}3.{0}, {0}{0}\n{0}x'{0} I'{0}".format(chr(code))
        if tokenizer.encode(text) != runner_ids(path, text):
            found.append(f"U+{code:04X}")
    return found


def test_only_one_code_point_is_split_differently(tmp_path: Path) -> None:
    assert differing(pairs_json(tmp_path / "pairs.json")) == ["U+180E"]


def test_tiktoken_splits_like_the_runner(tmp_path: Path) -> None:
    singles = [bytes([byte]) for byte in range(256)]
    pairs = [a + b for a in singles for b in singles]
    assert differing(write_tiktoken(tmp_path / "pairs", [*singles, *pairs])) == ["U+1C89"]


def test_white_space_the_runner_does_not_strip(tmp_path: Path) -> None:
    def strip(raw: dict[str, Any]) -> None:
        for token in raw["added_tokens"][1:4]:
            token["rstrip"] = True
        raw["added_tokens"][4]["lstrip"] = True

    path = changed(tmp_path, strip)
    tokenizer, library = load_tokenizer(path), library_ids("huggingface", path)
    text = "a <|user|> \n\u3000 b <|end|>  <|system|>\xa0c"
    assert tokenizer.encode(text) == runner_ids(path, text) != library(text)
    assert "strips no spaces" in tokenizer.notes[0] and "<|assistant|>" in tokenizer.notes[0]

    prompt = chat_prompt(tmp_path, TURNS)
    assert prompt == "<|system|>Be brief.<|end|><|user|>Why?<|end|><|assistant|>"
    asked = "<|system|>Be brief.<|end|><|user|> \n Why?<|end|><|assistant|>"
    assert runner_ids(path, prompt) == library(asked) == library(prompt)
    prompt = chat_prompt(tmp_path, [{"role": "user", "content": text}])
    assert runner_ids(path, prompt) == library(f"<|user|>{text}<|end|><|assistant|>")


def test_what_the_runner_ignores_is_ignored(tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        raw["padding"] = {
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "x",
        }  # fmt: skip
        raw["model"]["dropout"] = 0.5
        raw["added_tokens"][3]["single_word"] = True
        raw["model"]["merges"] = [merge for merge in raw["model"]["merges"] if "".join(merge) != "Ġthe"]

    path = changed(tmp_path, change)
    tokenizer = load_tokenizer(path)
    for text in [*TEXTS, "x<|user|>y the the"]:
        assert tokenizer.encode(text) == runner_ids(path, text), repr(text)
    assert any("no merge makes" in note for note in tokenizer.notes)


def byte_split(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda raw: raw["pre_tokenizer"]["pretokenizers"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (byte_split(pattern={"Regex": r"\p{N}{1,3}"}, behavior="Isolated", invert=False), "on the phone"),
        (byte_split(behavior="Removed", invert=False), "on the phone"),
        (lambda raw: raw.update(normalizer={"type": "NFC"}), "on the phone"),
        (lambda raw: raw.update(normalizer={"type": "Lowercase"}), "does not load"),
        (lambda raw: raw.update(pre_tokenizer={"type": "Metaspace", "replacement": "▁"}), "does not load"),
    ],
)
def test_what_the_runner_would_tokenize_otherwise(change: Any, words: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(changed(tmp_path, change))
    with pytest.raises(BadInput, match=words):
        check_tokenizer(tokenizer, config())


def test_unpaired_surrogates_are_refused(files: dict[str, Path]) -> None:
    for path in files.values():
        with pytest.raises(BadInput, match="surrogate at character 2"):
            load_tokenizer(path).encode("ab\ud83dcd")
        with pytest.raises(BadInput, match="cannot encode"):
            runner_ids(path, "ab\ud83dcd")


def test_ids_unknown_to_the_tokenizer_decode_to_nothing(files: dict[str, Path]) -> None:
    for path in files.values():
        tokenizer = load_tokenizer(path)
        ids = tokenizer.encode("hello")
        assert tokenizer.decode([*ids, tokenizer.vocab_size, 10**6, -1]) == "hello"


def test_vocabulary_and_special_tokens(files: dict[str, Path]) -> None:
    phi4, phi3, llama3 = (load_tokenizer(files[kind]) for kind in FORMATS)
    assert (phi4.vocab_size, phi4.token_id("<|end|>"), phi4.token_id("the")) == (2048, 2040, None)
    assert (phi3.vocab_size, phi3.token_id("</s>"), phi3.token_id("▁the")) == (900, 2, None)
    assert (llama3.vocab_size, llama3.token_id("<|end_of_text|>")) == (1256, 1001)
    assert llama3.token_id("<|reserved_special_token_246|>") == 1255


def test_check(files: dict[str, Path]) -> None:
    phi4, phi3 = load_tokenizer(files["huggingface"]), load_tokenizer(files["sentencepiece"])
    assert check_tokenizer(phi4, config()) == ()
    (note,) = check_tokenizer(phi4, config(vocab_size=2083))
    assert "2048" in note and "2083" in note
    assert check_tokenizer(phi3, config(vocab_size=900, bos_token_id=1, eos_token_ids=(2,))) == ()
    phi3_ids = {
        "vocab_size": 964,
        "bos_token_id": 1,
        "eos_token_ids": (2, 900),
    }  # 900: <|end|>, only in a .json
    wrong: list[tuple[Any, dict[str, Any], list[str]]] = [
        (phi4, {"vocab_size": 2047}, ["2048 ids", "vocab_size 2047"]),
        (phi4, {"vocab_size": 5000}, ["2048 ids", "vocab_size 5000"]),
        (phi4, {"eos_token_ids": (2040, 17)}, ["eos_token_id is 17", "2048 ids"]),
        (phi3, phi3_ids, ["eos_token_id is 900", "900 ids"]),
    ]
    for tokenizer, changes, words in wrong:
        with pytest.raises(BadInput) as caught:
            check_tokenizer(tokenizer, config(**changes))
        assert all(word in str(caught.value) for word in [*words, str(tokenizer.path), "config.json"])
    assert check_tokenizer(phi4, config(bos_token_id=None)) == ()
    (note,) = check_tokenizer(phi4, config(bos_token_id=1))
    assert "bos_token_id is 1, no special token of" in note


def test_gaps_in_the_ids(tmp_path: Path) -> None:
    """The file's ids on every side, though the library tokenizers numbers what comes after a gap anew."""

    def gap(raw: dict[str, Any]) -> None:
        raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<|user|>"]

    path = changed(tmp_path, gap)
    tokenizer = load_tokenizer(path)
    library = tokenizers.Tokenizer.from_file(str(path))
    assert (tokenizer.token_id("<|tool|>"), library.token_to_id("<|tool|>")) == (2043, 2042)
    assert tokenizer.vocab_size == 2048
    for text in [*TEXTS, "a<|system|>b<|tool|> c<|tool_response|><|end|>"]:
        ids = tokenizer.encode(text)
        assert ids == runner_ids(path, text), repr(text)
        assert tokenizer.decode(ids) == text
    (note,) = check_tokenizer(tokenizer, config())
    assert note.endswith("'<|system|>' is 2042 in the file and on the phone, but 2041 for transformers")


def test_an_end_the_phone_never_samples(tmp_path: Path) -> None:
    """The runner samples as many logits as the file has entries: a hole in the ids hides the last ones."""

    def hole(raw: dict[str, Any]) -> None:
        del raw["model"]["vocab"]["Ġthe"]
        raw["model"]["merges"] = [merge for merge in raw["model"]["merges"] if "Ġthe" not in ["".join(merge), *merge]]
        raw["model"]["vocab"] |= {token["content"]: token["id"] for token in raw["added_tokens"]}

    tokenizer = load_tokenizer(changed(tmp_path, hole))
    assert tokenizer.vocab_size == 2048
    with pytest.raises(BadInput, match="eos_token_id is 2047, but the phone samples 2047 ids"):
        check_tokenizer(tokenizer, config(eos_token_ids=(2047,)))


def test_stop_ids(files: dict[str, Path], tmp_path: Path) -> None:
    phi4, phi3, llama3 = (load_tokenizer(files[kind]) for kind in FORMATS)
    assert stop_ids(phi4, config(), PHI4) == (2040, 2038)
    assert stop_ids(phi4, config(eos_token_ids=(2038,)), PHI4) == (2040, 2038)
    assert stop_ids(phi4, config(eos_token_ids=(2047, 2038)), PHI4) == (2040, 2047, 2038)
    assert stop_ids(phi4, config(eos_token_ids=()), tmp_path) == (2040, 2038)
    assert stop_ids(phi3, config(eos_token_ids=(2,)), tmp_path) == (2,)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|eot_id|>"}}')
    assert stop_ids(llama3, config(eos_token_ids=(1001,)), tmp_path) == (1001, 1009)
    with pytest.raises(BadInput, match="names no eos_token_id"):
        stop_ids(phi3, config(eos_token_ids=()), tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.001, 0.3, 0.9])
def test_truncated_files(kind: str, part: float, files: dict[str, Path], tmp_path: Path) -> None:
    data = files[kind].read_bytes()
    path = tmp_path / "cut"
    end = int(len(data) * part) + 3
    if kind == "tiktoken":  # a cut between lines leaves a smaller tokenizer
        end = data.index(b" ", end)
    path.write_bytes(data[:end])
    with pytest.raises(BadInput, match="cut"):
        load_tokenizer(path)
