"""A model answers as it does alone, whatever other models XNNPACK's cache of packed weights knows.

Alone means: in a process of its own, with the cache off, as the wheel is built. The cache is that of the wheel's
runtime, turned on as in the phones' builds (`export.engine.phone_options`), or given a file (`packed_file.cpp`).
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import executorch
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.errors import BadInput
from export.engine import phone_options
from export.engine.phone_options import PHONE, WHEEL, Sharing, XnnpackOptions, get_options, set_options
from export.engine.session import Feed, Session, run_feeds
from export.pte import export_pte
from export.ptefile.reader import open_pte
from tests.tools import need

P = ParamSpec("P")
T = TypeVar("T")

TOKENS = list(range(3, 16))
FEED = Feed("prefill and decode", (10, 1, 1, 1), every=False)  # XNNPACK multiplies one row with kernels of its own
VOCAB = 512  # of `tiny_folder`
ORDERS = pytest.mark.parametrize("names", [("first", "second"), ("second", "first")], ids="-".join)


def fresh(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it in a new process that has loaded no model: forked from one that only imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["export.engine.session"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *args, **kwargs).result()


def answer(session: Session) -> np.ndarray:
    """Logits [4, V] of FEED."""
    ends = np.cumsum(FEED.calls)
    steps = zip(ends - FEED.calls, ends, strict=True)
    return np.concatenate([session.step(TOKENS[start:end], int(start)).numpy()[-1:] for start, end in steps])


def together(files: Sequence[Path], options: XnnpackOptions) -> list[np.ndarray]:
    """The answers of files that are all loaded before the first is asked."""
    sessions = [Session(file, options) for file in files]
    return [answer(session) for session in sessions]


def replaced(path: Path, export: Path) -> tuple[np.ndarray, np.ndarray]:
    """The answers of what lay at `path` and of what then took its place, loaded while the former was."""
    before = Session(path, PHONE)
    os.replace(export, path)
    after = Session(path, PHONE)
    return answer(before), answer(after)


def variant(folder: Path, out: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """A copy of a checkpoint with changed tensors."""
    shutil.copytree(folder, out)
    for shard in out.glob("*.safetensors"):
        save_file({name: change(name, data).contiguous() for name, data in load_file(shard).items()}, shard)
    return out


@pytest.fixture(scope="module")
def files(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two exports of equal shapes and equal embedding, head and norms, which the cache does not hold.

    The second's linears have other levels, but wo the same levels and other scales: upstream's key has the name of
    the levels alone. In each file layer 1's wo is layer 0's with doubled scales.
    """
    folder = tmp_path_factory.mktemp("models")
    tensors = {name: data for shard in tiny_folder.glob("*.safetensors") for name, data in load_file(shard).items()}
    wo = tensors["model.layers.0.self_attn.o_proj.weight"]

    def first(name: str, data: Tensor) -> Tensor:
        return wo * (2 if ".1." in name else 1) if "o_proj" in name else data

    def second(name: str, data: Tensor) -> Tensor:
        return first(name, data) * 4 if "o_proj" in name else data.flip(0) if "_proj" in name else data

    exports = {}
    for change in (first, second):
        checkpoint, out = variant(tiny_folder, folder / change.__name__, change), folder / f"{change.__name__}.pte"
        exports[change.__name__] = export_pte(checkpoint, out=out, context=64, prefill_chunk=16, verify=False).path
    return exports


@pytest.fixture(scope="module")
def alone(files: dict[str, Path]) -> dict[str, np.ndarray]:
    """Each file's answer, the cache being off."""
    answers = {name: fresh(together, [file], WHEEL)[0] for name, file in files.items()}
    assert not np.array_equal(answers["first"], answers["second"])
    return answers


def parts(file: Path, suffix: str = "") -> dict[str, bytes]:
    """The file's data that have `suffix` in their name, such as ".wo.scale"."""
    opened = open_pte(file)
    return {name: bytes(opened.bytes(*span)) for name, span in sorted(opened.named.items()) if suffix in name}


def renamed(file: Path, out: Path, names: dict[str, str]) -> Path:
    """A copy of `file` that calls its data otherwise."""
    content = file.read_bytes()
    for own, other in names.items():
        assert len(own) == len(other), "a name of another length would move what follows"
        content = content.replace(own.encode(), other.encode())
    out.write_bytes(content)
    return out


@ORDERS
def test_models_alive_at_once_answer_as_alone(
    files: dict[str, Path], alone: dict[str, np.ndarray], names: tuple[str, str]
) -> None:
    answers = fresh(together, [files[name] for name in names], PHONE)
    for name, found in zip(names, answers, strict=True):
        np.testing.assert_array_equal(found, alone[name], err_msg=name)


@ORDERS
def test_an_export_that_takes_the_place_of_a_loaded_one_answers_as_alone(
    files: dict[str, Path], alone: dict[str, np.ndarray], tmp_path: Path, names: tuple[str, str]
) -> None:
    place, export = (Path(shutil.copy(files[name], tmp_path / f"{name}.pte")) for name in names)
    for name, found in zip(names, fresh(replaced, place, export), strict=True):
        np.testing.assert_array_equal(found, alone[name], err_msg=name)


