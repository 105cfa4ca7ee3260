"""Reads checkpoints that torchao has quantized already; their values go on unchanged.

Two forms: the safetensors that transformers 5.23 saves (each weight as qdata, scale and zero_point, described in the
header's metadata, see torchao.prototype.safetensors), which `saving` beside this writes, and the state dict of
torch.save that the published recipe leaves. Knows nothing of `.pte` files.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.config import ModelConfig, read_config, read_object
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.files import present
from checkpoints.matrices import seen
from checkpoints.phi3 import LEGACY
from checkpoints.phi4mm_config import MODALITIES
from checkpoints.roles import DTYPES, EMBEDDING, HEAD, Role, role
from checkpoints.safetensors_io import Entry, read_header
from checkpoints.source import Source
from checkpoints.untied import Untied
from checkpoints.weights import INDEX, SINGLE, Checkpoint, open_checkpoint
from export.quantization.recipe import Recipe, short_name
from export.quantization.rounding import CHUNK_ELEMENTS, QuantizedSource, Quantizing, Rounded
from export.quantization.with_text import WithText

PARTS = ("qdata", "scale", "zero_point")
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TYPE = "IntxUnpackedToInt8Tensor"
INT8_PER_TOKEN = "int8_asym_per_token"  # torchao's word for the activations of 8da4w
RECORD = "calibration.json"  # how levels were chosen, where that was not by rounding to nearest
FIDELITY = ("positions", "kl_mean_nats", "top1_agreement")  # what it says at least of what was lost
FIRST_LINEAR = "model.layers.0.self_attn.qkv_proj.weight"


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a weight is stored: bits of an element, columns that share a scale, whether activations are int8."""

    bits: int
    group: int
    linear: bool

    def __str__(self) -> str:
        return f"int{self.bits} in groups of {self.group}{' with int8 activations' if self.linear else ''}"


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `export.calibration` left beside the weights of a folder, None where it did not make them."""
    if not present(folder / RECORD):
        return None
    record = read_object(folder / RECORD)
    try:
        told = [record["method"], record["checkpoint"]["name"], record["fidelity"]["text"]]
        numbers = [record["fidelity"][kind][key] for kind in ("calibrated", "nearest") for key in FIDELITY]
    except (KeyError, TypeError):
        told = numbers = [None]
    if not all(isinstance(text, str) for text in told) or not all(type(x) in (int, float) for x in numbers):
        raise BadInput(f"{folder / RECORD} does not say how the levels were chosen, as --calibrate leaves it")
    return record


def open_quantized(source: Source, recipe: Recipe) -> QuantizedSource:
    """A checkpoint as quantized rows: made by `recipe` from float weights, or as its folder has them.

    A quantized folder must agree with `recipe` unless that is the default, and takes no adapters. Raises BadInput.
    """
    if source.text_weights is not None:
        return _with_text(source, recipe)
    folder = source.folder
    config = read_config(folder)
    pickles = _pickles(folder)
    if not (declared := config.raw.get("quantization_config")) and not pickles:
        modalities = MODALITIES if source.modalities is None else source.modalities
        own = source.own_adapter
        return Quantizing(
            seen(open_checkpoint(folder, source.adapters, modalities=modalities, own_adapter=own)), recipe
        )
    if source.adapters:
        raise BadInput(f"{folder} is quantized already, --adapter {source.adapters[0].folder} needs the original")
    method = declared.get("quant_method") if isinstance(declared, dict) else None
    if declared and method != "torchao":
        raise BadInput(f"{config.path}: quant_method is {json.dumps(method)}, only torchao's weights can be read")
    checkpoint, kinds = _open_pickles(folder, config, pickles) if pickles else _open_safetensors(folder)
    return Saved(checkpoint, kinds, recipe)


def float_original(source: Source) -> Source | None:
    """What a multimodal source's calibrated text model was made of; None for any other source."""
    if source.text_weights is None or read_record(source.text_weights) is None:
        return None
    return dataclasses.replace(source, text_weights=None)


