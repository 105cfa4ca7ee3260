"""How Phi-4-multimodal wants pictures cut and sound transformed: by its configuration, and by what its code fixes."""

from __future__ import annotations

from checkpoints.phi4mm_config import Audio, Multimodal, Vision
from export.media.settings import AudioSettings, ImageSettings, MediaFacts
from export.models.phi4mm.audio import WINDOW


def media_facts(media: Multimodal | None, max_crops: int) -> MediaFacts:
    """What a file of the model takes beside text."""
    vision, audio = (media.vision, media.audio) if media is not None else (None, None)
    return MediaFacts(
        image_settings(vision, max_crops) if vision is not None else None,
        vision.token_id if vision is not None else None,
        audio_settings(audio) if audio is not None else None,
        audio.token_id if audio is not None else None,
    )


def image_settings(vision: Vision, max_crops: int) -> ImageSettings:
    """Mean and deviation are those of transformers' Phi4MultimodalImageProcessor (5.23)."""
    return ImageSettings(
        crop=vision.image_size,
        patch=vision.patch_size,
        pooled=vision.patches // 2,
        max_crops=min(max_crops, vision.dynamic_hd),
        mean=0.5,
        std=0.5,
    )


def audio_settings(audio: Audio) -> AudioSettings:
    """Frames and filters are those of transformers' Phi4MultimodalFeatureExtractor (5.23), kaldi's.

    A piece is 40 tokens. A token of convolutions that halve depends on so many frames, less one, on either side.
    """
    per = audio.time_reduction
    return AudioSettings(
        rate=16000,
        bins=audio.num_mel_bins,
        frame=400,
        hop=160,
        fft=512,
        preemphasis=0.97,
        low_hz=0,
        high_hz=7690,
        frames_per_token=per,
        window=WINDOW,
        piece=per + 40 * per + per - 1,
        before=per,
        after=per - 1,
    )
