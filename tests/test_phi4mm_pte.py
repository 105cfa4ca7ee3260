"""export.pte of Phi-4-multimodal: every method computes what transformers' own classes do, with peft's adapters."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoints.config import read_config
from checkpoints.errors import BadInput
from checkpoints.families import matrix_shapes
from checkpoints.roles import Role, role
from checkpoints.source import find_source, resolve
from checkpoints.synthesize import synthesize
from export.engine.encoders import MediaSession
from export.engine.runner import read_media
from export.manifest import read_manifest
from export.media.prompt import Mode
from export.models.phi4mm.settings import audio_settings, image_settings
from export.planning.places import place
from export.pte import export_pte
from export.ptefile.reader import PteFile, open_pte
from export.quantization.recipe import Recipe
from export.quantization.rounding import Rounded
from export.quantization.saved_reader import open_quantized
from export.verification.extent import SHORT
from export.verification.verify import verify
from tests.tools import need

need("dev", ["peft"] if find_spec("peft") is None else [], "uv sync --group")

# Deep enough that each network is made deep from a shallow one.
SIZES: dict[str, Any] = {
    "layers": 4, "vision_layers": 5, "audio_layers": 4, "scale": 8, "hidden": 384, "heads": 6, "kv_heads": 2,
    "intermediate": 768, "vocab": 700,
}  # fmt: skip
SAME = 1e-5  # relative; float32 sums in another order
MODES: tuple[Mode, ...] = ("text", "vision", "speech")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("phi4mm")
    return {
        layout: synthesize(base / layout, "phi4-multimodal", **SIZES, layout=layout) for layout in ("main", "native")
    }


@pytest.fixture(scope="module")
def file(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("file") / "phi4mm.pte"
    source = str(folders["main"])
    export_pte(source, out=out, quantize=False, kv_cache="fp32", context=2048, verify=False)
    return out


@pytest.fixture(scope="module")
def session(file: Path) -> MediaSession:
    return MediaSession(file)


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> Any:
    """transformers' own model; adapters are called otherwise than parts of its modules, which load_adapter resets."""
    from transformers import Phi4MultimodalForCausalLM

    model = Phi4MultimodalForCausalLM.from_pretrained(
        folders["native"], dtype=torch.float32, attn_implementation="eager"
    )
    for name in ("vision", "speech"):
        model.load_adapter(str(folders["native"] / f"{name}-lora"), adapter_name=f"of_{name}")
    return model.eval().requires_grad_(False)


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm())


def set_mode(model: Any, mode: Mode) -> None:
    model.enable_adapters()
    if mode == "text":
        model.disable_adapters()
    else:
        model.set_adapter(f"of_{mode}")


def plan_of(opened: PteFile, name: str) -> Any:
    return next(plan for plan in opened.program.execution_plan if plan.name == name)


def test_crops(session: MediaSession, reference: Any) -> None:
    embed, generator = reference.model.embed_tokens_extend.image_embed, torch.Generator().manual_seed(0)

    def project(x: Tensor) -> Tensor:
        result: Tensor = embed.img_projection_down(F.gelu(embed.img_projection_up(x)))
        return result

    for valid in ((32, 32), (30, 32), (7, 21), (1, 1)):
        pixels = torch.randn(1, 3, 448, 448, generator=generator)
        mask = torch.zeros(1, 32, 32, dtype=torch.bool)
        mask[:, : valid[0], : valid[1]] = True
        wanted = project(embed.get_img_features(pixels, attention_mask=mask))
        assert relative(session.run("vision_crop", pixels, torch.tensor(valid)), wanted) < SAME, valid
    separators = torch.stack([embed.global_img_feature_extensor.flatten(), embed.sub_img_feature_extensor.flatten()])
    assert relative(session.run("vision_separators"), project(separators[None])) < SAME
    # A picture of one crop, as stock runners encode it.
    ids = torch.full((1, 545), reference.config.vision_config.image_token_id)
    pixels = torch.randn(1, 1, 3, 448, 448, generator=generator).expand(1, 2, 3, 448, 448)
    around = {"image_sizes": torch.tensor([[448, 448]]), "image_attention_mask": torch.ones(1, 2, 32, 32)}
    wanted = embed(ids, torch.zeros(1, 545, SIZES["hidden"]), pixels, **around)
    assert relative(session.run("vision_encoder", pixels[:, 0].contiguous()), wanted) < SAME