def _with_text(source: Source, asked: Recipe) -> WithText:
    """A multimodal checkpoint with its text model from another folder, by whose recipe the rest is made too."""
    assert source.text_weights is not None
    kind = Source(source.text_weights, source.text_weights.resolve().name, None, "folder")
    default = Recipe()
    lora, encoder = asked.lora_bits, asked.encoder_bits
    of_text = dataclasses.replace(asked, lora_bits=default.lora_bits, encoder_bits=default.encoder_bits)
    text = open_quantized(kind, of_text)
    if isinstance(text, Quantizing):
        raise BadInput(f"--text-weights: {text.config.path} is of a float checkpoint, not of a quantized one")
    modalities = MODALITIES if source.modalities is None else source.modalities
    checkpoint = open_checkpoint(source.folder, modalities=modalities)
    if checkpoint.config.multimodal is None:
        raise BadInput(
            f"--text-weights is for a model that takes more than text, {checkpoint.config.path} is read without"
        )
    recipe = dataclasses.replace(text.recipe, lora_bits=lora, encoder_bits=encoder)
    return WithText(Quantizing(seen(checkpoint), recipe), text)


class Saved:
    """A quantized checkpoint as a `QuantizedSource`; see open_quantized. Memory: mapped pages of one weight.

    transformers leaves lm_head, and without include_input_output_embeddings the embedding too, in float
    without a word: these are quantized here, with the bits `asked` for, and `notes` says so.
    """

    def __init__(self, checkpoint: Checkpoint, kinds: dict[str, Kind | None], asked: Recipe) -> None:
        self.folder, self.checkpoint, self._kinds = checkpoint.folder, checkpoint, kinds
        if HEAD not in kinds and kinds.get(EMBEDDING):
            raise BadInput(
                f"{self.folder} has a quantized embedding and no {HEAD}, so it was quantized while tied: "
                "untie the original first (python -m export.untie)"
            )
        tied = checkpoint.config.tie_word_embeddings and HEAD not in kinds
        checkpoint.config = dataclasses.replace(checkpoint.config, tie_word_embeddings=tied)
        untied = Untied(checkpoint)
        self.config: ModelConfig = untied.config
        _check_tensors(checkpoint, kinds)
        self.recipe = _find_recipe(checkpoint, kinds, asked)
        self._float = Quantizing(untied, self.recipe)
        self.files = checkpoint.files
        self.notes = checkpoint.config.notes + tuple(
            f"{self.folder}: {name} was left in float when the rest was quantized, it becomes int{bits} now"
            for name, bits in ((EMBEDDING, self.recipe.embedding_bits), (HEAD, self.recipe.head_bits))
            if not kinds.get(name)
        )

    def rows(self, name: str, start: int, stop: int) -> Iterator[Rounded | Tensor]:
        """Rows start … stop of a weight, in order; BadInput for values that no quantizer leaves."""
        kind = self._kinds.get(name)
        if kind is None:
            yield from self._float.rows(name, start, stop)
            return
        qdata, scale, zero_point = (self.checkpoint.tensor(part(name, suffix)) for suffix in PARTS)
        storage = self.recipe.storage(name, qdata.shape[1])
        step = max(1, CHUNK_ELEMENTS // qdata.shape[1])
        for at in range(start, stop, step):
            span = slice(at, min(at + step, stop))
            pieces = qdata[span], scale[span], zero_point[span]
            self._check_values(name, at, kind, *pieces)
            yield Rounded(pieces[0], pieces[1].to(storage.scale_dtype), storage)
        for suffix in PARTS:
            self.checkpoint.release(part(name, suffix))

    def _check_values(
        self, name: str, row: int, kind: Kind, qdata: Tensor, scale: Tensor, zero_point: Tensor
    ) -> None:
        low, high = -(1 << kind.bits - 1), (1 << kind.bits - 1) - 1
        in_bf16 = scale.to(torch.bfloat16).to(scale.dtype) == scale
        for what, bad in (
            (f"a value outside [{low}, {high}]", (qdata < low) | (qdata > high)),
            ("a zero point that is not 0", zero_point != 0),
            ("a scale that is not a positive number", ~torch.isfinite(scale) | (scale <= 0)),
            # XNNPACK's int4 weights have bfloat16 scales: rounding one would change the weights.
            ("a scale that is not a bfloat16 number", ~in_bf16 if kind.linear and kind.bits == 4 else None),
        ):
            if bad is not None and bad.any():
                raise BadInput(f"{self.folder}: {name} has {what} in row {row + int(bad.nonzero()[0, 0])}")


def part(name: str, suffix: str) -> str:
    """torchao's name for one tensor of a weight: model.norm.weight, scale -> model.norm._weight_scale."""
    module, _, parameter = name.rpartition(".")
    return f"{module}._{parameter}_{suffix}"


def _open_safetensors(folder: Path) -> tuple[Checkpoint, dict[str, Kind | None]]:
    checkpoint = open_checkpoint(folder, check=False)
    metadata: dict[str, Any] = {}
    for file in checkpoint.files:
        metadata |= read_header(file)[1]
    try:
        names = json.loads(metadata["tensor_names"])
        described = {name: json.loads(metadata[name]) for name in names}
        kinds = {name: _described_kind(folder, name, one) for name, one in described.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadInput(
            f"{folder}: config.json says the weights are quantized by torchao, "
            "but their files have no metadata as torchao writes it"
        ) from None
    # transformers describes a tied lm_head, which it then does not store
    present = set(checkpoint.names())
    return checkpoint, {name: kind for name, kind in kinds.items() if kind or name in present}


def _described_kind(folder: Path, name: str, described: dict[str, Any]) -> Kind | None:
    if described["_type"] == "Tensor":
        return None
    if described["_type"] != TYPE:
        raise BadInput(f"{folder}: {name} is a torchao {described['_type']}, only {TYPE} can be read")
    data = described["_data"]
    activations = data["activation_quantization"]
    if isinstance(activations, dict):  # an enum instead of its value
        activations = activations["_data"].lower()
    return _kind(folder, name, data["target_dtype"]["_data"], data["block_size"], activations)


def _kind(folder: Path, name: str, target: str, block: Any, activations: Any) -> Kind:
    bits = re.fullmatch(r"int([1-8])", target)
    if not bits or len(block) != 2 or block[0] != 1 or type(block[1]) is not int or block[1] < 1:
        raise BadInput(f"{folder}: {name} is {target} in blocks of {block}, not in groups along its rows")
    if activations not in (None, INT8_PER_TOKEN):
        raise BadInput(f"{folder}: {name} wants activations {activations}, only {INT8_PER_TOKEN} can be exported")
    return Kind(int(bits[1]), block[1], activations is not None)


def _pickles(folder: Path) -> list[Path]:
    """Files of a state dict in a folder that has no safetensors."""
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return []
    if (folder / BIN).is_file():
        return [folder / BIN]
    if not (folder / BIN_INDEX).is_file():
        return []
    shards = read_object(folder / BIN_INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(shard, str) and re.fullmatch(r"\w[\w.-]*\.bin", shard, re.ASCII) for shard in shards.values()
    ):
        raise BadInput(f"{folder / BIN_INDEX}: weight_map must name .bin files in this folder")
    return [folder / shard for shard in sorted(set(shards.values()))]


def _open_pickles(folder: Path, config: ModelConfig, files: list[Path]) -> tuple[Checkpoint, dict[str, Kind | None]]:
    """Places of all tensors in state dicts, under the names they would have in safetensors."""
    from torchao.quantization import IntxUnpackedToInt8Tensor  # slow to import, and seldom needed

    from checkpoints.pickled import offset, read_state_dict

    entries: dict[str, tuple[Entry, ...]] = {}
    kinds: dict[str, Kind | None] = {}
    for file in files:
        for name, value in read_state_dict(file).items():
            parts = {name: value}
            kinds[name] = None
            if isinstance(value, IntxUnpackedToInt8Tensor):
                target = str(getattr(value, "target_dtype", None)).removeprefix("torch.")
                block = tuple(getattr(value, "block_size", ()))  # other versions of torchao have other attributes
                kinds[name] = _kind(folder, name, target, block, getattr(value, "activation_quantization", "?"))
                parts = {part(name, suffix): getattr(value, suffix) for suffix in PARTS}
            for key, tensor in parts.items():
                begin = offset(tensor)
                entry = Entry(file, begin, begin + tensor.nbytes, tuple(tensor.shape), tensor.dtype)
                entries[key] = (entry,)
    if not any(kinds.values()):
        raise BadInput(f"{folder} has float weights in pickle files (*.bin), only safetensors are read")
    return Checkpoint(folder, config, files, entries), kinds


def _check_tensors(checkpoint: Checkpoint, kinds: dict[str, Kind | None]) -> None:
    """Raise BadInput unless names, shapes and dtypes are those of the model in config.json."""
    expected = tensor_shapes(checkpoint.config)
    present = set(checkpoint.names())
    for name, shape in expected.items():
        if name not in kinds:
            raise BadInput(f"{checkpoint.folder} has no tensor {name}")
        wanted: dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]] = {name: (shape, DTYPES)}
        if kind := kinds[name]:
            if len(shape) != 2 or shape[1] % kind.group:
                raise BadInput(f"{checkpoint.folder}: {name} of shape {shape} is {kind}, which does not fit")
            groups = (shape[0], shape[1] // kind.group)
            wanted = {
                part(name, "qdata"): (shape, (torch.int8,)),
                part(name, "scale"): (groups, DTYPES),
                part(name, "zero_point"): (groups, (torch.int8, *DTYPES)),
            }
        for key, (size, dtypes) in wanted.items():
            if key not in present:
                raise BadInput(f"{checkpoint.folder} has no tensor {key}")
            if checkpoint.shape(key) != size:
                why = f"config.json and {kind} make it" if kind else "config.json makes it"
                raise BadInput(f"{checkpoint.folder}: {key} has shape {checkpoint.shape(key)}, {why} {size}")
            if checkpoint.dtype(key) not in dtypes:
                raise BadInput(f"{checkpoint.folder}: {key} is {checkpoint.dtype(key)}, not {dtypes[0]}")
            present.remove(key)
    if left := sorted(name for name in present if not LEGACY.fullmatch(name)):
        raise BadInput(f"{checkpoint.folder}: {json.dumps(left[0])} is not a tensor of a dense Phi-3 model")


def _find_recipe(checkpoint: Checkpoint, kinds: dict[str, Kind | None], asked: Recipe) -> Recipe:
    """The recipe that made these weights; BadInput where they, config.json and `asked` are not of one mind."""
    folder, config = checkpoint.folder, checkpoint.config
    if not asked.quantized:
        raise BadInput(f"{folder} is quantized already, a float32 file needs the original")
    if kinds[FIRST_LINEAR] is None:
        raise BadInput(f"{folder}: {FIRST_LINEAR} is not quantized, though other weights are")
    embedding, head = kinds[EMBEDDING], kinds.get(HEAD)
    linears = {name: kind for name, kind in kinds.items() if kind and role(name) is Role.LINEAR}
    grouped = (kind.group for kind in (*linears.values(), head, embedding) if kind and kind.bits != 8)
    recipe = Recipe(
        group_size=next(grouped, asked.group_size),
        int8=tuple(short_name(name) for name in tensor_shapes(config) if name in linears and linears[name].bits == 8),
        embedding_bits=embedding.bits if embedding else asked.embedding_bits,
        head_bits=head.bits if head else asked.head_bits,
    )
    if (embedding and embedding.bits not in (4, 8)) or (head and head.bits not in (4, 8)):
        raise BadInput(f"{folder}: {EMBEDDING} is {embedding} and {HEAD} {head}, only 4 and 8 bits can be exported")
    recipe.check(config)
    for name, shape in tensor_shapes(config).items():
        if role(name) is Role.NORM:
            if kinds[name]:
                raise BadInput(f"{folder}: {name} is {kinds[name]}, norms must be float")
            continue
        storage = recipe.storage(name, shape[1])
        bits, group = storage.bits, shape[1] // storage.groups
        wanted, kind = Kind(bits, group, linear=not storage.embedding), kinds[name]
        if (kind is None and name not in (EMBEDDING, HEAD)) or (kind and kind != wanted):
            raise BadInput(f"{folder}: {name} is {kind or 'not quantized'}, not {wanted} as {recipe} has it")
        if kind and (declared := _declared(config, name, shape[1])) not in (None, (bits, group)):
            raise BadInput(
                f"{config.path}: quantization_config makes {name} int{declared[0]}, groups of {declared[1]}, "
                f"its tensors are {kind}"
            )
    if asked.resolved(config) not in (Recipe(), recipe):
        raise BadInput(f"{folder} is quantized already, as {recipe}: it cannot be exported as {asked}")
    return recipe


def _declared(config: ModelConfig, name: str, columns: int) -> tuple[int, int] | None:
    """Bits and group size that config.json gives a weight, by torchao's rules of precedence; None without any."""
    if not (declared := config.raw.get("quantization_config")):
        return None
    try:
        chosen = declared["quant_type"]["default"]
        table = chosen["_data"].get("fqn_to_config") or chosen["_data"].get("module_fqn_to_config")
        if table:
            module = name.removesuffix(".weight")
            patterns = (key for key in table if key.startswith("re:"))
            matching = (key for key in patterns if any(re.fullmatch(key[3:], full) for full in (name, module)))
            keys = [key for key in (name, module) if key in table]
            chosen = table.get(next(iter(keys), next(matching, "_default")))
        if chosen is None:
            return None
        data = chosen["_data"]
        granularity = data.get("weight_granularity") or data["granularity"]
        group = granularity["_data"]["group_size"] if granularity["_type"] == "PerGroup" else columns
        return int(data["weight_dtype"]["_data"].removeprefix("int")), group
    except (KeyError, TypeError, AttributeError, ValueError, re.error):
        raise BadInput(f"{config.path}: quantization_config.quant_type is not as torchao writes it") from None
