"""Spectrograms and counts are transformers'; pieces and windows give the tokens of its encoder on the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.errors import BadInput
from export.media import sounds
from export.media.settings import AudioSettings
from export.media.sounds import frames, log_mel, pieces, tokens, windows


def noise(samples: int, loudness: float = 0.1) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, loudness, samples).astype(np.float32)


SOUNDS = {
    "one frame": noise(400),
    "less than two frames": noise(559),
    "0.1 s": noise(1600),
    "10 s": noise(160_000),
    "20 s, loud": noise(320_123, 2.0),
    "quiet": noise(16_000, 1e-5),
    "silence": np.zeros(16_000, np.float32),
    "constant": np.ones(16_000, np.float32),
}


@pytest.mark.parametrize("kind", SOUNDS)
def test_spectrograms_are_transformers(kind: str, feature_extractor: Any, audio: AudioSettings) -> None:
    theirs = feature_extractor(SOUNDS[kind], sampling_rate=16000, return_tensors="np")
    ours = log_mel(SOUNDS[kind], 16000, audio)
    assert ours.dtype == np.float32 and ours.shape == theirs["audio_input_features"][0].shape
    assert np.abs(ours - theirs["audio_input_features"][0]).max() <= 4e-6  # two steps of float32 at 15
    assert [tokens(len(ours), audio)] == theirs["audio_embed_sizes"].tolist()


def test_no_frame_is_lost_where_work_is_cut(audio: AudioSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = log_mel(SOUNDS["10 s"], 16000, audio)
    monkeypatch.setattr(sounds, "AT_ONCE", 77)
    assert np.array_equal(log_mel(SOUNDS["10 s"], 16000, audio), whole)


def test_half_the_rate_is_as_the_model_was_trained(audio: AudioSettings) -> None:
    """A frame at a time, in torch, with transformers' filters: the upper half of the spectrum is zeros."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(257, 80, 0, 7690, 16000, triangularize_in_mel_space=True, mel_scale="kaldi")
    samples = noise(8000)
    expected = []
    for start in range(0, 8000 - 200 + 1, 80):
        frame = torch.from_numpy(samples[start : start + 200]).double()
        frame = 32768 * (frame - 0.97 * torch.cat([frame[:1], frame[:-1]]))
        spectrum = torch.fft.fft(frame * torch.hamming_window(200, periodic=False, dtype=torch.float64), 256)
        power = torch.zeros(257, dtype=torch.float64)
        power[:128] = spectrum[:128].abs() ** 2
        expected.append(torch.log((power @ torch.from_numpy(filters)).clamp(min=1)))
    ours = log_mel(samples, 8000, audio)
    assert ours.shape == (98, 80) and np.abs(ours - torch.stack(expected).numpy()).max() < 1e-4
    assert (ours[:, -10:] == 0).all()  # log of the floor, above 4 kHz


def test_a_tone_looks_the_same_at_half_the_rate(audio: AudioSettings) -> None:
    """In half as many samples a quarter of the power; otherwise frames and bins are the same."""
    tone = {rate: np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32) for rate in (8000, 16000)}
    slow, fast = (log_mel(tone[rate], rate, audio) for rate in (8000, 16000))
    assert slow.shape == fast.shape
    peak = fast[0].argmax()
    assert slow[0].argmax() == peak
    # pre-emphasis takes less of a tone at half the rate: |1 - 0.97 e^(-iw)|
    emphasis = [abs(1 - 0.97 * np.exp(-2j * np.pi * 1000 / rate)) for rate in (8000, 16000)]
    expected = np.log(4) - 2 * np.log(emphasis[0] / emphasis[1])
    assert np.allclose(fast[:, peak] - slow[:, peak], expected, atol=0.05)


@pytest.mark.parametrize("samples", [400, 559, 560, 1599, 1600, 1680, 12345, 16000 * 300])
def test_counts_follow_the_formula(samples: int, audio: AudioSettings, feature_extractor: Any) -> None:
    count = frames(samples, 16000, audio)
    assert count == (samples - 400) // 160 + 1
    assert tokens(count, audio) == feature_extractor._compute_audio_embed_size(torch.tensor([count])).item()