@pytest.mark.parametrize("frames", [8, 17, 336, 1000, 4500])
def test_clips(session: MediaSession, reference: Any, folders: dict[str, Path], frames: int) -> None:
    embed = reference.model.embed_tokens_extend.audio_embed
    media = read_config(folders["main"]).multimodal
    assert media and media.audio
    clip = 5 + 3 * torch.randn(1, frames, 80, generator=torch.Generator().manual_seed(frames))
    encoded = embed.encoder(clip, None)
    for mode, name in (("speech", "speech"), ("vision", "vision_speech")):
        up, down = (getattr(embed, f"{side}_proj_for_{name}") for side in ("up", "down"))
        wanted = down(F.gelu(up(encoded)))[0]
        assert relative(session.sound(clip[0].numpy(), audio_settings(media.audio), mode), wanted) < SAME  # type: ignore[arg-type]
    if frames % 8 == 0:
        assert relative(session.run("audio_encoder", clip)[0], wanted) < SAME


@pytest.mark.parametrize("mode", MODES)
def test_decoders(session: MediaSession, reference: Any, mode: Mode) -> None:
    ids = torch.randint(0, 600, (1, 40), generator=torch.Generator().manual_seed(1))
    set_mode(reference, mode)
    wanted = reference(input_ids=ids).logits[0]
    rows = session.embed(ids[0].tolist())
    assert relative(session.decode(rows[:20], 0, mode), wanted[12:20]) < SAME
    # What encoders do between two calls leaves the cache alone.
    session.run("audio_encoder", torch.randn(1, 4000, 80))
    session.run("vision_encoder", torch.randn(1, 3, 448, 448))
    session.run("vision_crop", torch.randn(1, 3, 448, 448), torch.tensor([30, 32]))
    found = torch.cat([session.decode(rows[i : i + 1], i, mode) for i in range(20, 40)])
    assert relative(found, wanted[20:]) < SAME


def test_decoders_share_one_cache(session: MediaSession, reference: Any) -> None:
    ids = torch.randint(0, 600, (1, 32), generator=torch.Generator().manual_seed(2))
    set_mode(reference, "text")
    wanted = reference(input_ids=ids).logits[0]
    session.run("forward", ids[:, :30], torch.tensor([0]))
    assert relative(session.decode(session.embed(ids[0, 30:].tolist()), 30, "text"), wanted[30:]) < SAME


def test_pictures_and_sound_in_a_prompt(session: MediaSession, reference: Any, folders: dict[str, Path]) -> None:
    """Two pictures, one of several crops, and a clip beside them."""
    from export.media.pictures import prepare

    media = read_config(folders["main"]).multimodal
    assert media and media.vision and media.audio
    settings, rng = image_settings(media.vision, 4), np.random.default_rng(0)
    pictures = [
        prepare(rng.integers(0, 255, (*size, 3), dtype=np.uint8), settings) for size in ((300, 640), (90, 90))
    ]
    clip = rng.normal(5, 3, (170, 80)).astype(np.float32)
    image, sound = reference.config.vision_config.image_token_id, reference.config.audio_config.audio_token_id
    first, second = (picture.tiling.tokens for picture in pictures)
    ids = [5, 6, *[image] * first, 7, *[image] * second, *[sound] * 22, 8, 9]

    most = max(len(picture.crops) for picture in pictures)
    pixels, masks = torch.zeros(2, most, 3, 448, 448), torch.zeros(2, most, 32, 32)
    for i, picture in enumerate(pictures):
        pixels[i, : len(picture.crops)] = torch.from_numpy(picture.crops)
        for j, (rows, columns) in enumerate(picture.tiling.valid):
            masks[i, j, :rows, :columns] = 1
        masks[i, len(picture.crops) :, :1, :1] = 1  # crops that are not there: without a patch they are NaN
    sizes = [(picture.tiling.rows * 448, picture.tiling.columns * 448) for picture in pictures]
    set_mode(reference, "vision")
    wanted = reference(
        input_ids=torch.tensor([ids]),
        image_pixel_values=pixels,
        image_sizes=torch.tensor(sizes),
        image_attention_mask=masks,
        audio_input_features=torch.from_numpy(clip[None]),
        audio_embed_sizes=torch.tensor([22]),
        logits_to_keep=2,
    ).logits[0]

    rows = session.embed([0 if token in (image, sound) else token for token in ids])
    encoded = [session.picture(picture, settings) for picture in pictures]
    rows[[i for i, token in enumerate(ids) if token == image]] = torch.cat(encoded)
    rows[[i for i, token in enumerate(ids) if token == sound]] = session.sound(
        clip, audio_settings(media.audio), "vision"
    )
    assert len(rows) > session.chunk
    assert relative(session.decode(rows, 0, "vision")[-2:], wanted) < SAME


def test_planned_for_whole_pictures_and_windows(file: Path) -> None:
    opened = open_pte(file)

    def sizes(name: str, which: str = "inputs") -> list[int]:
        plan = plan_of(opened, name)
        return list(plan.values[getattr(plan, which)[0]].val.sizes)

    assert sizes("text_decoder")[1] >= 545
    assert sizes("audio_encoder") == [1, 4000, 80]
    assert sizes("audio_encoder", "outputs") == sizes("audio_conformer_vision", "outputs") == [1, 500, 384]
    assert sizes("vision_encoder", "outputs") == [1, 545, 384]
    caches = {plan.non_const_buffer_sizes[2] for plan in opened.program.execution_plan if "decoder" in plan.name}
    assert caches == {2 * 4 * 2048 * 2 * 64 * 4}
    assert len(plan_of(opened, "vision_crop").non_const_buffer_sizes) == 2


