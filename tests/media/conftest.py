"""Settings as transformers' processors have them, and those processors."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tests.tools import need

need("media", [name for name in ("PIL", "soundfile", "soxr") if find_spec(name) is None], "uv sync --extra")
need("dev", ["torchvision"] if find_spec("torchvision") is None else [], "uv sync --group")

from export.media.settings import AudioSettings, ImageSettings  # noqa: E402


@pytest.fixture(scope="session")
def image_processor() -> Any:
    from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor

    return Phi4MultimodalImageProcessor()


@pytest.fixture(scope="session")
def feature_extractor() -> Any:
    from transformers import Phi4MultimodalFeatureExtractor

    return Phi4MultimodalFeatureExtractor()


@pytest.fixture(scope="session")
def images(image_processor: Any) -> ImageSettings:
    mean, std = set(image_processor.image_mean), set(image_processor.image_std)
    side = image_processor.size["height"]
    pooled = side // image_processor.patch_size // 2  # Phi4MultimodalImageEmbedding pools two by two
    return ImageSettings(
        side, image_processor.patch_size, pooled, image_processor.dynamic_hd, mean=mean.pop(), std=std.pop()
    )


@pytest.fixture(scope="session")
def audio(feature_extractor: Any) -> AudioSettings:
    it = feature_extractor
    return AudioSettings(
        rate=it.sampling_rate,
        bins=it.feature_size,
        frame=it.win_length,
        hop=it.hop_length,
        fft=it.n_fft,
        preemphasis=it.preemphasis,
        low_hz=0,  # it keeps no record of its filters' ends
        high_hz=7690,
        frames_per_token=it.audio_compression_rate,
        window=500,  # a constant within Phi4MultimodalAudioModel.forward
        piece=335,
        before=8,
        after=7,
    )
