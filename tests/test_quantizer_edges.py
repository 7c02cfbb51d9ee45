"""Quantizers at their edges: dtypes and devices, forwards that run twice, several processes,
layouts, settings."""
import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from platforms import recent_compiler
from test_quantizers import DIM, QUANTIZERS, SIZE, codes, every_quantizer, latents
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from vqvae.decoders.linear import LearnedLinearDecoder
from vqvae.encoders.linear import LearnedLinearEncoder
from vqvae.initialization import base as initialization_base
from vqvae.initialization import kmeans_init, sample_init
from vqvae.models import VQVAE
from vqvae.quantizers import (
    BaseQuantizer,
    ChannelFirst,
    ClassicalVectorQuantizer,
    CodebookQuantizer,
    DistanceLogits,
    EMALearning,
    ExponentialTemperature,
    FiniteScalarQuantizer,
    GumbelSoftmaxQuantizer,
    LinearLogits,
    Revival,
    VectorQuantizer,
    nearest_codes,
    recompute,
    rotation,
    search,
)

HALF = [torch.bfloat16, torch.float16]

# Dtypes


@every_quantizer
@pytest.mark.parametrize("dtype", [torch.float64, *HALF, torch.float32], ids=str)
def test_decoded_codes_have_the_modules_dtype(name, dtype):
    quantizer = QUANTIZERS[name]().to(dtype).eval()
    z_q, indices, _ = quantizer(latents((50,), dtype))
    assert quantizer.decode(indices).dtype == dtype
    assert torch.equal(quantizer.decode(indices), z_q)


@pytest.mark.parametrize("dtype", [torch.float64, *HALF], ids=str)
def test_detokenize_in_every_dtype(dtype):
    model = VQVAE(LearnedLinearEncoder(6, 3), FiniteScalarQuantizer([5, 5, 5]),
                  LearnedLinearDecoder(3, 6)).to(dtype).eval()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = model.detokenize(model.tokenize(x))
    assert found.dtype == dtype and torch.equal(found, model(x)["x_recon"])


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_averages_move_in_half_precision(dtype):
    quantizer = VectorQuantizer(1, 1, torch.ones(1, 1), learning=EMALearning()).to(dtype).train()
    for value in (1.0, 1.2):
        for _ in range(600): quantizer(torch.full((8, 1), value, dtype=dtype))
    assert quantizer.codebook.dtype == dtype
    assert quantizer.codebook.item() == pytest.approx(1.2, abs=0.02)


def test_statistics_are_float32_at_least_and_keep_their_bits():
    quantizer = VectorQuantizer(DIM, SIZE, codes(), learning=EMALearning(), revival=Revival())
    for seed in range(3): quantizer(latents((50,), seed=seed))
    before = copy.deepcopy(quantizer.learning.state_dict())
    for dtype in HALF: quantizer.to(dtype)
    assert quantizer.codebook.dtype == HALF[-1]
    after = quantizer.learning.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype
               for name, value in before.items())
    assert quantizer.double().learning.total.dtype == torch.float64
    assert quantizer.bfloat16().learning.total.dtype == torch.float64  # what it had, and no less
    quantizer.set_codebook(codes())
    assert torch.equal(quantizer.learning.total, codes().bfloat16().double())


def test_counts_above_the_largest_half():
    start = torch.tensor([[0.0], [9.0]])
    quantizer = VectorQuantizer(1, 2, start, learning=EMALearning(0.0), revival=False).half()
    quantizer(torch.full((70_000, 1), 0.5).half())
    assert quantizer.learning.count.tolist() == [70_000, 0]
    assert quantizer.codebook[0].item() == pytest.approx(0.5, abs=1e-3)


def test_a_code_too_large_for_half_precision_is_refused_and_changes_nothing():
    quantizer = VectorQuantizer(1, 1, torch.ones(1, 1)).half()
    with pytest.raises(ValueError, match="codebook holds 1 NaN or infinite"):
        quantizer.set_codebook(torch.full((1, 1), 1e6))
    assert quantizer.codebook.item() == 1