@pytest.mark.parametrize(("samples", "rate"), [(0, 16000), (399, 16000), (199, 8000)])
def test_less_than_a_frame_is_a_sentence(samples: int, rate: int, audio: AudioSettings) -> None:
    with pytest.raises(BadInput, match=r"clip lasts 0\.\d+ seconds, at least 0\.0250 are needed"):
        log_mel(np.zeros(samples, np.float32), rate, audio, "clip")


@pytest.fixture(scope="module")
def encoder() -> Any:
    """transformers' subsampling of frames to tokens, small."""
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as module
    from transformers.models.phi4_multimodal.configuration_phi4_multimodal import Phi4MultimodalAudioConfig

    torch.manual_seed(0)
    config = Phi4MultimodalAudioConfig(hidden_size=16, nemo_conv_channels=8, intermediate_size=16, num_blocks=1)
    return module.Phi4MultimodalAudioNemoConvSubsampling(config).eval()


@pytest.mark.parametrize("total", [1, 8, 9, 334, 335, 336, 337, 343, 647, 648, 656, 1000, 1303])
def test_tokens_of_pieces_are_those_of_the_whole(total: int, encoder: Any, audio: AudioSettings) -> None:
    sound = torch.randn(1, total, audio.bins)
    with torch.no_grad():
        whole = encoder(sound, None)[0][0]
        cut = list(pieces(total, audio))
        made = []
        for piece in cut:
            own = encoder(sound[:, piece.start : piece.stop], None)[0][0]
            made.append(own[piece.skip : piece.skip + piece.tokens])
    assert len(whole) == tokens(total, audio) and torch.allclose(torch.cat(made), whole, atol=1e-6)
    shortest = min(audio.piece - audio.frames_per_token + 1, total)
    assert all(shortest <= piece.stop - piece.start <= audio.piece for piece in cut)
    assert all(piece.start % audio.frames_per_token == 0 for piece in cut)


def test_less_context_than_the_encoder_needs_shows(encoder: Any, audio: AudioSettings) -> None:
    """So the test before this one can fail: without frames before, tokens at a piece's start are others."""
    total, settings = 1000, replace(audio, piece=327, before=0)
    sound = torch.randn(1, total, audio.bins)
    with torch.no_grad():
        cut = [(piece, encoder(sound[:, piece.start : piece.stop], None)[0][0]) for piece in pieces(total, settings)]
        made = torch.cat([own[piece.skip : piece.skip + piece.tokens] for piece, own in cut])
        assert not torch.allclose(made, encoder(sound, None)[0][0], atol=1e-3)


@pytest.mark.parametrize("total", [1, 499, 500, 501, 999, 1000, 1001, 3750])
def test_windows_are_those_that_transformers_unfolds(total: int, audio: AudioSettings) -> None:
    from transformers.models.phi4_multimodal.modeling_phi4_multimodal import unfold_tensor

    numbers = torch.arange(1, total + 1, dtype=torch.float32)[None, :, None]
    expected = numbers[..., 0]
    if total > 500:  # as in Phi4MultimodalAudioModel.forward
        expected = unfold_tensor(torch.nn.functional.pad(numbers, (0, 0, 0, -total % 500)), 500)[..., 0]
    ours = [[*range(window.start + 1, window.stop + 1), *[0] * window.padding] for window in windows(total, audio)]
    assert ours == expected.int().tolist()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"piece": 330}, "a piece of 330 frames less 8 before and 7 after is no multiple of the 8 frames"),
        ({"before": 7, "after": 8}, "7 frames before a piece are no multiple of 8"),
        ({"high_hz": 9000}, "mel filters from 0 to 9000 Hz, sound has 0 to 8000.0 Hz"),
        ({"frame": 600}, "a frame of 600 samples does not fit into an FFT of 512"),
        ({"hop": 161}, "hop is 161, which has no half"),
        ({"bins": 0}, "bins is 0, it must be above 0"),
    ],
)
def test_settings_that_cannot_be(audio: AudioSettings, changed: dict[str, int], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        replace(audio, **changed)
