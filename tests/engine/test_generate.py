"""export.generate: the runner's tokens, each once and whole, within the context; and nothing else on stdout."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from checkpoints.errors import BadInput
from checkpoints.source import resolve
from export.engine.chat_template import chat_prompt
from export.engine.generation import Generation, Joiner
from export.engine.session import Session
from export.engine.tokenizer import runner_ids
from export.generate import generate

ROOT = Path(__file__).parents[2]
CONTEXT, CHUNK = 40, 8
ANSWER = "Hé, 👍🏽 你好\n"
PROMPT = "abc de"


class Scripted(torch.nn.Module):
    """A model that says what stands at each position, whatever it is told; it fails beyond the context."""

    script: torch.Tensor

    def __init__(self, script: list[int], vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.register_buffer("script", torch.tensor(script))

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        start, length = input_pos[0].item(), tokens.shape[1]
        torch._check_is_size(start)
        torch._check(start + length <= self.script.shape[0])
        answer = self.script.narrow(0, start, length)[-1:]
        return torch.eq(torch.arange(self.vocab).unsqueeze(0), answer.unsqueeze(1)).float()


def export_script(path: Path, script: list[int], **changes: Any) -> Path:
    from executorch.exir import EdgeCompileConfig, to_edge

    facts = {"get_max_seq_len": CHUNK, "get_max_context_len": len(script), "get_vocab_size": 2048}
    facts |= {"use_kv_cache": True, "enable_dynamic_shape": True, "get_eos_ids": [2040, 2038]} | changes
    example = (torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    shapes: Any = ({1: torch.export.Dim("n", min=1, max=CHUNK)}, None)
    program = torch.export.export(Scripted(script, 2048), example, dynamic_shapes=shapes, strict=False)
    facts = {name: value for name, value in facts.items() if value is not None}
    config = EdgeCompileConfig(_check_ir_validity=False)
    path.write_bytes(to_edge(program, constant_methods=facts, compile_config=config).to_executorch().buffer)
    return path


@pytest.fixture(scope="module")
def words() -> Path:
    """The tokenizer of phi4-tiny: most characters beyond ASCII are several tokens."""
    return resolve("phi4-tiny").folder / "tokenizer.json"


@pytest.fixture(scope="module")
def ids(words: Path) -> list[int]:
    return tokenizers.Tokenizer.from_file(str(words)).encode(ANSWER).ids


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory, words: Path, ids: list[int]) -> Path:
    """Answers PROMPT, raw, with ANSWER."""
    start = len(runner_ids(words, PROMPT)) - 1
    folder = tmp_path_factory.mktemp("scripted")
    (folder / "tokenizer.json").write_bytes(words.read_bytes())
    return export_script(folder / "scripted.pte", ([0] * start + ids + [2040] + [64] * CONTEXT)[:CONTEXT])


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Path:
    """Says the letter a until the context is full."""
    folder = tmp_path_factory.mktemp("endless")
    (folder / "tokenizer.json").write_bytes(words.read_bytes())
    letter = tokenizers.Tokenizer.from_file(str(words)).encode("a").ids
    return export_script(folder / "endless.pte", letter * CONTEXT)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "export.generate", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")


def test_characters_of_several_tokens_come_out_whole(scripted: Path, ids: list[int]) -> None:
    pieces: list[str] = []
    generation = generate(scripted, PROMPT, raw=True, on_text=pieces.append)
    assert len(ids) > len(ANSWER)
    assert (generation.text, generation.token_ids, generation.ended) == (ANSWER, tuple(ids), True)
    assert "".join(pieces) == ANSWER and len(pieces) > 3 and "\ufffd" not in "".join(pieces)
    assert generation.stats.prompt_tokens + len(ids) < CONTEXT
    assert generation.stats.generated_tokens == len(ids)
    assert (
        0 <= generation.stats.model_dirty_bytes < generation.stats.dirty_bytes < generation.stats.peak_resident_bytes
    )


def test_stdout_has_the_answer_once_and_stderr_the_measurements(scripted: Path) -> None:
    done = command(scripted, PROMPT, "--raw")
    assert (done.returncode, done.stdout) == (0, ANSWER + "\n")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["prompt", "answer", "loading", "memory"]


def test_json_and_logs(scripted: Path) -> None:
    done = command(scripted, PROMPT, "--raw", "--json", "--verbose")
    generation: dict[str, Any] = json.loads(done.stdout)
    assert generation["text"] == ANSWER and generation["ended"]
    assert generation.keys() == asdict(Generation("", (), True, None)).keys()  # type: ignore[arg-type]
    assert "PyTorchObserver" in done.stderr


def test_prompt_and_answer_fill_the_context_and_no_more(endless: Path, words: Path) -> None:
    prompt = len(runner_ids(words, PROMPT))
    generation = generate(endless, PROMPT, raw=True)
    assert generation.text == "a" * (CONTEXT - prompt) and not generation.ended
    assert generate(endless, PROMPT, raw=True, max_new_tokens=3).text == "aaa"
    assert generate(endless, PROMPT, raw=True, max_new_tokens=1).text == "a"
    longest = "b " * (CONTEXT - 1)
    count = len(runner_ids(words, longest))
    assert CHUNK < CONTEXT - 1 <= count  # so in several chunks
    with pytest.raises(BadInput, match=f"prompt has {count} tokens, .*endless.pte has a context of {CONTEXT}"):
        generate(endless, longest, raw=True)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, BrokenPipeError])
def test_whoever_listens_can_stop_it(kind: type[BaseException], endless: Path) -> None:
    heard: list[str] = []

    def listen(text: str) -> None:
        heard.append(text)
        if len(heard) == 3:
            raise kind

    with pytest.raises(kind):
        generate(endless, PROMPT, raw=True, on_text=listen)
    assert heard == ["a"] * 3


def test_temperature_samples(endless: Path) -> None:
    assert set(generate(endless, PROMPT, raw=True, temperature=1.0).text) != {"a"}


def test_greedy_tokens_are_those_of_the_python_runtime(tiny_pte: Path) -> None:
    question = "What is the capital of France?"
    folder = tiny_pte.parent
    fed = runner_ids(folder / "tokenizer.json", chat_prompt(folder, [{"role": "user", "content": question}]))
    session, expected = Session(tiny_pte), list[int]()
    eos = session.constant("get_eos_ids")
    for position in range(session.constant("get_max_context_len")):
        token = fed[position] if position < len(fed) else expected[-1]
        likeliest = int(session.step([token], position).argmax())
        if position >= len(fed) - 1:
            expected.append(likeliest)
        if expected and expected[-1] in eos:
            break
    generation = generate(tiny_pte, question)
    assert [*generation.token_ids, expected[-1]] == expected and generation.ended
    assert generation.text == "The capital of France is Paris."


def test_our_engine_answers_like_the_runner(compiler: None, tiny_pte: Path, tmp_path: Path) -> None:
    question, packed = "What is the capital of France?", tmp_path / "packed"
    pieces: list[str] = []
    wanted = generate(tiny_pte, question)
    for _ in ("packing", "packed"):
        found = generate(tiny_pte, question, engine="ours", packed=packed, on_text=pieces.append)
        assert (found.text, found.token_ids, found.ended) == (wanted.text, wanted.token_ids, True)
        assert found.stats.prompt_tokens == wanted.stats.prompt_tokens
    assert "".join(pieces) == 2 * wanted.text and list(packed.glob("*.packed"))
    guessed = generate(tiny_pte, question, engine="ours", packed=packed, draft_tokens=7)
    assert guessed.text == wanted.text and guessed.stats.drafted_tokens > 0
    done = command(tiny_pte, question, "--engine", "ours", "--packed", packed)
    assert (done.returncode, done.stdout) == (0, wanted.text + "\n")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["prompt", "answer", "loading", "memory"]


def test_system_message_and_raw_change_the_prompt(tiny_pte: Path) -> None:
    plain = generate(tiny_pte, "Hello", max_new_tokens=1).stats.prompt_tokens
    told = generate(tiny_pte, "Hello", system="Be brief.", max_new_tokens=1).stats.prompt_tokens
    raw = generate(tiny_pte, "Hello", raw=True, max_new_tokens=1).stats.prompt_tokens
    assert raw < plain < told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens 0 is not at least 1"),
        ({"temperature": -0.5}, "--temperature -0.5 is not within 0 to 1.0"),
        ({"temperature": float("nan")}, "--temperature nan is not within"),
        ({"raw": True, "system": "Be brief."}, "--system needs the chat template"),
        ({"raw": True, "prompt": ""}, "the prompt is empty"),
        ({"packed": "folder"}, "--packed is for --engine ours"),
        ({"draft_tokens": 2}, "--draft-tokens is for --engine ours"),
        ({"draft_tokens": -1, "engine": "ours"}, "--draft-tokens -1 is below 0"),
        ({"tokenizer": "nowhere.json"}, "nowhere.json cannot be read"),
        ({"file": "nowhere.pte"}, "nowhere.pte does not exist"),
        ({"file": __file__}, "test_generate.py is not an ExecuTorch program"),
    ],
)
def test_refusals(arguments: dict[str, Any], sentence: str, scripted: Path) -> None:
    given = {"file": scripted, "prompt": PROMPT} | arguments
    with pytest.raises(BadInput, match=sentence):
        generate(given.pop("file"), given.pop("prompt"), **given)


def test_one_sentence_for_a_file_without_tokenizer(scripted: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely.pte"
    lonely.write_bytes(scripted.read_bytes())
    done = command(lonely, PROMPT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"error: {tmp_path} has no tokenizer.json" in done.stderr and "--tokenizer" in done.stderr
    lonely.write_bytes(scripted.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"lonely\.pte is a damaged ExecuTorch program, or cut short"):
        generate(lonely, PROMPT, tokenizer=scripted.parent / "tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"get_vocab_size": 200064}, "it has 2048 tokens, .* has 200064"),
        ({"get_eos_ids": [7]}, "stops at token 7, which is no special token"),
        ({"get_max_seq_len": None}, "not a language model for ExecuTorch's runner: it has no get_max_seq_len"),
    ],
)
def test_foreign_files(changes: dict[str, Any], sentence: str, words: Path, tmp_path: Path) -> None:
    file = export_script(tmp_path / "foreign.pte", [0] * CONTEXT, **changes)
    with pytest.raises(BadInput, match=sentence):
        generate(file, PROMPT, tokenizer=words)


def by_bytes(ids: Sequence[int]) -> str:
    """A decoder whose ids are bytes; like SentencePiece's it drops one space in front."""
    return bytes(ids).decode(errors="replace").removeprefix(" ")


@pytest.mark.parametrize("text", ["né 👍🏽x 你好", "  two  spaces", "true � one", "👩‍💻"])
def test_joiner_gives_every_character_once_and_whole(text: str) -> None:
    joiner = Joiner(by_bytes)
    pieces = [joiner.push(byte) for byte in text.encode()]
    assert "".join(pieces) + joiner.rest() == text.removeprefix(" ")
    assert "".join(pieces).count("\ufffd") <= text.count("\ufffd")
    assert joiner.rest() == ""


def test_joiner_shows_what_never_got_whole() -> None:
    joiner = Joiner(by_bytes)
    assert [joiner.push(byte) for byte in b"a\xf0\x9f"] == ["a", "", ""]
    assert joiner.rest() == "\ufffd"
    assert [joiner.push(byte) for byte in b"b\xf0c"] == ["b", "", "\ufffdc"]