def test_an_uninitialized_codebook_has_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try: quantizers = [VectorQuantizer(4, 8, learning=EMALearning()), FiniteScalarQuantizer([3, 3])]
    finally: torch.set_default_dtype(torch.float32)
    for quantizer in quantizers:
        z_q, indices, _ = quantizer.eval()(torch.randn(5, quantizer.dim, dtype=torch.float64))
        assert quantizer.decode(indices).dtype == torch.float64
        assert torch.equal(quantizer.decode(indices), z_q)


# Devices


@pytest.mark.parametrize("make", [
    lambda: FiniteScalarQuantizer([8, 5, 2, 4]),
    lambda: VectorQuantizer(DIM, SIZE, learning=EMALearning(), revival=Revival()),
    lambda: GumbelSoftmaxQuantizer(DIM, SIZE, logits=LinearLogits(DIM, SIZE)),
], ids=["FSQ", "VQ", "Gumbel"])
def test_made_on_meta_and_loaded(make):
    expected = make().eval()
    with torch.device("meta"): found = make()
    # memory that was used before, so that what is not loaded is garbage
    found = found._apply(lambda t: torch.full_like(t, 77, device="cpu")).eval()
    found.load_state_dict(expected.state_dict(), strict=True)
    z = latents((50,))
    assert torch.equal(found(z)[1], expected(z)[1]) and torch.equal(found(z)[0], expected(z)[0])
    assert torch.equal(found.decode(found(z)[1]), expected.decode(expected(z)[1]))
    assert torch.equal(found.get_codebook(), expected.get_codebook())


class WithoutFloat64(TorchFunctionMode):
    """A device that refuses float64, as Apple's GPUs do, except for what was moved to the CPU: the
    tensors that `.cpu()` returned."""

    def __init__(self):
        super().__init__()
        self.moved = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.cpu:
            self.moved.append(args[0].clone())
            return self.moved[-1]
        asked = function is torch.Tensor.double or any(
            value is torch.float64 for value in (*args, *kwargs.values()))
        if asked and args[0].dtype != torch.float64 and not any(args[0] is m for m in self.moved):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return function(*args, **kwargs)


def test_search_needs_no_float64_where_a_device_has_none(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-2, 3, (300, 4), generator=generator).float()  # many ties
    book = torch.randn(300, 4, generator=generator).repeat(2, 1)
    book[:100] = torch.randint(-2, 3, (100, 4), generator=generator)
    expected, find = nearest_codes(z, book), search._nearest_in_tiles
    with WithoutFloat64(), pytest.raises(TypeError): find(z, book)
    monkeypatch.setattr(search, "has_float64", lambda device: False)
    with WithoutFloat64() as device: found = find(z, book)
    assert torch.equal(found, expected) and device.moved
    monkeypatch.setattr(search, "_CODES", 64)
    with WithoutFloat64(): assert torch.equal(find(z, book), expected)


def test_search_without_tensor_double(monkeypatch):
    def refuse(self): raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
    quantizer = VectorQuantizer(4, 256).eval()
    expected = quantizer(torch.randn(2048, 4, generator=torch.Generator().manual_seed(0)))[1]
    monkeypatch.setattr(torch.Tensor, "double", refuse)
    found = quantizer(torch.randn(2048, 4, generator=torch.Generator().manual_seed(0)))[1]
    assert torch.equal(found, expected)


def test_which_devices_have_float64():
    assert initialization_base.has_float64(torch.device("cpu"))
    assert initialization_base.has_float64(torch.device("cuda", 1))
    assert not initialization_base.has_float64(torch.device("mps"))


def test_a_forward_looks_at_the_latents_once(monkeypatch):
    seen, isfinite = [], torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda x: (seen.append(x.shape), isfinite(x))[1])
    for make in QUANTIZERS.values():
        quantizer, z = make(), latents((23,))
        seen.clear()
        quantizer(z)
        assert seen.count(z.shape) == 1


def test_a_codebook_that_holds_nan_is_refused():
    quantizer = VectorQuantizer(DIM, SIZE, codes())
    with torch.no_grad(): quantizer.codebook[3, 1] = torch.nan
    with pytest.raises(ValueError, match="codebook holds 1 NaN"): quantizer(latents((5,)))


# Activation checkpointing


