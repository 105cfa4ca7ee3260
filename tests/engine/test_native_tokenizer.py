"""The apps' C++ tokenizer gives the ids of upstream's runner and the Python libraries' text, for every format."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Callable, Sequence
from ctypes import byref, c_char_p, c_int64, c_size_t, c_void_p, create_string_buffer
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers

from checkpoints.cache import cached_folder
from export.engine.native import CPP
from export.engine.runner import import_runner
from export.engine.tokenizer import load_tokenizer, runner_ids
from tests.engine.native import need_cmake
from tests.engine.test_tokenizer import FORMATS, PHI4, TEXTS, files, random_texts

__all__ = ["files"]
SAMPLE = [*TEXTS, *random_texts(100, seed=5)]


class Tokenizer:
    """pocketphi_tokenizer.h."""

    def __init__(self, library: ctypes.CDLL, path: Path) -> None:
        self.library, error = library, create_string_buffer(1024)
        self.handle = c_void_p(library.pocketphi_tokenizer_load(str(path).encode(), error))
        if not self.handle:
            raise ValueError(error.value.decode())

    def encode(self, text: str, num_bos: int = 0) -> list[int]:
        data, count, ids = text.encode(), c_size_t(), (c_int64 * 4096)()
        status = self.library.pocketphi_tokenizer_encode(
            self.handle, data, c_size_t(len(data)), num_bos, ids, c_size_t(len(ids)), byref(count), None
        )
        assert status == 0
        return ids[: count.value]

    def decode(self, ids: Sequence[int]) -> bytes:
        out, numbers = create_string_buffer(1 << 16), (c_int64 * len(ids))(*ids)
        size = self.library.pocketphi_tokenizer_decode(
            self.handle, numbers, c_size_t(len(ids)), out, c_size_t(len(out))
        )
        return out.raw[:size]


@pytest.fixture(scope="session")
def load() -> Callable[[Path], Tokenizer]:
    need_cmake()
    import_runner()  # so that the runner's library finds torch and Python
    source = CPP / "tokenizer"
    executorch = distribution("executorch").locate_file("executorch/share/cmake")

    def build(folder: Path) -> None:
        configure = ["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", "-DBUILD_SHARED_LIBS=ON"]
        for line in ([*configure, f"-Dexecutorch_DIR={executorch}"], ["ninja", "-C", str(folder)]):
            made = subprocess.run(line, capture_output=True, text=True)
            assert made.returncode == 0, made.stdout + made.stderr

    parts = [path.read_bytes() for path in sorted(source.iterdir())] + [(CPP / "pocketphi.h").read_bytes()]
    folder = cached_folder(f"tokenizer-{version('executorch')}", [str(executorch).encode(), *parts], build)
    library = ctypes.CDLL(str(folder / "libpocketphi_tokenizer.so"))
    library.pocketphi_tokenizer_load.restype = c_void_p
    library.pocketphi_tokenizer_load.argtypes = (c_char_p, c_void_p)
    library.pocketphi_tokenizer_decode.restype = c_size_t
    return lambda path: Tokenizer(library, path)


@pytest.mark.parametrize("kind", FORMATS)
def test_ids_are_the_runners_and_text_the_librarys(
    kind: str, load: Callable[[Path], Tokenizer], files: dict[str, Path]
) -> None:
    python, ours = load_tokenizer(files[kind]), load(files[kind])
    for text in SAMPLE:
        ids = runner_ids(files[kind], text)
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids).decode(errors="replace") == python.decode(ids), repr(text)


def test_phi4_tiny_as_transformers_reads_it(load: Callable[[Path], Tokenizer]) -> None:
    ours, theirs = load(PHI4 / "tokenizer.json"), transformers.AutoTokenizer.from_pretrained(PHI4)
    for text in ("", "👩🏽\u200d🚀 你好，世界。", "<|user|>Hi<|end|><|assistant|>", "  two\n\n"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids and ours.decode(ids).decode() == theirs.decode(ids) == text
    emoji = ours.encode("👩")
    assert len(emoji) > 1
    assert b"".join(ours.decode([token]) for token in emoji) == "👩".encode()
    assert ours.decode([-1, 1 << 40, *emoji]) == "👩".encode()


def test_words_keep_their_spaces_and_bytes_are_bytes(
    load: Callable[[Path], Tokenizer], files: dict[str, Path], tmp_path: Path
) -> None:
    path = llama_style(files["sentencepiece"], tmp_path / "tokenizer.json")
    python, ours = load_tokenizer(path), load(path)
    for text in SAMPLE:
        ids = runner_ids(path, text)
        assert ours.encode(text) == ids and ours.decode(ids).decode(errors="replace") == python.decode(ids), repr(
            text
        )
    assert ours.decode(runner_ids(path, "a bb 👩")) == "a bb 👩".encode()
    assert ours.encode("a", num_bos=1) == [1, *ours.encode("a")]  # by the post_processor


def llama_style(model: Path, out: Path) -> Path:
    """A tokenizer.json of a SentencePiece model, as Phi-3's: U+2581 for a space, bytes spelled, a space in front."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    cuts = [(text, text[:at], text[at:]) for text in vocab for at in range(1, len(text))]
    merges = [(vocab[text], [left, right]) for text, left, right in cuts if left in vocab and right in vocab]
    added = [{"id": i, "content": text, "special": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"Sequence": {"id": "B", "type_id": 1}}]
    raw: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [token | flags for token in added],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, sequence],
            "pair": [bos, sequence, *second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [pair for _, pair in sorted(merges, key=lambda entry: entry[0])],
        },
    }
    out.write_text(json.dumps(raw))
    return out


def test_what_is_no_tokenizer_is_refused_with_a_sentence(load: Callable[[Path], Tokenizer], tmp_path: Path) -> None:
    for name, data, sentence in (
        ("none", None, "cannot be read: No such file or directory"),
        ("empty", b"", "is no tokenizer that"),
        ("text", b"hello, this is no tokenizer\n", "is no tokenizer that ExecuTorch's runner reads"),
        ("cut", (PHI4 / "tokenizer.json").read_bytes()[:5000], "is no tokenizer that"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ValueError, match=sentence):
            load(path)
