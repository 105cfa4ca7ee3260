"""Which file of a folder is its tokenizer, and what is said of files that are none or damaged."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import BadInput
from export.engine.chat_template import chat_prompt
from export.engine.tokenizer import find_tokenizer, load_tokenizer
from tests.engine.test_chat_template import TURNS
from tests.engine.test_tokenizer import PHI4, changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw["added_tokens"][-1].update(id=7), ["two tokens have one id"]),
        (lambda raw: raw["added_tokens"][-1].update(content=""), ["makes no token of ''"]),
        (lambda raw: raw["model"].update(type="WordPiece"), ["model.type", "WordPiece"]),
        (lambda raw: raw["model"].update(vocab="x"), ["not a Hugging Face tokenizer"]),
        (lambda raw: raw["model"].update(continuing_subword_prefix="##"), ["not a Hugging Face tokenizer"]),
        (lambda raw: raw.update(added_tokens=[3]), ["not a Hugging Face tokenizer"]),
        (lambda raw: raw.pop("added_tokens"), ["added_tokens"]),
        (lambda raw: raw.pop("model"), ["no model"]),
    ],
)
def test_damaged_tokenizer_json(change: Any, words: list[str], tmp_path: Path) -> None:
    path = changed(tmp_path, change)
    with pytest.raises(BadInput) as caught:
        load_tokenizer(path)
    assert all(word in str(caught.value) for word in [str(path), *words])


LETTERS = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"\x00\xff" * 500, "1000 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
        (b"\x80\x04\x95cbuiltins\neval\n", "bytes"),
        (b'{"model": {"type": "BPE"', "not JSON"),
        (b"[" * 100_000, "100000 bytes"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"{\xff}", "not JSON"),
        (LETTERS + b"@@@@ 256\n", "line 257 is not base64"),
        (LETTERS + b"YW 256\n", "line 257 is not base64"),
        (LETTERS + b"YWI=\n", "line 257 is not base64"),
        (LETTERS + b"\nYWI= 256\n", "line 257 is not base64"),
        (LETTERS + b"YWI= -1\n", "line 257 is not base64"),
        (LETTERS + b"YWI= 257\n", "none of rank 256"),
        (LETTERS + b"YWI= 7\n", "none of rank 256"),
        (LETTERS + b"YQ== 256\n", "257 lines, 256 tokens and none of rank 97"),
        (LETTERS[:-9], "255 of 256 single bytes, not 0xff"),
    ],
)
def test_damaged_files(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(BadInput) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_find_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"tokenizer\.json.*tokenizer\.model.*\.tiktoken"):
        find_tokenizer(tmp_path)
    for name in ["z.tiktoken", "a.tiktoken", "tokenizer.model", "tokenizer.json"]:
        (tmp_path / name).touch()
        assert find_tokenizer(tmp_path).name == name
    with pytest.raises(BadInput, match="No such file"):
        load_tokenizer(tmp_path / "gone")


def test_only_vocab_and_merges(tmp_path: Path) -> None:
    """The sentence's way on works, for a folder that names the class of its tokenizer."""
    from transformers import AutoTokenizer

    model = json.loads((PHI4 / "tokenizer.json").read_bytes())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(BadInput, match=r"vocab.json and merges.txt and no tokenizer.json.*save_pretrained\(folder\)"):
        find_tokenizer(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert load_tokenizer(find_tokenizer(tmp_path)).encode("the") == load_tokenizer(PHI4 / "tokenizer.json").encode(
        "the"
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_what_is_no_file_is_named(name: str, tmp_path: Path) -> None:
    def use() -> None:
        find_tokenizer(tmp_path)
        chat_prompt(tmp_path, TURNS)

    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((PHI4 / file).read_bytes())
    use()
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(BadInput, match=f"{name} is a link to nothing"):
        use()
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match=f"{name} is a folder, not a file"):
        use()