class Net(nn.Module):
    "Linear layers around a quantizer, one part checkpointed."

    def __init__(self, quantizer, use_reentrant=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder, self.head = nn.Linear(DIM, DIM), nn.Linear(DIM, 3)
        self.quantizer, self.use_reentrant = quantizer, use_reentrant

    def part(self, x):
        z_q, _, info = self.quantizer(self.encoder(x).tanh())
        return self.head(z_q).square().sum() + sum(info["losses"].values(), torch.zeros(()))

    def forward(self, x):
        if self.use_reentrant is None: return self.part(x)
        return checkpoint(self.part, x, use_reentrant=self.use_reentrant)


def train(net, forwards=1, steps=4):
    "Gradients of every step and the state at the end."
    gradients, seed = [], 0
    for _ in range(steps):
        net.zero_grad()
        total = 0
        for _ in range(forwards):
            total, seed = total + net(latents((40,), seed=seed).requires_grad_()), seed + 1
        total.backward()
        gradients.append({name: None if p.grad is None else p.grad.clone()
                          for name, p in net.named_parameters()})
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None: p -= 0.01 * p.grad
    return gradients, net.state_dict()


def assert_same(found, expected, **tolerance):
    "Bit for bit without a tolerance."
    for mine, theirs in zip([*found[0], found[1]], [*expected[0], expected[1]], strict=True):
        for name, value in theirs.items():
            if value is None: assert mine[name] is None, name
            else: torch.testing.assert_close(mine[name], value, **(tolerance or NONE))


NONE = {"rtol": 0, "atol": 0}
both = pytest.mark.parametrize("use_reentrant", [True, False])


@every_quantizer
@both
def test_checkpointing_changes_no_gradient_and_no_state(name, use_reentrant):
    expected = train(Net(QUANTIZERS[name]().train()))
    assert_same(train(Net(QUANTIZERS[name]().train(), use_reentrant)), expected)


@every_quantizer
@both
def test_two_checkpointed_forwards_before_one_backward(name, use_reentrant):
    "Equal, or refused by name; refused where the codebook of the first forward is gone."
    expected = train(Net(QUANTIZERS[name]().train()), forwards=2)
    net = Net(QUANTIZERS[name]().train(), use_reentrant)
    if "VQ" not in name:  # nothing moves the codes; gradients may be added in another order
        return assert_same(train(net, forwards=2), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="VectorQuantizer: activation checkpointing runs a"):
        train(net, forwards=2)


def test_copies_and_files_do_not_hold_what_a_recomputation_needs():
    quantizer = QUANTIZERS["VQ EMA"]().train()
    quantizer(latents((40,)))
    assert len(quantizer._recent.kept) == 1 and len(copy.deepcopy(quantizer)._recent.kept) == 0
    assert not [name for name in quantizer.state_dict() if "recent" in name]


def test_a_refused_recomputation_moves_nothing():
    net = Net(QUANTIZERS["VQ EMA revival"]().train(), False)
    total = net(latents((40,), seed=0)) + net(latents((40,), seed=1))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match="leave the quantizer out"): total.backward()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


@both
def test_latents_that_cannot_be_told_apart_are_refused(use_reentrant):
    net, x = Net(QUANTIZERS["Gumbel"]().train(), use_reentrant), latents((40,)).requires_grad_()
    total = net(x) + net(x)
    with pytest.raises(RuntimeError, match="two forwards had the same latents"): total.backward()


@both
def test_the_same_batch_at_every_step_is_no_problem(use_reentrant):
    for name in ("Gumbel", "VQ EMA"):
        nets = Net(QUANTIZERS[name]().train()), Net(QUANTIZERS[name]().train(), use_reentrant)
        for _ in range(3):
            for net in nets:
                net.zero_grad()
                net(latents((40,)).requires_grad_()).backward()
            for a, b in zip(*(net.encoder.parameters() for net in nets)):
                assert torch.equal(a.grad, b.grad)


def test_checkpointing_in_bfloat16_autocast_and_with_a_mask():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    gradients = []
    for use_reentrant in (None, True, False):
        quantizer, z = QUANTIZERS["Gumbel"]().train(), latents((2, 3)).requires_grad_()
        part = lambda z, q=quantizer: q(z, mask)[0].square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = part(z) if use_reentrant is None else checkpoint(
                part, z, use_reentrant=use_reentrant)
        loss.backward()
        gradients.append(z.grad)
    assert torch.equal(gradients[1], gradients[0]) and torch.equal(gradients[2], gradients[0])


