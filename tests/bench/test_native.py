"""export.bench android --native: the flags it is given, the line it prints, its memory, and how it can fail."""

from __future__ import annotations

import platform
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints.errors import BadInput
from export.bench.android.native import check_binary, parse_statistics
from export.bench.results.result import read_result
from tests.bench.conftest import QUICK, Ran, start
from tests.bench.test_faults import kept, sentence, wait_for
from tests.phone.device import PROPS, Phone
from tests.tools import need

Bench = Callable[..., Ran]
SOURCE = Path(__file__).parents[1] / "phone/llama_main.c"
# As printed by the wheel's runner, which shares upstream's code for it.
LINE = (
    'the end.\nPyTorchObserver {"prefill_token_per_sec":512,"prompt_tokens":16,"generated_tokens":7,'
    '"model_load_start_ms":1,"model_load_end_ms":4,"inference_start_ms":5,"inference_end_ms":40,'
    '"prompt_eval_end_ms":9,"first_token_ms":9,"aggregate_sampling_time_ms":0,"SCALING_FACTOR_UNITS_PER_SECOND":1000}'
)


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, compiled for this machine, which the phone's folder is of too."""
    need("phone", [] if shutil.which("cc") else ["cc"])
    path = tmp_path_factory.mktemp("native") / "llama_main"
    subprocess.run(["cc", "-static", "-O1", "-Wall", "-Werror", "-o", str(path), str(SOURCE)], check=True)
    return path


def test_a_run(phone: Phone, bench: Bench, binary: Path, pte: Path, tmp_path: Path) -> None:
    ran = bench("--native", binary)
    assert (ran.code, ran.errors) == (0, [])
    (path,) = (tmp_path / "out").glob("*.json")
    document = read_result(path)
    assert document["build"]["engine"] == "llama_main"
    assert document["device"]["model"] == "Debian Trixie Phone" and document["device"]["soc"] == "veth"
    assert document["device"]["ram_bytes"] == 8_000_000 * 1024
    for run in document["runs"]:
        assert run["configuration"]["load_mode"] == "each"
        for repeat in run["repeats"]:
            assert repeat["generated_tokens"] == 8 and repeat["stop_reason"] == "new_tokens"
            assert 300 <= repeat["load_ms"] < 60_000 and repeat["token_ms"] == []
            peak = repeat["memory"]["peak"]
            assert 64 << 20 < peak["private_bytes"] < 80 << 20 and 64 << 20 < peak["rss_bytes"] < 80 << 20
            assert peak["pss_bytes"] is None, "its pages would be walked through while it computes"
            assert peak["available_bytes"] == 4_000_000 * 1024
            assert {sample["phase"] for sample in repeat["memory"]["samples"]} >= {"load", "decode"}
            assert repeat["thermal"]["after"] == {
                "status": "none", "battery_celsius": 30.4, "battery_percent": 81.0, "low_power_mode": False
            }  # fmt: skip
    assert document["runs"][0]["summary"]["decode_tokens_per_s"]["max"] <= 7 / 0.2
    assert phone.left() == ["llama_main", "model.pte", "tokenizer.json"]
    assert int((phone.shared / "native.count").read_text()) == 2 * (2 + 1)


FAULTS = {
    "killed": "llama_main was killed by signal 9, last seen with 6",
    "crash": "llama_main crashed with signal 11",
    "silent": "llama_main printed no line PyTorchObserver",
    "refuse": "llama_main ended with exit code 1: E executorch: Failed to load method forward: 0x20",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str, phone: Phone, bench: Bench, binary: Path, tmp_path: Path) -> None:
    (phone.shared / "native").write_text(f"{fault} 3")  # a warm-up, a repeat, and this
    said = sentence(bench("--native", binary))
    assert FAULTS[fault] in said and phone.serial in said
    count, document = kept(tmp_path / "out")
    assert count == 1 and said == f"error: {document['problem']}"
    assert phone.left() == ["llama_main", "model.pte", "tokenizer.json"]


def test_it_stalls(phone: Phone, bench: Bench, binary: Path) -> None:
    (phone.shared / "native").write_text("stall 1")
    assert "llama_main took over 2 s: time-out" in sentence(bench("--native", binary, "--timeout", "2"))
    assert not phone.processes("llama_main")


def test_ctrl_c_ends_it(phone: Phone, binary: Path, pte: Path, tmp_path: Path) -> None:
    (phone.shared / "native").write_text("stall 3")
    process = start("android", "--pte", pte, "--native", binary, *QUICK, "--out", tmp_path / "out")
    count = phone.shared / "native.count"
    wait_for(lambda: count.exists() and count.read_text() == "3" and phone.processes("llama_main"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert kept(tmp_path / "out")[0] == 1 and not phone.processes("llama_main")


def test_unplugged(phone: Phone, bench: Bench, binary: Path, tmp_path: Path) -> None:
    (phone.shared / "native").write_text("stall 3")
    count = phone.shared / "native.count"

    def unplug() -> None:
        wait_for(lambda: count.exists() and count.read_text() == "3")
        phone.unplug()

    thread = threading.Thread(target=unplug)
    thread.start()
    said = sentence(bench("--native", binary))
    thread.join()
    assert f"{phone.serial} was unplugged while it was measured" in said and kept(tmp_path / "out")[0] == 1


def test_a_hot_phone_is_flagged(phone: Phone, bench: Bench, binary: Path) -> None:
    phone.set("battery.json", {"thermal": 3, "temperature": 441})
    assert "The device was hot in repeat 1, 2" in bench("--native", binary).out


def test_a_program_for_another_processor(phone: Phone, bench: Bench, binary: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "llama_main"
    data = bytearray(binary.read_bytes())
    data[18:20] = (40).to_bytes(2, "little")
    foreign.write_bytes(data)
    said = sentence(bench("--native", foreign))
    assert "runs x86_64, arm64-v8a programs, llama_main is for armeabi-v7a" in said and not phone.left()
    phone.set("props.json", PROPS | {"ro.product.cpu.abilist": "x86_64,armeabi-v7a"})
    data[20:] = b""
    foreign.write_bytes(data)
    assert "cannot be run on this phone" in sentence(bench("--native", foreign))


def test_check_binary(binary: Path, tmp_path: Path) -> None:
    assert check_binary(binary) == {"x86_64": "x86_64", "aarch64": "arm64-v8a"}[platform.machine()]
    short = tmp_path / "short"
    short.write_bytes(b"\x7fELF")
    with pytest.raises(BadInput, match="is no program of Android's"):
        check_binary(short)


def test_the_statistics_line() -> None:
    found = parse_statistics(LINE.splitlines())
    assert found is not None and found["inference_end_ms"] == 40
    assert parse_statistics(["PyTorchObserver {}", "PyTorchObserver {broken"]) is None
    assert parse_statistics([]) is None