def test_weights_are_held_once(file: Path, folders: dict[str, Path]) -> None:
    config = open_quantized(resolve(str(folders["main"])), Recipe(quantized=False)).config
    opened = open_pte(file)
    expected = sum(size for item in place(config, Recipe(quantized=False)) for _, size in item.data.values())
    assert sum(size for _, size in opened.parts.values()) == expected
    assert file.stat().st_size < 1.06 * expected


def test_either_layout_has_the_same_weights(folders: dict[str, Path]) -> None:
    """And the same configuration, which is all that the rest of a file is made of."""
    recipe = Recipe()
    main, native = (open_quantized(resolve(str(folders[layout])), recipe) for layout in ("main", "native"))
    assert main.config == native.config
    for item in place(main.config, recipe):
        for one, other in zip(
            *(opened.rows(item.rows.name, item.rows.start, item.rows.stop) for opened in (main, native)), strict=True
        ):
            for x, y in (
                [(one.levels, other.levels), (one.scales, other.scales)]
                if isinstance(one, Rounded) and isinstance(other, Rounded)
                else [(one, other)]
            ):
                assert torch.equal(x, y), item.name  # type: ignore[arg-type]


def test_recipe_of_each_part(folders: dict[str, Path]) -> None:
    config = read_config(folders["main"])
    recipe = Recipe(lora_bits=8, encoder_bits=4)
    bits: dict[Role, set[int]] = {}
    for name, shape in matrix_shapes(config).items():
        columns = shape[1] if len(shape) == 2 else shape[0]
        bits.setdefault(role(name), set()).add(recipe.storage(name, columns).bits)
    assert bits == {
        Role.EMBEDDING: {8}, Role.HEAD: {4}, Role.LINEAR: {4}, Role.ADAPTER: {8}, Role.ENCODER: {4, 8},
        Role.NORM: {32}, Role.TABLE: {32}, Role.FLOAT: {32},
    }  # fmt: skip


def test_modalities(folders: dict[str, Path]) -> None:
    def names(**given: Any) -> set[str]:
        config = open_quantized(find_source(str(folders["main"]), **given), Recipe()).config
        return {item.name for item in place(config, Recipe())}

    everything = names()
    assert {"vision.patch", "audio.embed", "audio.vision.up", "layers.0.attention.speech.q_b"} <= everything
    sound = names(modalities=["text", "audio"])
    assert {"audio.embed", "audio.speech.up", "layers.0.attention.speech.q_b"} <= sound
    assert not any(name.startswith("vision.") or ".vision." in name for name in sound)
    assert names(modalities=["text"]) == names(merge="vision") < sound
    with pytest.raises(BadInput, match="the modality smell is not one of text, vision, audio"):
        names(modalities=["smell"])
    with pytest.raises(BadInput, match="the adapter sound is not one of vision, speech"):
        names(merge="sound")


def test_a_picture_must_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--context 500 does not hold a picture, which is 545 tokens or more"):
        export_pte(str(folders["main"]), out=tmp_path / "f.pte", context=500, verify=False)
    assert not list(tmp_path.iterdir())


def test_verification_tells_what_is_wrong(file: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """Weights are not the checkpoint's; what methods compute of the file's own weights is right."""
    damaged = tmp_path / "damaged.pte"
    data, parts = bytearray(file.read_bytes()), open_pte(file).parts
    for name in ("layers.2.attention.speech.q_b.weight", "vision.layers.1.fc1.weight"):
        offset, size = parts[name]
        values = np.frombuffer(data, np.float32, size // 4, offset)
        data[offset : offset + size] = (1.5 * values).tobytes()
    damaged.write_bytes(data)
    report = verify(damaged, resolve(str(folders["native"])), SHORT)
    failed = {check.name for check in report.checks if not check.passed}
    assert failed == {"media weights, float32"}
    assert {"sound, speech", "sound, vision", "vision_separators", "logits, vision decoder"} <= {
        check.name for check in report.checks
    }


def test_says_what_it_takes(folders: dict[str, Path], file: Path) -> None:
    """As constant methods, which our engine reads, and in the manifest."""
    media = read_config(folders["main"]).multimodal
    assert media and media.vision and media.audio
    facts = read_media(file)
    assert facts.image == image_settings(media.vision, 4) and facts.audio == audio_settings(media.audio)
    assert (facts.image_id, facts.audio_id) == (media.vision.token_id, media.audio.token_id)
    manifest = read_manifest(file)
    assert manifest and manifest["media"] == asdict(facts)