@both
def test_frozen_under_checkpointing(use_reentrant):
    for name in ("VQ EMA revival", "Gumbel"):
        expected = train(Net(QUANTIZERS[name]().freeze().train()), forwards=2)
        net = Net(QUANTIZERS[name]().freeze().train(), use_reentrant)
        assert_same(train(net, forwards=2), expected)


# Several processes

RANKS = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from vqvae.initialization import kmeans_init, uniform_init
from vqvae.quantizers import EMALearning, FiniteScalarQuantizer, VectorQuantizer

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
z = torch.randn(200, 4, generator=torch.Generator().manual_seed(rank)) + 3 * rank
found = {}
for name, learning in (("loss", None), ("ema", EMALearning(0.9))):
    quantizer = VectorQuantizer(4, 16, learning=learning)
    quantizer.initialize(kmeans_init, z[: 120 + 80 * rank])
    found[name] = quantizer.codebook.detach().clone()
generator = torch.Generator().manual_seed(rank)   # a careless seed: the ranks would differ
quantizer = VectorQuantizer(4, 16)
quantizer.initialize(uniform_init, generator=generator)
found["no data"] = quantizer.codebook.detach().clone()
for name, data in (("nan", torch.full((20, 4), torch.nan) if rank else z),
                   ("wrong", z[:, :3] if rank else z), ("missing", None if rank else z)):
    try: quantizer.initialize(kmeans_init, data)
    except ValueError as error: found[name] = str(error)
found["kept"] = quantizer.codebook.detach().clone()
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.vq, self.fsq = VectorQuantizer(4, 16), FiniteScalarQuantizer([3, 3, 3, 3])
        self.scale = torch.nn.Parameter(torch.ones(()))
    def forward(self, z):
        z_q, _, info = self.vq(self.scale * z)
        return self.fsq(z_q)[0].sum() + sum(info["losses"].values())
model = DistributedDataParallel(Model())
model.module.vq.initialize(kmeans_init, z)        # after wrapping, on each rank's own latents
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(z).backward()
    optimizer.step()
