"""Time and memory of preparing a photo and a recording for a multimodal model, beside transformers' processors.

    python -m benchmarks.media [--rounds 3] [--json]

A photo of 12 megapixels (JPEG) and five minutes of sound (MP3, 44.1 kHz, stereo) are made, and each is prepared from
the file on: decoded, and made crops or a spectrogram. Every trial is a process of its own, and they take turns.
Transformers needs torch and torchvision for it; what they take shows in the memory before the first file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from checkpoints.errors import BadInput, run

PHOTO = (4032, 3024)  # pixels
RECORDING_S = 300


def compare(rounds: int = 3, progress: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """Measure in turns. Returns all trials and their medians."""
    if rounds < 1:
        raise BadInput(f"--rounds {rounds} is not at least 1")
    import export.media.picture_files
    import export.media.sound_files  # noqa: F401  says which extra is missing, before minutes of work

    trials: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in LOADERS}
    with tempfile.TemporaryDirectory(prefix="pocketphi-") as folder:
        files = {"photo": _photo(Path(folder)), "recording": _recording(Path(folder))}
        for number in range(rounds):
            for (who, what), own in trials.items():
                progress(f"round {number + 1} of {rounds}: {what}, {who}")
                own.append(_in_child(who, what, files[what]))
    results = []
    for (who, what), own in trials.items():
        median = {key: statistics.median(trial[key] for trial in own) for key in own[0]}
        results.append({"what": what, "who": who, "median": median, "trials": own})
    return {"machine": measure.machine(), "rounds": rounds, "results": results}


def _photo(folder: Path) -> Path:
    """Shapes and noise, as large when compressed as a camera's."""
    from PIL import Image

    rng = np.random.default_rng(0)
    shapes = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).resize(PHOTO)
    noisy = np.asarray(shapes, np.int16) + rng.integers(-8, 9, (PHOTO[1], PHOTO[0], 1), dtype=np.int16)
    path = folder / "photo.jpg"
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def _recording(folder: Path) -> Path:
    """A tone that wanders, and noise."""
    import soundfile

    moments = np.arange(44100 * RECORDING_S) / 44100
    noise = np.random.default_rng(0).normal(0, 0.02, len(moments))
    samples = np.sin(2 * np.pi * (300 * moments + 20 * np.sin(moments))) / 3 + noise
    path = folder / "recording.mp3"
    soundfile.write(path, np.stack([samples, samples[::-1]], axis=1).astype(np.float32), 44100)
    return path


def _in_child(who: str, what: str, path: Path) -> dict[str, float]:
    done = measure.run([sys.executable, "-m", "benchmarks.media", "--trial", who, what, str(path)])
    if done.failure:
        last = "".join(done.tail.strip().splitlines()[-1:]).removeprefix("error: ")
        raise BadInput(f"the {what} could not be measured with {who} ({done.failure}): {last}")
    told = json.loads(done.tail.strip().splitlines()[-1])
    return told | {"process_s": done.wall_s, "peak_private_bytes": done.private_peak_bytes}


def trial(who: str, what: str, path: Path) -> dict[str, float]:
    """Prepare one file in this process: milliseconds, tokens, and private memory before it, with all imported."""
    ready = LOADERS[who, what]()
    before = measure.anonymous_bytes()
    start = time.perf_counter()
    count = ready(path)
    return {"ms": 1e3 * (time.perf_counter() - start), "tokens": count, "private_bytes_before": before}


# ---- each imports, and gives a function from a file to the number of tokens


def _our_photo() -> Callable[[Path], int]:
    from export.media.picture_files import read_picture
    from export.media.pictures import prepare
    from export.media.vectors import read

    settings = read()[1]
    return lambda path: prepare(read_picture(path), settings).tiling.tokens


def _our_recording() -> Callable[[Path], int]:
    from export.media.sound_files import read_sound
    from export.media.sounds import log_mel, tokens
    from export.media.vectors import read

    settings = read()[2]

    def ready(path: Path) -> int:
        sound = read_sound(path, settings)
        return tokens(len(log_mel(sound.samples, sound.rate, settings)), settings)

    return ready


def _their_photo() -> Callable[[Path], int]:
    from transformers.image_utils import load_image
    from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor

    processor = Phi4MultimodalImageProcessor()
    return lambda path: int(processor(load_image(str(path)), return_tensors="pt")["num_img_tokens"][0])


def _their_recording() -> Callable[[Path], int]:
    """Decoding and resampling by the same libraries, whole: the extractor takes samples."""
    import soundfile
    import soxr
    from transformers import Phi4MultimodalFeatureExtractor

    extractor = Phi4MultimodalFeatureExtractor()

    def ready(path: Path) -> int:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        samples = soxr.resample(samples.mean(axis=1), rate, extractor.sampling_rate)
        found = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        return int(found["audio_embed_sizes"][0])

    return ready


LOADERS = {
    ("ours", "photo"): _our_photo,
    ("transformers", "photo"): _their_photo,
    ("ours", "recording"): _our_recording,
    ("transformers", "recording"): _their_recording,
}


def _print(report: dict[str, Any], console: Console) -> None:
    title = f"medians of {report['rounds']} rounds; a photo of 12 megapixels, {RECORDING_S // 60} minutes of MP3"
    table = Table("", title=title)
    table.add_column("", no_wrap=True)
    for name in ("tokens", "ms", "private MB imported", "private MB at most", "whole process, s"):
        table.add_column(name, justify="right")
    for result in report["results"]:
        median = result["median"]
        table.add_row(
            result["what"],
            result["who"],
            f"{median['tokens']:,.0f}",
            f"{median['ms']:,.0f}",
            f"{median['private_bytes_before'] / 1e6:,.0f}",
            f"{median['peak_private_bytes'] / 1e6:,.0f}",
            f"{median['process_s']:.1f}",
        )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.media", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of all trials (default: 3)")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    parser.add_argument("--trial", nargs=3, metavar=("WHO", "WHAT", "FILE"), help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.trial:
        print(json.dumps(trial(flags.trial[0], flags.trial[1], Path(flags.trial[2]))))
        return 0
    report = compare(flags.rounds, lambda line: print(line, file=sys.stderr))
    if flags.json:
        print(json.dumps(report))
    else:
        _print(report, Console())
    return 0


if __name__ == "__main__":
    run(main)
