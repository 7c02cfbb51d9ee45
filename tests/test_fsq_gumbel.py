"""What the pages 05_fsq and 06_gumbel need not show: large level counts, odd precisions, noise of
several processes, saving."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F

from vqvae.core import seeded, step_generator
from vqvae.models.io import load_component, save_component
from vqvae.quantizers.fsq import FiniteScalarQuantizer, _constants, bound
from vqvae.quantizers.gumbel import (
    DistanceLogits,
    ExponentialTemperature,
    GumbelSoftmaxQuantizer,
    LinearLogits,
    gumbel_noise,
    kl_to_uniform,
)
from vqvae.quantizers.search import nearest_codes


def codes(n=8, dim=3): return torch.randn(n, dim, generator=torch.Generator().manual_seed(5))


def latents(*shape, seed=0):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [*range(2, 70), 101, 102, 255, 256, 999, 1000, 1001, 1002, 4095,
                                   4096, 65536, 1 << 20])
def test_every_level_is_reached_in_float32(count):
    levels = [count]
    [(half, offset, shift)] = _constants(levels)
    integers = torch.arange(count, dtype=torch.float64).unsqueeze(1) - count // 2
    z = ((integers + offset) / half).clamp(-1 + 1e-12, 1 - 1e-12).atanh() - shift
    assert torch.equal(bound(z.float(), levels).round(), integers.float())
    assert torch.equal(bound(z, levels).round(), integers)
    quantizer = FiniteScalarQuantizer([count])
    z_q, indices, _ = quantizer(z.float())
    assert torch.equal(indices, torch.arange(count)) and torch.equal(z_q, quantizer.get_codebook())
    assert (quantizer.get_codebook().diff(dim=0) > 0).all()


def test_fsq_constants_are_the_papers_up_to_101_levels():
    for count in range(3, 102):
        [(half, offset, shift)] = _constants([count])
        assert half == pytest.approx((count - 1) * (1 - 1e-3) / 2, rel=1e-12)
        assert offset == (0 if count % 2
                          else 0.5) and shift == pytest.approx(math.atanh(offset / half), rel=1e-12)


def test_fsq_extreme_latents_stay_in_range():
    quantizer = FiniteScalarQuantizer([2, 3, 4, 1001, 1 << 20])
    for value in (1e30, -1e30, 3e38, 1e-40, -1e-40, 0.0, -0.0):
        z = torch.full((4, 5), value, requires_grad=True)
        z_q, indices, _ = quantizer(z)
        assert torch.equal(quantizer.decode(indices).view(torch.int32), z_q.view(torch.int32))
        z_q.sum().backward()
        assert torch.isfinite(z.grad).all()


def test_fsq_survives_a_change_of_the_modules_dtype():
    plain, cast = FiniteScalarQuantizer([8, 5, 300]), FiniteScalarQuantizer([8, 5, 300]).bfloat16()
    assert torch.equal(plain(latents(500))[1], cast(latents(500))[1])
    assert torch.equal(plain(latents(500))[1], plain(latents(500).double())[1])


def test_fsq_largest_codebook():
    quantizer = FiniteScalarQuantizer([2] * 62)
    last = torch.tensor([0, 2 ** 62 - 1])
    z_q, indices, _ = quantizer((quantizer.decode(last) + 0.5) * 10)
    assert torch.equal(indices, last) and quantizer.codebook_size == 2 ** 62
    with pytest.raises(ValueError, match="use decode"): quantizer.get_codebook()
    with pytest.raises(ValueError, match="indices must lie in"):
        quantizer.decode(torch.tensor([2 ** 62]))


@pytest.mark.parametrize("levels, kind", [
    ([], ValueError), ([1], ValueError), ([3, 0], ValueError), ([-2], ValueError),
    ([2] * 63, ValueError), ([2 ** 21], ValueError), ([True, 3], TypeError), ([3.0], TypeError),
    (5, TypeError), ("85", TypeError)])
def test_fsq_refuses_levels(levels, kind):
    with pytest.raises(kind, match="levels"): FiniteScalarQuantizer(levels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_gumbel_quantizer_equals_torch_with_the_same_noise(dtype, temperature):
    quantizer = GumbelSoftmaxQuantizer(3, 8, codes(), temperature=temperature, seed=7).train()
    for step in range(3):
        z, g = (
            latents(50, 2, seed=step).to(dtype).requires_grad_(),
            latents(50, 2, seed=9).to(dtype),
        )
        z_q, indices, _ = quantizer(z)
        with seeded(step_generator(7, step).initial_seed()):
            C = quantizer.codebook.to(dtype)
            y = F.gumbel_softmax(DistanceLogits()(z, C), temperature, hard=True)
        assert torch.equal(indices, y.argmax(-1))
        for mine, theirs in zip(torch.autograd.grad(z_q, (z, quantizer.codebook), g),
                                torch.autograd.grad(y @ C, (z, quantizer.codebook), g)):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_gumbel_soft_is_the_mixture():
    quantizer = GumbelSoftmaxQuantizer(3, 8, codes(), temperature=0.5, hard=False).train()
    z = latents(50)
    z_q, indices, info = quantizer(z)
    logits = DistanceLogits()(z, quantizer.codebook)
    y = ((logits + gumbel_noise(logits, step_generator(0, 0))) / 0.5).softmax(-1)
    assert torch.equal(z_q, y @ quantizer.codebook) and torch.equal(indices, y.argmax(-1))
    assert torch.equal(info["z_q_hard"], quantizer.codebook[indices])
    z_q, indices, _ = quantizer.eval()(z)
    assert torch.equal(z_q, quantizer.decode(indices))


def test_gumbel_evaluation_is_nearest_and_far_from_the_origin_too():
    for offset in (0.0, 1e4):
        quantizer = GumbelSoftmaxQuantizer(3, 8, codes() + offset).eval()
        z = (latents(500) + offset).requires_grad_()
        z_q, indices, info = quantizer(z)
        assert torch.equal(indices, nearest_codes(z, quantizer.codebook))
        (z_q.sum() + info["losses"]["kl"]).backward()
        assert torch.isfinite(z.grad).all() and z.grad.abs().sum() > 0


def test_gumbel_extreme_latents_and_temperatures_keep_gradients_finite():
    for temperature in (1e-4, 1e4):
        quantizer = GumbelSoftmaxQuantizer(3, 8, codes(), temperature=temperature).train()
        for scale in (1e-20, 1.0, 1e20):
            z = (scale * latents(50)).requires_grad_()
            z_q, _, info = quantizer(z)
            (z_q.sum() + info["losses"]["kl"]).backward()
            assert torch.isfinite(z.grad).all() and torch.isfinite(quantizer.codebook.grad).all()


def test_gumbel_ranks_draw_different_noise(monkeypatch):
    from vqvae.quantizers import gumbel
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(gumbel, "_rank", lambda: rank)
        drawn.append(GumbelSoftmaxQuantizer(3, 8, codes()).train()(latents(200))[1])
    assert not torch.equal(*drawn)


def test_gumbel_failed_call_counts_no_step():
    quantizer = GumbelSoftmaxQuantizer(3, 8, codes()).train()
    with pytest.raises(ValueError): quantizer(torch.full((2, 3), torch.nan))
    assert quantizer.step == 0


def test_gumbel_kl_is_masked_and_at_least_zero():
    quantizer = GumbelSoftmaxQuantizer(3, 8, codes())
    z, mask = latents(2, 3), torch.tensor([[True, True, False], [True, False, False]])
    p = quantizer.logits(z, quantizer.codebook).softmax(-1)[mask]
    torch.testing.assert_close(quantizer(z, mask)[2]["losses"]["kl"],
                               (p * (8 * p).log()).sum(-1).mean())
    assert (kl_to_uniform(1e-4 * torch.randn(1000, 300, generator=torch.Generator().manual_seed(0)))
            >= 0).all()
    assert torch.isfinite(kl_to_uniform(torch.tensor([[1e30, -1e30, 0.0]]))).all()


def test_gumbel_saves_its_schedule_and_logits(tmp_path):
    quantizer = GumbelSoftmaxQuantizer(3, 8, codes(), LinearLogits(3, 8, seed=2),
                                       ExponentialTemperature(1.0, 0.1, 10)).train()
    for step in range(4): quantizer(latents(20, seed=step))
    save_component(quantizer, tmp_path / "q.safetensors")
    loaded = load_component(tmp_path / "q.safetensors").train()
    assert (
        loaded.current_temperature() == quantizer.current_temperature() == pytest.approx(0.1**0.4)
    )
    assert torch.equal(loaded(latents(20))[1], quantizer(latents(20))[1])


@pytest.mark.parametrize("logits", [None, LinearLogits(3, 8)])
def test_gumbel_initialize(logits):
    quantizer = GumbelSoftmaxQuantizer(3, 8, logits=logits)
    parameter = quantizer.codebook
    quantizer.initialize(lambda n, k, data, generator: codes(n, k))
    assert quantizer.codebook is parameter and torch.equal(parameter, codes())
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(ValueError, match="codebook"):
        quantizer.set_codebook(torch.full((8, 3), torch.nan))
    assert torch.equal(before["codebook"], quantizer.codebook)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, ExponentialTemperature(1.0, 0.1, 10)],
                         ids=["constant", "schedule"])
def test_gumbel_compiles_in_evaluation(temperature):
    torch._dynamo.reset()
    quantizer = GumbelSoftmaxQuantizer(3, 8, codes(), temperature=temperature).train()
    for _ in range(3): quantizer(latents(20))
    quantizer.eval()
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    a, b = latents(20).requires_grad_(), latents(20).requires_grad_()
    expected, found = quantizer(a), compiled(b)
    assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])
    expected[0].sum().backward(), found[0].sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