found["trained"] = model.module.vq.codebook.detach().clone()
torch.save(found, f"{folder}/{rank}.pt")
"""


def test_two_processes_initialize_one_codebook(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, "-c", RANKS, str(rank), str(tmp_path)],
                                env=environment, stderr=subprocess.PIPE, text=True)
               for rank in (0, 1)]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name in ("loss", "ema", "no data", "kept", "trained"):
        assert torch.equal(first[name], second[name]), name
    together = torch.cat([torch.randn(200, 4, generator=torch.Generator().manual_seed(0))[:120],
                          torch.randn(200, 4, generator=torch.Generator().manual_seed(1)) + 3])
    assert torch.equal(first["loss"], kmeans_init(16, 4, together))
    for found in (first, second):
        assert found["nan"] == "process 1: data holds 80 NaN or infinite values among 80"
        assert found["wrong"].startswith("process 1: data must have 4 values on its last axis")
        assert found["missing"] == "data must be given on all processes or on none"
        assert torch.equal(found["kept"], found["no data"])


# Layouts


@every_quantizer
def test_channels_on_axis_1(name):
    last, first = QUANTIZERS[name]().eval(), ChannelFirst(QUANTIZERS[name]().eval())
    z = latents((2, 3, 5))
    expected, found = last(z), first(z.movedim(-1, 1))
    assert torch.equal(found[0], expected[0].movedim(-1, 1)) and found[0].shape == (2, DIM, 3, 5)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2]["z_q_hard"], expected[2]["z_q_hard"].movedim(-1, 1))
    assert torch.equal(found[2]["distances"], expected[2]["distances"])
    assert torch.equal(first.decode(found[1]), found[0])
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[0, 1] = False
    assert torch.equal(first(z.movedim(-1, 1), mask)[1], last(z, mask)[1])
    with pytest.raises(ValueError, match="channels are on axis 1, use ChannelFirst"):
        last(z.movedim(-1, 1))


def test_a_shape_that_can_be_read_both_ways_is_warned_of_once():
    quantizer = VectorQuantizer(8, 64)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for batch in (2, 3): quantizer(torch.randn(batch, 8, 4, 8))
    assert len(said) == 1 and "ChannelFirst(quantizer)" in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer.layout_known = True
        quantizer(torch.randn(2, 8, 4, 8))
        ChannelFirst(VectorQuantizer(8, 64))(torch.randn(2, 8, 8, 4))
        VectorQuantizer(8, 64)(torch.randn(2, 8, 8))  # a sequence as long as it is wide


def test_channel_first_takes_quantizers_only():
    with pytest.raises(TypeError, match="quantizer must be a BaseQuantizer, got Linear"):
        ChannelFirst(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"4 values on axis 1, \(B, 4, \*grid\), got \(2, 3\)"):
        ChannelFirst(VectorQuantizer(4, 8))(torch.zeros(2, 3))


# Settings


@pytest.mark.parametrize("make, message", [
    (lambda: Revival(after=0.5), "after must be an int, got float"),
    (lambda: EMALearning(every=1.7), "every must be an int, got float"),
    (lambda: LinearLogits(2.9, 4), "dim must be an int, got float"),
    (lambda: LinearLogits(2, 4.9), "codebook_size must be an int, got float"),
    (lambda: VectorQuantizer(4.0, 8), "dim must be an int, got float"),
    (lambda: VectorQuantizer(4, 8.0), "codebook_size must be an int, got float"),
    (lambda: GumbelSoftmaxQuantizer(4, 8.0), "codebook_size must be an int, got float"),
    (lambda: ExponentialTemperature(1.0, 0.1, 10.5), "steps must be an int, got float"),
    (lambda: FiniteScalarQuantizer([3.0]), "levels must be integers"),
    (lambda: VectorQuantizer(4, 8, estimator="rotation"), "estimator must be a function"),
    (lambda: VectorQuantizer(4, 8, init_codebook=[[0.0]]), "init_codebook must be a torch.Tensor"),
    (lambda: EMALearning(decay="slow"), "decay must be a number, got str"),
])
def test_wrong_types_are_refused(make, message):
    with pytest.raises(TypeError, match=message): make()


def test_numpy_integers_are_integers():
    quantizer = VectorQuantizer(np.int64(4), np.int32(16), learning=EMALearning(every=np.int64(2)),
                                revival=Revival(np.int16(3)))
    assert type(quantizer.dim) is type(quantizer.codebook_size) is int
    assert type(quantizer.revival.after) is type(quantizer.learning.every) is int
    assert FiniteScalarQuantizer(np.array([3, 5])).levels == (3, 5)
    assert LinearLogits(np.int64(2), np.int64(3)).linear.weight.shape == (3, 2)
    assert GumbelSoftmaxQuantizer(np.int64(4), np.int64(8)).codebook.shape == (8, 4)


@pytest.mark.parametrize("component, name, good, bad", [
    (EMALearning(), "decay", 0.5, 1.0), (EMALearning(), "epsilon", 0, -1),
    (EMALearning(), "every", 4, 0), (Revival(), "after", 7, 0.5), (DistanceLogits(), "scale", 2, 0),
    (EMALearning(), "memory", 20, 0), (EMALearning(0.9), "decay", None, -0.1),
    (Revival(), "samples_per_code", 2.5, 0), (Revival(3), "after", None, 0),
    (ExponentialTemperature(1.0, 0.1, 10), "steps", 20, 0),
    (VectorQuantizer(2, 4), "estimator", rotation, "rotation"),
])
def test_settings_are_named_as_arguments_and_checked_when_set(component, name, good, bad):
    assert name in component.arguments
    setattr(component, name, good)
    assert getattr(component, name) == good
    with pytest.raises((TypeError, ValueError), match=name): setattr(component, name, bad)
    assert getattr(component, name) == good
    assert getattr(copy.deepcopy(component), name) == good


def test_a_temperature_set_later_is_checked_and_used():
    quantizer = GumbelSoftmaxQuantizer(DIM, SIZE, codes())
    quantizer.temperature = 0.1
    assert quantizer.current_temperature() == 0.1
    quantizer.temperature = -1.0
    with pytest.raises(ValueError, match="temperature must be positive"): quantizer(latents((3,)))
    assert quantizer.step == 0


def test_requires_grad_on_a_codebook_that_follows_averages_warns():
    averaged, learned = QUANTIZERS["VQ EMA"](), QUANTIZERS["classical"]()
    with pytest.warns(UserWarning, match=r"codebook.* may still move.*use freeze\(\)") as said:
        averaged.requires_grad_(False)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learned.requires_grad_(False)
        averaged.requires_grad_(True)
    before = copy.deepcopy(learned.state_dict())
    learned(latents((5,)))
    assert all(torch.equal(value, learned.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("component, said", [
    (VectorQuantizer(4, 64), ["dim=4", "codebook_size=64", "estimator=straight_through",
                              "(learning): EMALearning(memory=10, epsilon=1e-05, every=1)",
                              "(revival): Revival(samples_per_code=10, seed=0)"]),
    (ClassicalVectorQuantizer(4, 64), ["estimator=straight_through, revival=None",
                                       "(learning): LossLearning()"]),
    (VectorQuantizer(4, 64, learning=EMALearning(0.9), revival=Revival(20)),
     ["EMALearning(decay=0.9, epsilon=1e-05, every=1)", "(revival): Revival(after=20, seed=0)"]),
    (FiniteScalarQuantizer([8, 5]), ["FiniteScalarQuantizer(levels=[8, 5])"]),
    (GumbelSoftmaxQuantizer(4, 8, temperature=ExponentialTemperature(1.0, 0.1, 10)),
     ["dim=4", "hard=True", "(temperature): ExponentialTemperature(start=1, end=0.1, steps=10)"]),
    (GumbelSoftmaxQuantizer(4, 8), ["temperature=1.0", "(logits): DistanceLogits(scale=1)"]),
    (ChannelFirst(FiniteScalarQuantizer([3])), ["(quantizer): FiniteScalarQuantizer(levels=[3])"]),
], ids=lambda value: type(value).__name__)
def test_repr_says_what_it_is_made_of(component, said):
    for words in said: assert words in repr(component)


# A learning rule of a user's own

RULE = """
import torch
from vqvae.quantizers import CodebookLearning
from vqvae.quantizers.base import commitment_loss


