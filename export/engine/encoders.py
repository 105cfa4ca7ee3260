"""Runs the methods of a multimodal `.pte`: pictures and sound to rows of the embedding, and decoders on such rows.

Knows a file's methods and what they take; nothing of files of pictures, prompts or checkpoints. One KV cache belongs
to all decoders of a file, which the wheel's runtime keeps in an arena of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import executorch.extension.llm.custom_ops.custom_ops  # registers llama::update_cache, custom_sdpa
import executorch.kernels.quantized  # noqa: F401  registers the quantized embeddings
import numpy as np
import torch
from executorch.runtime import Method, Runtime
from torch import Tensor

from checkpoints.errors import BadInput
from export.engine.media_ids import OnPart
from export.engine.native_output import native_errors
from export.engine.phone_options import PHONE, XnnpackOptions, set_options
from export.media.prompt import Mode
from export.media.settings import AudioSettings, ImageSettings
from export.media.sounds import pieces, windows

if TYPE_CHECKING:
    from export.media.pictures import Picture

# The decoder and the projection of sound for each mode; text_decoder is that of pictures where a file has them.
DECODERS: dict[Mode, tuple[str, ...]] = {
    "text": ("text_decoder_text",),
    "vision": ("text_decoder",),
    "speech": ("text_decoder_speech", "text_decoder"),
}
ENCODERS = ("vision_", "audio_")


class MediaSession:
    """One loaded multimodal file. Methods are loaded when first called; `forget_encoders` gives theirs back.

    With a phone's options, XNNPACK's cache keeps packed weights of one name once for all methods: a second decoder
    costs its adapter, and its part of planned memory.
    """

    def __init__(self, path: Path, options: XnnpackOptions = PHONE) -> None:
        set_options(options)
        self.path = path
        with native_errors(f"{path}: ExecuTorch's runtime refuses it"):
            self._program = Runtime.get().load_program(path)
        self.methods = set(self._program.method_names)
        self.loaded: dict[str, Method] = {}
        with native_errors(f"{path}: ExecuTorch's runtime fails in get_max_seq_len"):
            length = self._program.load_method("get_max_seq_len")
            assert length is not None
            self.chunk = int(length.execute([])[0])  # tokens at once

    def run(self, name: str, *inputs: Tensor) -> Tensor:
        """The one result of a method; BadInput where the file has none of that name or the runtime fails."""
        if name not in self.methods:
            raise BadInput(f"{self.path} has no method called {name}")
        with native_errors(f"{self.path}: ExecuTorch's runtime fails in {name}"):
            result: Tensor = self._method(name).execute(inputs)[0]
        return result.clone()

    def load(self, *names: str) -> bool:
        """Load methods before they are called; whether any was not."""
        if missing := [name for name in names if name not in self.loaded]:
            with native_errors(f"{self.path}: ExecuTorch's runtime refuses its {missing[0]}"):
                for name in missing:
                    self._method(name)
        return bool(missing)

    def forget_encoders(self) -> None:
        """Free the methods that encode pictures and sound; they are loaded again when called."""
        for name in [name for name in self.loaded if name.startswith(ENCODERS)]:
            del self.loaded[name]
            self._program._methods[name] = (
                None  # executorch 1.5.1 keeps all methods here, and cannot be asked to drop any
            )

    def _method(self, name: str) -> Method:
        if name not in self.loaded:
            method = self._program.load_method(name)
            assert method is not None
            self.loaded[name] = method
        return self.loaded[name]

    def step(self, tokens: Sequence[int], start: int) -> Tensor:
        """As `Session.step`: logits [rows, V] of a prompt without pictures and sound."""
        logits = self.run("forward", torch.tensor([list(tokens)]), torch.tensor([start]))
        return logits.reshape(-1, logits.shape[-1])

    def picture(self, picture: Picture, settings: ImageSettings, on_part: OnPart = lambda: None) -> Tensor:
        """A picture's tokens as rows of the embedding, float32 [tokens, D]."""
        from export.media.pictures import merge  # needs Pillow

        features = list[Tensor]()
        for crop, valid in zip(picture.crops, picture.tiling.valid, strict=True):
            on_part()
            features.append(self.run("vision_crop", torch.from_numpy(crop[None]), torch.tensor(valid))[0])
        divider, separator = self.run("vision_separators")[0].numpy()
        stacked = torch.stack(features).numpy()
        return torch.from_numpy(merge(stacked, picture.tiling, settings, separator=separator, divider=divider))

    def sound(
        self, frames: np.ndarray, settings: AudioSettings, mode: Mode, on_part: OnPart = lambda: None
    ) -> Tensor:
        """A clip's tokens, float32 [tokens, D], of its log-mel spectrogram [frames, bins], in a prompt of `mode`."""
        tokens, rows = list[Tensor](), list[Tensor]()
        for piece in pieces(len(frames), settings):
            on_part()
            made = self.run("audio_subsample", torch.from_numpy(frames[None, piece.start : piece.stop].copy()))[0]
            tokens.append(made[piece.skip : piece.skip + piece.tokens])
        whole = torch.cat(tokens)
        for window in windows(len(whole), settings):
            on_part()
            padded = torch.nn.functional.pad(whole[window.start : window.stop], (0, 0, 0, window.padding))
            made = self.run(f"audio_conformer_{mode}", padded[None])[0]
            rows.append(made[: window.stop - window.start])
        return torch.cat(rows)

    def embed(self, tokens: list[int]) -> Tensor:
        """Rows of the embedding, float32 [tokens, D]."""
        return torch.cat(
            [self.run("token_embedding", part[None])[0] for part in torch.tensor(tokens).split(self.chunk)]
        )

    def decoder(self, mode: Mode) -> str:
        """The method that decodes rows of the embedding in a prompt of `mode`."""
        return next((name for name in DECODERS[mode] if name in self.methods), DECODERS[mode][0])

    def decode(self, rows: Tensor, start: int, mode: Mode) -> Tensor:
        """Logits [rows, V] of the last of these rows of the embedding [S, D], the first at position `start`.

        Fed in pieces that the file takes at once.
        """
        name = self.decoder(mode)
        for part in rows.split(self.chunk):
            logits = self.run(name, part[None], torch.tensor([start]))
            start += len(part)
        return logits.reshape(-1, logits.shape[-1])
