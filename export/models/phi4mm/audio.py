"""The encoder of sound (a conformer) and its projectors, as modules around XNNPACK's pieces.

Shapes: F frames of a log-mel spectrogram, S tokens of `time_reduction` frames; D hidden size, H heads of E; T text
model's hidden size. As in transformers' `Phi4MultimodalAudioEmbedding` (5.23) every token attends to the window, with
a bias for each head and distance, and convolutions look back only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from checkpoints.phi4mm_config import Audio
from export.models.family import Call, Method, Piece
from export.models.modules import LayerNorm, Numbers, Table, Vector
from export.models.phi3.pieces import Stored, make_piece
from export.models.phi4mm.layout import halvings
from export.models.phi4mm.vision import projector
from export.xnnpack.drawing import Drawing

WINDOW = 500  # tokens that attend to each other: fixed in the original's code
PIECE = 42  # tokens that audio_subsample makes at most: no piece of `settings` is longer


class Subsample(nn.Module):
    """frames [1, F, bins] to tokens [1, ceil(F / time_reduction), D]."""

    def __init__(self, audio: Audio, call: Call) -> None:
        super().__init__()
        self.mean, self.invstd = Vector(audio.num_mel_bins), Vector(audio.num_mel_bins)
        self.subsample = call("sound_subsample", "audio.")

    def forward(self, frames: Tensor) -> Tensor:
        result: Tensor = self.subsample(frames, self.mean(), self.invstd())
        return result


class Conformer(nn.Module):
    """tokens [1, S, D] of one window to rows [1, S, T] of the text model's embedding."""

    def __init__(self, audio: Audio, layers: int, mode: str, call: Call) -> None:
        super().__init__()
        self.reach = audio.bias_max_distance
        self.layers = nn.ModuleList(Block(audio, i, call) for i in range(layers))
        self.distances = Table(2 * audio.bias_max_distance, audio.num_attention_heads)
        self.numbers = Numbers((audio.hidden_size // audio.num_attention_heads) ** -0.5, 0.5)
        self.project = call("sound_projector", f"audio.{mode}.")

    def forward(self, h: Tensor) -> Tensor:
        place = torch.arange(h.shape[1])
        distance = (place.unsqueeze(0) - place.unsqueeze(1)).clamp(-self.reach, self.reach - 1)
        bias = self.distances(distance + self.reach).permute(2, 0, 1).contiguous()
        for layer in self.layers:
            h = layer(h, bias, *self.numbers())
        result: Tensor = self.project(h)
        return result


class Clip(Conformer):
    """frames [1, F, bins] of a clip within one window to rows [1, F / time_reduction, T]."""

    def __init__(self, audio: Audio, layers: int, mode: str, call: Call) -> None:
        super().__init__(audio, layers, mode, call)
        self.mean, self.invstd = Vector(audio.num_mel_bins), Vector(audio.num_mel_bins)
        self.subsample = call("sound_subsample", "audio.")

    def forward(self, frames: Tensor) -> Tensor:
        return super().forward(self.subsample(frames, self.mean(), self.invstd()))


class Block(nn.Module):
    """h [1, S, D] through half a feed-forward, attention, a convolution, half a feed-forward and a norm."""

    def __init__(self, audio: Audio, number: int, call: Call) -> None:
        super().__init__()
        dim, eps, place = audio.hidden_size, audio.layer_norm_eps, f"audio.layers.{number}."
        self.feed_in, self.feed_out = (
            Normed(dim, eps, call("sound_feed", f"{place}{name}.")) for name in ("feed_in", "feed_out")
        )
        self.attention = Normed(dim, eps, call("sound_attend", f"{place}attention."))
        self.conv = Normed(dim, eps, call("sound_convolve", f"{place}conv."))
        self.norm = LayerNorm(dim, eps)

    def forward(self, h: Tensor, bias: Tensor, scale: Tensor, half: Tensor) -> Tensor:
        h = self.attention(self.feed_in(h, half), bias, scale)
        result: Tensor = self.norm(self.feed_out(self.conv(h), half))
        return result


class Normed(nn.Module):
    """h to piece(norm(h), h, …): the piece adds the residual."""

    def __init__(self, dim: int, eps: float, piece: Callable[..., Tensor]) -> None:
        super().__init__()
        self.norm, self.piece = LayerNorm(dim, eps), piece

    def forward(self, h: Tensor, *more: Tensor) -> Tensor:
        return self.piece(self.norm(h), h, *more)


def methods(audio: Audio, call: Call, beside_pictures: bool) -> list[Method]:
    """audio_encoder, audio_subsample and an audio_conformer for each projection there is.

    The stock runners' audio_encoder projects as sound beside pictures where the file has pictures.
    """
    mode = "vision" if beside_pictures else "speech"
    per, layers, prefix = audio.time_reduction, audio.num_hidden_layers, "audio."
    tokens = torch.export.Dim("tokens", min=1, max=WINDOW)
    # torch.export tells 1 token from more, so it is told of two at least; the runtime takes one as well.
    frames = torch.export.Dim("frames", min=per + 1, max=PIECE * per)
    # Examples are large: of 99 frames upstream derived a bound of 256 for a whole window's 4000 (1.5.1).
    clip, piece = (torch.zeros(1, count, audio.num_mel_bins) for count in (88 * per, 335))
    window = torch.zeros(1, 88, audio.hidden_size)
    copies = {}
    if beside_pictures:
        copies["audio_conformer_vision"] = lambda token: token.replace("audio.speech.", "audio.vision.")
    return [
        Method("audio_encoder", lambda n: Clip(audio, n, mode, call), layers, (clip,), ({1: per * tokens},), prefix),
        Method("audio_subsample", lambda _: Subsample(audio, call), 0, (piece,), ({1: frames},), prefix),
        Method(
            "audio_conformer_speech",
            lambda n: Conformer(audio, n, "speech", call),
            layers,
            (window,),
            ({1: tokens},),
            prefix,
            copies,
        ),
    ]


def make_pieces(audio: Audio, text: int, stored: Stored) -> dict[str, Piece]:
    """sound_subsample, sound_feed, sound_attend, sound_convolve and sound_projector."""
    hidden, per = audio.hidden_size, audio.time_reduction

    def like_second(x: Tensor, h: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty_like(h),)

    def tokens(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return (x.new_empty(1, (x.shape[1] + per - 1) // per, hidden),)

    return {
        "sound_subsample": make_piece(lambda here: _subsample(audio, here), stored, tokens),
        "sound_feed": make_piece(lambda here: _feed(audio, here), stored, like_second),
        "sound_attend": make_piece(lambda here: _attend(audio, here), stored, like_second),
        "sound_convolve": make_piece(lambda here: _convolve(audio, here), stored, like_second),
        "sound_projector": projector(WINDOW, hidden, text, stored),
    }


def _feed(audio: Audio, stored: Stored) -> Drawing:
    hidden, inner, rows = audio.hidden_size, audio.intermediate_size, [1, WINDOW, audio.hidden_size]
    feed = Drawing()
    x, h, half = feed.input(rows), feed.input(rows), feed.input([1])
    gate = feed.silu(feed.linear(x, inner, "gate", stored("gate", hidden), bias=True))
    up = feed.linear(x, inner, "up", stored("up", hidden), bias=True)
    y = feed.linear(feed.multiply(up, gate), hidden, "down", stored("down", inner), bias=True)
    feed.output(feed.add(h, feed.multiply(y, half)))
    return feed


def _attend(audio: Audio, stored: Stored) -> Drawing:
    hidden, heads = audio.hidden_size, audio.num_attention_heads
    size, rows = hidden // heads, [1, WINDOW, hidden]
    attend = Drawing()
    x, h, bias, scale = (attend.input(dims) for dims in (rows, rows, [heads, WINDOW, WINDOW], [1]))

    def linear(x: int, name: str) -> int:
        return attend.linear(x, hidden, name, stored(name, hidden), bias=True)

    q, k, v = (
        attend.reshape(linear(x, name), (0, heads, size), [WINDOW, heads, size]) for name in ("wq", "wk", "wv")
    )
    q = attend.multiply(attend.transpose(q, [1, 0, 2]), scale)
    scores = attend.add(bias, attend.matmul(q, attend.transpose(k, [1, 2, 0])))
    attended = attend.matmul(attend.softmax(scores), attend.transpose(v, [1, 0, 2]))
    flat = attend.reshape(attend.transpose(attended, [1, 0, 2]), (1, 0, hidden), rows)
    attend.output(attend.add(h, linear(flat, "wo")))
    return attend


def _convolve(audio: Audio, stored: Stored) -> Drawing:
    hidden, rows = audio.hidden_size, [1, WINDOW, audio.hidden_size]
    convolve = Drawing()

    def linear(x: int, name: str) -> int:
        return convolve.linear(x, hidden, name, stored(name, hidden), bias=True)

    x, h = convolve.input(rows), convolve.input(rows)
    gate = convolve.silu(linear(x, "gate"))
    y = convolve.multiply(linear(x, "up"), gate)
    y = convolve.reshape(y, (1, 0, 1, hidden), [1, WINDOW, 1, hidden])
    kernel = (audio.kernel_size, 1)
    y = convolve.convolve(y, hidden, "depthwise", kernel, padding=(audio.kernel_size - 1, 0, 0, 0), depthwise=True)
    y = convolve.reshape(y, (1, 0, hidden), rows)
    convolve.output(convolve.add(h, linear(convolve.silu(linear(y, "point")), "out")))
    return convolve


def _subsample(audio: Audio, stored: Stored) -> Drawing:
    """Frames to tokens: convolutions over time and bins, channels last, each halving both."""
    bins, channels, frames = audio.num_mel_bins, audio.conv_channels, WINDOW * audio.time_reduction
    drawing = Drawing()
    x, mean, invstd = (drawing.input(dims) for dims in ([1, frames, bins], [bins], [bins]))
    x = drawing.multiply(drawing.subtract(x, mean), invstd)
    x = drawing.reshape(x, (1, 0, bins, 1), [1, frames, bins, 1])
    around = (1, 1, 1, 1)
    x = drawing.convolve(x, channels, "conv", (3, 3), stride=2, padding=around, relu=True)
    for i in range(1, halvings(audio)):
        x = drawing.convolve(x, channels, f"depthwise{i}", (3, 3), stride=2, padding=around, depthwise=True)
        name = f"pointwise{i}"
        x = drawing.linear(x, channels, name, stored(name, channels), bias=True, relu=True)
    # The checkpoint's linear takes the bins of a channel side by side.
    x = drawing.transpose(x, [0, 1, 3, 2])
    columns = channels * audio.subsampled_bins
    x = drawing.reshape(x, (1, 0, columns), [1, WINDOW, columns])
    drawing.output(drawing.linear(x, audio.hidden_size, "embed", stored("embed", columns), bias=True))
    return drawing