class MyRule(CodebookLearning):
    "Each code steps towards the mean of its latents."
    by_gradient = False

    def __init__(self, rate: float = 0.5):
        super().__init__()
        self.rate = rate

    def attach(self, codebook): pass

    def losses(self, z, q, mask=None): return {"commitment": commitment_loss(z, q, mask)}

    def update(self, codebook, z, indices):
        for code in indices.unique():
            codebook[code] += self.rate * (z[indices == code].mean(0) - codebook[code])

    def restart(self, codes, codebook): pass
"""


def test_a_learning_rule_of_ones_own_on_the_command_line(tmp_path):
    (tmp_path / "myrule.py").write_text(RULE)
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    arguments = """fit --data GaussianDataset --data.d 8 --data.k 2 --data.n_samples 200
        --model.encoder LearnedLinearEncoder --model.encoder.sample_shape 8 --model.encoder.dim 2
        --model.quantizer VectorQuantizer --model.quantizer.dim 2
        --model.quantizer.codebook_size 8
        --model.quantizer.learning myrule.MyRule --model.quantizer.learning.rate 0.25
        --model.decoder LearnedLinearDecoder --model.decoder.dim 2 --model.decoder.sample_shape 8
        --steps 3 --output run""".split()
    code = "from vqvae.cli import main; raise SystemExit(main())"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rate: 0.25" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("said, revival", [
    ("", "Revival(samples_per_code=10, seed=0)"), ("--model.quantizer.revival false", "None"),
    ("--model.quantizer.revival null", "None"), ("--model.quantizer.revival true",
                                                 "Revival(samples_per_code=10, seed=0)"),
    ("--model.quantizer.revival Revival --model.quantizer.revival.after 20",
     "Revival(after=20, seed=0)"),
])
def test_revival_on_the_command_line(said, revival):
    from jsonargparse import ArgumentParser
    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseQuantizer, "model.quantizer")
    given = ["--model.quantizer", "VectorQuantizer", "--model.quantizer.dim", "2",
             "--model.quantizer.codebook_size", "8", *said.split()]
    found = parser.instantiate_classes(parser.parse_args(given)).model.quantizer
    assert repr(found.revival) == revival and found.learning.decay is None


def test_a_learning_rule_of_ones_own_in_python():
    space = {}
    exec(RULE, space)
    quantizer = VectorQuantizer(2, 2, torch.tensor([[0.0, 0.0], [9.0, 9.0]]),
                                learning=space["MyRule"](0.5), revival=False).train()
    quantizer(torch.tensor([[2.0, 0.0], [4.0, 2.0]]))
    assert quantizer.codebook.tolist() == [[1.5, 0.5], [9.0, 9.0]]
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (space["MyRule"].__base__,), {"by_gradient": True})()


def test_codebook_quantizers_can_be_initialized_and_others_cannot():
    for make in QUANTIZERS.values():
        quantizer = make()
        if not isinstance(quantizer, CodebookQuantizer): continue
        quantizer.initialize(sample_init, latents((200,)))
        assert all((latents((200,)) == code).all(1).any() for code in quantizer.codebook)
    assert not isinstance(QUANTIZERS["FSQ odd"](), CodebookQuantizer)


def test_a_model_says_that_its_layout_is_known():
    model = VQVAE(LearnedLinearEncoder(6, 4), VectorQuantizer(4, 8), LearnedLinearDecoder(4, 6))
    assert model.quantizer.layout_known
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.quantizer(torch.randn(2, 4, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 300, 301)], ids=str)
def test_fingerprints_change_with_any_bit_and_any_exchange(shape, dtype, monkeypatch):
    monkeypatch.setattr(recompute, "_BLOCK", 64)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = recompute._fingerprint(z)
    assert recompute._fingerprint(z.clone()) == expected
    flat, generator = z.flatten(), torch.Generator().manual_seed(1)
    for _ in range(50):
        i, j = torch.randint(len(flat), (2,), generator=generator).tolist()
        changed = flat.clone()
        changed[i] = torch.nextafter(flat[i], torch.tensor(torch.inf, dtype=dtype))
        assert recompute._fingerprint(changed.reshape(shape)) != expected
        changed = flat.clone()
        changed[[i, j]] = flat[[j, i]]
        same = bool((changed == flat).all())
        assert (recompute._fingerprint(changed.reshape(shape)) == expected) == same
    assert recompute._fingerprint(flat) != expected  # another shape


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classical", "classical tangent", "FSQ mixed"])
def test_training_compiles_without_graph_break_where_nothing_moves(name):
    torch._dynamo.reset()
    quantizer, z = QUANTIZERS[name]().train(), latents((6, 3)).requires_grad_()
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(z)[0], quantizer(z)[0])


@recent_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["VQ", "VQ EMA revival", "Gumbel"])
def test_training_compiles_with_equal_state_where_something_moves(name):
    torch._dynamo.reset()
    plain, other = QUANTIZERS[name]().train(), QUANTIZERS[name]().train()
    compiled = torch.compile(other, backend="aot_eager")
    for seed in range(3):
        z = latents((20,), seed=seed)
        assert torch.equal(plain(z)[1], compiled(z)[1])
    assert all(torch.equal(value, other.state_dict()[key])
               for key, value in plain.state_dict().items())


def test_fsq_needs_no_cumulative_product():
    "ONNX has none that exports: place values are Python's integers."
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.quantizer = FiniteScalarQuantizer([8, 5, 5, 5])
        def forward(self, z): return self.quantizer.decode(self.quantizer(z)[1])
    with torch.no_grad(): program = torch.export.export(Tokens(), (latents((7,)),))
    names = [str(node.target) for node in program.run_decompositions().graph.nodes]
    assert not [name for name in names if "prod" in name]
    assert torch.equal(program.module()(latents((7,))), Tokens()(latents((7,))))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_shapes_on_meta_and_under_vmap(name):
    quantizer, stack = QUANTIZERS[name]().eval(), latents((2, 20))
    for found, expected in zip(torch.func.vmap(lambda z: quantizer(z)[:2])(stack),
                               quantizer(stack)[:2]):
        assert torch.equal(found, expected)
    z_q, indices, _ = quantizer.to("meta")(stack.to("meta"))
    assert z_q.shape == stack.shape and indices.shape == (2, 20) and z_q.is_meta
