"""Levels are those of GPTQ as its paper states it, and scales the best that a dense search finds."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from checkpoints.roles import HEAD
from export.quantization.gptq import DAMPING, factorize, gptq
from export.quantization.recipe import Recipe, Storage
from export.quantization.rounding import round_rows
from export.quantization.scales import nearest, search_scales

LINEAR = "model.layers.0.mlp.down_proj.weight"
COLUMNS = 160  # more than one block of columns, and of the inverse


def plain_gptq(rows: Tensor, scales: Tensor, moments: Tensor, storage: Storage) -> Tensor:
    """One column after another in float64, with the inverse of what is left computed anew each time."""
    low, high = -(2 ** (storage.bits - 1)), 2 ** (storage.bits - 1) - 1
    h = moments.double() + DAMPING * moments.double().diagonal().mean() * torch.eye(len(moments))
    order = moments.diagonal().argsort(descending=True, stable=True).tolist()
    w, levels = rows.double().clone(), torch.zeros(rows.shape, dtype=torch.int8)
    for i, column in enumerate(order):
        scale = scales[:, column // (storage.columns // storage.groups)].double()
        level = (w[:, column] / scale).round().clamp(low, high)
        levels[:, column] = level.to(torch.int8)
        left = order[i:]
        inverse = torch.linalg.inv(h[left][:, left])
        error = (w[:, column] - level * scale) / inverse[0, 0]
        w[:, left] -= torch.outer(error, inverse[0])
    return levels


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows, and moments of inputs that depend on each other."""
    torch.manual_seed(seed)
    x = torch.randn(400, COLUMNS) @ torch.randn(COLUMNS, COLUMNS) * torch.logspace(-1, 1, COLUMNS)
    return torch.randn(24, COLUMNS), x.T @ x / len(x)


@pytest.mark.parametrize("bits", [4, 8])
def test_levels_are_those_of_the_plain_formula(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.quantization.gptq.INVERSE_BLOCK", 48)
    rows, moments = example()
    storage = Recipe(head_bits=bits).storage(HEAD, COLUMNS)
    scales = search_scales(rows, storage, moments.diagonal())
    expected = plain_gptq(rows, scales, moments, storage)
    with ThreadPoolExecutor(2) as pool:
        found = gptq(rows, scales, storage, factorize(moments.clone(), pool))
    assert torch.equal(found.levels, expected)
    assert found.scales.dtype == storage.scale_dtype and torch.equal(found.scales, scales)

    def loss(weight: Tensor) -> float:
        error = weight - rows
        return float(((error @ moments) * error).sum())

    assert loss(found.dequantize()) < 0.5 * loss(nearest(rows, scales, storage).dequantize())


def test_columns_that_are_never_used_do_not_matter() -> None:
    rows, moments = example()
    moments[7], moments[:, 7] = 0, 0
    storage = Recipe().storage(LINEAR, COLUMNS)
    scales = search_scales(rows, storage, moments.diagonal())
    with ThreadPoolExecutor(1) as pool:
        found = gptq(rows, scales, storage, factorize(moments, pool))
    assert torch.equal(found.levels[:, 7], nearest(rows, scales, storage).levels[:, 7])


def test_moments_of_few_tokens_can_be_inverted() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, COLUMNS) * 100
    with ThreadPoolExecutor(1) as pool:
        assert torch.isfinite(factorize(x.T @ x, pool).upper).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_the_best_there_are(bits: int) -> None:
    torch.manual_seed(0)
    rows, importance = torch.randn(16, 64) ** 3, torch.rand(64) ** 4
    storage = Recipe(head_bits=bits).storage(HEAD, 64)
    high = 2 ** (bits - 1)

    def errors(scales: Tensor) -> Tensor:
        w, s = rows.view(16, storage.groups, -1), scales.float().unsqueeze(-1)
        e = (w / s).round().clamp(-high, high - 1) * s - w
        return (e.square() * importance.view(1, storage.groups, -1)).sum(-1)

    usual = round_rows(rows, storage).scales
    ratios = torch.linspace(0.3, 1.2, 1801)
    best = torch.stack([errors((usual.float() * r).to(storage.scale_dtype)) for r in ratios]).amin(0)
    found = errors(search_scales(rows, storage, importance))
    assert (found <= errors(usual) * (1 + 1e-4)).all()
    assert found.sum() <= 1.1 * best.sum()


def test_scales_of_zeros_are_numbers() -> None:
    storage = Recipe().storage(LINEAR, 64)
    rows = torch.zeros(3, 64)
    scales = search_scales(rows, storage, torch.zeros(64))
    assert (scales > 0).all() and not nearest(rows, scales, storage).levels.any()