def test_models_of_equal_names_get_the_weights_of_the_first(
    files: dict[str, Path], alone: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The cache really is on, and goes by names: without this the other tests would prove nothing."""
    names = dict(zip(parts(files["second"]), parts(files["first"]), strict=True))
    pair = [files["first"], renamed(files["second"], tmp_path / "second.pte", names)]
    np.testing.assert_array_equal(fresh(together, pair, WHEEL)[1], alone["second"])
    np.testing.assert_array_equal(fresh(together, pair, PHONE)[1], alone["first"])


def test_what_verifies_a_file_shows_what_is_wrong_on_phones_only(
    files: dict[str, Path], alone: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Layer 1 calls the levels of wo by the name they have in layer 0, and keeps scales of its own."""
    (zero, levels), (one, same) = parts(files["first"], ".wo.weight").items()
    assert levels == same
    small, large = (np.frombuffer(data, np.uint16) for data in parts(files["first"], ".wo.scale").values())
    np.testing.assert_array_equal(small + (1 << 7), large)  # bfloat16: the exponent starts at bit 7
    file = renamed(files["first"], tmp_path / "shared.pte", {one: zero})
    np.testing.assert_array_equal(fresh(together, [file], WHEEL)[0], alone["first"])
    ((_, verified),) = fresh(run_feeds, file, TOKENS, [FEED])
    assert not np.array_equal(verified, alone["first"])


def test_options_of_phones_change_no_logit(files: dict[str, Path], alone: dict[str, np.ndarray]) -> None:
    ((_, verified),) = fresh(run_feeds, files["first"], TOKENS, [FEED])
    np.testing.assert_array_equal(verified, alone["first"])


def test_the_wheel_is_built_with_the_options_said_to_be_its_own() -> None:
    assert fresh(get_options) == WHEEL


@pytest.mark.parametrize("options", [PHONE, WHEEL, XnnpackOptions(True, Sharing.PER_MODEL)], ids=str)
def test_options_are_taken(options: XnnpackOptions) -> None:
    before = get_options()
    try:
        set_options(options)
        assert get_options() == options
    finally:
        set_options(before)


def test_a_library_without_the_function_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone_options, "SYMBOL", "_ZN10executorch7runtime12{}_no_optionEv")
    with pytest.raises(BadInput, match=r"_C\..*do not export _ZN10executorch7runtime12set_no_optionEv"):
        set_options(PHONE)


def test_an_option_that_upstream_does_not_know_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone_options, "WEIGHT_CACHE", b"weight_cash_enabled")
    with pytest.raises(RuntimeError, match="weight_cash_enabled"):
        set_options(WHEEL)


@pytest.fixture(scope="module")
def packing_runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """packed_file.cpp, compiled against the wheel."""
    need("phone", [] if shutil.which("c++") else ["c++"])
    wheel, out = Path(executorch.__path__[0]), tmp_path_factory.mktemp("runner") / "packed_file.so"
    include = wheel / "include"
    command = ["c++", "-std=c++17", "-shared", "-fPIC", "-DC10_USING_CUSTOM_GENERATED_MACROS"]
    command += ["-DET_EVENT_TRACER_ENABLED", f"-I{include}"]
    command += [f"-I{include}/executorch/runtime/core/portable_type/c10"]
    command += [str(Path(__file__).with_name("packed_file.cpp")), "-o", str(out)]
    command += [f"-L{wheel}/lib", "-lexecutorch", f"-Wl,-rpath,{wheel}/lib"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def answer_packed(runner: Path, file: Path, packed: Path) -> np.ndarray:
    """What `answer` gives, of a file loaded with its packed weights at `packed`."""
    tokens, calls = np.array(TOKENS, np.int64), np.array(FEED.calls, np.int32)
    logits = np.empty((len(calls), VOCAB), np.float32)
    run = ctypes.CDLL(str(runner)).run
    run.argtypes = [ctypes.c_char_p] * 2 + [ctypes.c_void_p] * 2 + [ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
    where = os.fsencode(file), os.fsencode(packed)
    error = run(*where, tokens.ctypes.data, calls.ctypes.data, len(calls), logits.ctypes.data, VOCAB)
    assert error == 0, hex(error)
    return logits


@ORDERS
def test_an_export_beside_an_old_packed_file_answers_as_alone_after_every_start(
    files: dict[str, Path], alone: dict[str, np.ndarray], packing_runner: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    place, packed = tmp_path / "model.pte", tmp_path / "model.packed"
    shutil.copy(files[names[0]], place)
    np.testing.assert_array_equal(fresh(answer_packed, packing_runner, place, packed), alone[names[0]])
    content = packed.read_bytes()
    assert len(content) > sum(map(len, parts(place, "layers.").values()))
    np.testing.assert_array_equal(fresh(answer_packed, packing_runner, place, packed), alone[names[0]])
    assert packed.read_bytes() == content  # used, not packed again
    place.write_bytes(files[names[1]].read_bytes())
    for start in ("first", "second"):
        found = fresh(answer_packed, packing_runner, place, packed)
        np.testing.assert_array_equal(found, alone[names[1]], err_msg=f"{start} start of {names[1]}")
