"Contracts over every encoder and decoder; the notebooks hold what a reader wants to see."
import copy
import pickle

import numpy as np
import pytest
import torch

import vqvae.decoders
import vqvae.encoders
from vqvae.core import import_path, resolve
from vqvae.decoders import (
    BaseDecoder,
    ConvDecoder,
    LearnedLinearDecoder,
    PCADecoder,
    TransformerDecoder,
)
from vqvae.encoders import (
    BaseEncoder,
    ConvEncoder,
    LearnedLinearEncoder,
    PCAEncoder,
    TransformerEncoder,
)
from vqvae.encoders.base import as_shape
from vqvae.models.io import load_component, save_component

BASIS = torch.linalg.qr(torch.randn(12, 4, generator=torch.Generator().manual_seed(0))).Q
MEAN = torch.linspace(-1, 1, 12)

# name: (encoder, decoder, sample shape, latent shape); constructors so that every test gets fresh
# parts
PAIRS = {
    "pca": (
        lambda **k: PCAEncoder(BASIS, trainable=True, **k),
        lambda **k: PCADecoder(BASIS, trainable=True, **k),
        (12,),
        (4,),
    ),
    "pca-mean-image": (
        lambda **k: PCAEncoder(BASIS, MEAN, trainable=True, sample_shape=(3, 2, 2)),
        lambda **k: PCADecoder(BASIS, MEAN, trainable=True, sample_shape=(3, 2, 2)),
        (3, 2, 2),
        (4,),
    ),
    "linear": (
        lambda **k: LearnedLinearEncoder(12, 4, **k),
        lambda **k: LearnedLinearDecoder(4, 12, **k),
        (12,),
        (4,),
    ),
    "linear-image": (
        lambda **k: LearnedLinearEncoder((3, 2, 2), 4, bias=False, **k),
        lambda **k: LearnedLinearDecoder(4, [3, 2, 2], bias=False, **k),
        (3, 2, 2),
        (4,),
    ),
}
for c, f, blocks in [(1, 1, 0), (1, 2, 2), (3, 3, 1), (2, 4, 2), (3, 6, 1), (4, 7, 0), (1, 8, 1),
                     (3, 12, 1)]:
    PAIRS[f"conv-c{c}-f{f}"] = (
        lambda c=c, f=f, n=blocks, **k: ConvEncoder(c, 5, f, hidden=8, residual_blocks=n, **k),
        lambda c=c, f=f, n=blocks, **k: ConvDecoder(c, 5, f, hidden=8, residual_blocks=n, **k),
        (c, 2 * f, 3 * f),
        (2, 3, 5),
    )
for c, s, p in [(1, 8, 2), (3, (12, 8), 4), (2, (9, 15), 3), (1, 4, 1), (1, 4, 4)]:
    h, w = (s, s) if isinstance(s, int) else s
    PAIRS[f"transformer-c{c}-{h}x{w}-p{p}"] = (
        lambda c=c, s=s, p=p, **k: TransformerEncoder(c, s, p, 5, width=16, heads=2, **k),
        lambda c=c, s=s, p=p, **k: TransformerDecoder(c, s, p, 5, width=16, heads=2, **k),
        (c, h, w),
        (h // p, w // p, 5),
    )

ONE_OF_EACH = ["pca-mean-image", "linear-image", "conv-c3-f6", "transformer-c3-12x8-p4"]
pairs = pytest.mark.parametrize("name", PAIRS)
learned = pytest.mark.parametrize("name", [name for name in PAIRS if not name.startswith("pca")])


def build(name, **k):
    encoder, decoder, sample, latent = PAIRS[name]
    x = torch.rand(3, *sample, generator=torch.Generator().manual_seed(1))
    return encoder(**k), decoder(**k), x, latent


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pairs
def test_shapes(name):
    encoder, decoder, x, latent = build(name)
    z = encoder(x)
    assert z.shape == (3, *latent) and z.dtype == torch.float32 and z.is_contiguous()
    assert encoder.dim == decoder.dim == latent[-1]
    assert decoder(z).shape == x.shape
    assert encoder(torch.zeros(1, *encoder.input_shape)).shape[-1] == encoder.dim


@pairs
def test_every_trainable_parameter_gets_a_gradient(name):
    encoder, decoder, x, _ = build(name)
    x.requires_grad_()
    (decoder(encoder(x)) - x.detach().flip(0)).square().mean().backward()
    for part in (encoder, decoder):
        assert list(part.parameters())
        for key, p in part.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, key
    assert x.grad.abs().max() > 0


@pairs
def test_frozen_is_bit_identical_and_lets_gradients_through(name):
    encoder, decoder, x, _ = build(name)
    offset = torch.nn.Parameter(torch.zeros_like(x))
    optimizer = torch.optim.AdamW([offset, *encoder.parameters(), *decoder.parameters()], lr=0.1,
                                  weight_decay=0.1)
    encoder.freeze(), decoder.freeze()
    before = copy.deepcopy(encoder), copy.deepcopy(decoder)
    for _ in range(3):
        encoder.train(), decoder.train()
        optimizer.zero_grad()
        (decoder(encoder(x + offset)) - x).square().mean().backward()
        optimizer.step()
    assert same_state(encoder, before[0]) and same_state(decoder, before[1])
    assert all(p.grad is None for part in (encoder, decoder) for p in part.parameters())
    assert not encoder.training and offset.abs().max() > 0
    assert all(p.requires_grad for p in encoder.unfreeze().parameters())


@pairs
def test_training_changes_the_loss(name):
    encoder, decoder, x, _ = build(name)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.01)
    losses = []
    for _ in range(15):
        loss = (decoder(encoder(x)) - x).square().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pairs
def test_train_and_eval_agree_bit_for_bit(name):
    encoder, decoder, x, _ = build(name)
    z = encoder.train()(x)
    x_recon = decoder.train()(z)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(x), z)
        assert torch.equal(decoder.eval()(z), x_recon)
    with torch.inference_mode(): assert torch.equal(encoder(x), z)


@pairs
def test_rebuilt_from_arguments_and_state(name):
    for part in build(name)[:2]:
        assert "self" not in part.arguments
        with torch.no_grad():
            for p in part.parameters(): p.add_(0.25)
        again = resolve(import_path(type(part)))(**part.arguments)
        # the record holds what was passed, not the trained weights
        assert not same_state(again, part)
        again.load_state_dict(part.state_dict())
        assert same_state(again, part) and again.trainable == part.trainable


@learned
def test_same_seed_same_weights_and_global_generator_untouched(name):
    before = torch.get_rng_state()
    first, again, other = (build(name, seed=seed)[:2] for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(first, again, other):
        assert same_state(a, b) and not same_state(a, c)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("grad", [False, True])
def test_compiles_without_graph_break(name, grad):
    torch._dynamo.reset()
    encoder, decoder, x, _ = build(name)
    encoder.eval(), decoder.eval()
    with torch.set_grad_enabled(grad):
        z = encoder(x)
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)(x)
        assert torch.allclose(compiled, z, atol=1e-6)
        assert torch.allclose(torch.compile(decoder, backend="eager", fullgraph=True)(z),
                              decoder(z), atol=1e-6)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_autocast_and_double(name):
    encoder, decoder, x, latent = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16): x_recon = decoder(encoder(x))
    assert x_recon.shape == x.shape and x_recon.isfinite().all()
    assert decoder.double()(encoder.double()(x.double())).dtype == torch.float64


@pairs
def test_bad_values_are_refused(name):
    encoder, decoder, x, latent = build(name)
    for bad in (torch.nan, torch.inf):
        spoiled = x.clone()
        spoiled.view(-1)[2] = bad
        with pytest.raises(ValueError, match="x holds 1 NaN or infinite"): encoder(spoiled)
        with pytest.raises(ValueError, match="z holds .* NaN or infinite"):
            decoder(torch.full((2, *latent), bad))
    with pytest.raises(ValueError, match="x is empty"): encoder(x[:0])
    with pytest.raises(ValueError, match="z is empty"): decoder(torch.zeros(0, *latent))
    with pytest.raises(TypeError, match="floating-point"): encoder(x.to(torch.uint8))
    with pytest.raises(TypeError, match="torch.Tensor"): encoder(x.numpy())
    with pytest.raises(ValueError, match=r"z must have shape \(B, .*got \(2, "):
        decoder(torch.zeros(2, *latent[:-1], latent[-1] + 1))
    with pytest.raises(ValueError, match="z must have shape"): decoder(torch.zeros(2, 1, *latent))
    with pytest.raises(ValueError, match="x must"): encoder(x[0])
    with pytest.raises(ValueError, match="x must"): encoder(torch.cat([x, x], 1))


REFUSALS = [
    (
        lambda: PCAEncoder(BASIS * 2),
        r"U_k of shape \(12, 4\) must have orthonormal columns.* got 3",
    ),
    (lambda: PCADecoder(BASIS.T), r"U_k of shape \(4, 12\) must have orthonormal columns"),
    (lambda: PCAEncoder(BASIS[:, 0]), r"U_k must have shape \(d, k\), got \(12,\)"),
    (lambda: PCAEncoder(BASIS * torch.nan), "U_k holds 48 NaN"),
    (lambda: PCAEncoder(BASIS, torch.zeros(4)), r"mean must have 12 values .* got shape \(4,\)"),
    (
        lambda: PCAEncoder(BASIS, sample_shape=(3, 2)),
        r"sample_shape \(3, 2\) holds 6 values, U_k has 12 rows",
    ),
    (
        lambda: PCADecoder(BASIS, sample_shape=(3, 2)),
        r"sample_shape \(3, 2\) holds 6 values, U_k has 12 rows",
    ),
    (
        lambda: PCAEncoder.fit(torch.rand(3, 12), 4),
        "between 1 and 3, the smaller of 3 samples and 12 values, got 4",
    ),
    (lambda: PCADecoder.fit(torch.rand(30, 12), 0), "between 1 and 12.* got 0"),
    (lambda: PCAEncoder(BASIS)(torch.rand(2, 11)), r"12 values per sample, got shape \(2, 11\)"),
    (
        lambda: LearnedLinearEncoder((3, 2, 2), 4)(torch.rand(2, 2, 2, 3)),
        r"\(B, 3, 2, 2\), got \(2, 2, 2, 3\)",
    ),
    (lambda: LearnedLinearEncoder((3, 0), 4), "sample_shape must be positive, got 0"),
    (lambda: LearnedLinearEncoder((), 4), "sample_shape must hold at least one size"),
    (lambda: LearnedLinearDecoder(0, 12), "dim must be positive, got 0"),
    (lambda: ConvEncoder(3, 4, downsample=0), "downsample must be positive, got 0"),
    (lambda: ConvDecoder(3, 4, upsample=-2), "upsample must be positive, got -2"),
    (lambda: ConvEncoder(0, 4), "in_channels must be positive, got 0"),
    (lambda: ConvDecoder(0, 4), "out_channels must be positive, got 0"),
    (lambda: ConvEncoder(3, 4, residual_blocks=-1), "residual_blocks must be at least 0, got -1"),
    (lambda: ConvEncoder(3, 4, 4)(torch.rand(1, 3, 30, 32)), "multiples of 4, got 30 x 32"),
    (lambda: ConvEncoder(3, 4, 3)(torch.rand(1, 3, 9, 8)), "multiples of 3, got 9 x 8"),
    (lambda: ConvEncoder(3, 4)(torch.rand(1, 1, 8, 8)), r"\(B, 3, H, W\), got \(1, 1, 8, 8\)"),
    (lambda: ConvDecoder(3, 4)(torch.rand(1, 4)), r"\(B, \*, \*, 4\), got \(1, 4\)"),
    (lambda: TransformerEncoder(1, 30, 4, 5), "multiple of patch_size 4, got 30 x 30"),
    (lambda: TransformerEncoder(1, (8, 8, 8), 4, 5), "image_size must be one or two integers"),
    (lambda: TransformerEncoder(1, 8, 4, 5, width=10, heads=4), "got width 10 and 4 heads"),
    (lambda: TransformerDecoder(1, 8, 4, 5, depth=0), "depth must be positive, got 0"),
    (lambda: TransformerEncoder(0, 8, 4, 5), "in_channels must be positive, got 0"),
    (lambda: TransformerEncoder(1, 8, 4, 5)(torch.rand(1, 1, 16, 8)), "8 x 8 pixels, got 16 x 8"),
    (
        lambda: TransformerEncoder(3, 8, 4, 5)(torch.rand(1, 1, 8, 8)),
        r"\(B, 3, H, W\), got \(1, 1, 8, 8\)",
    ),
    (
        lambda: TransformerDecoder(1, 8, 4, 5)(torch.rand(1, 4, 4, 5)),
        r"\(B, 2, 2, 5\), got \(1, 4, 4, 5\)",
    ),
]


@pytest.mark.parametrize("call, message", REFUSALS, ids=[message[:40] for _, message in REFUSALS])
def test_refusals_carry_the_numbers(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_pca_starts_frozen_copies_its_basis_and_fits():
    U = BASIS.clone()
    encoder, decoder = PCAEncoder(U), PCADecoder(U)
    assert not encoder.trainable and not decoder.trainable
    assert not any(p.requires_grad for p in (*encoder.parameters(), *decoder.parameters()))
    assert encoder.U_k.data_ptr() != U.data_ptr()
    x = torch.rand(50, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    encoder, decoder = PCAEncoder.fit(x, 12), PCADecoder.fit(x, 12)
    assert torch.allclose(decoder(encoder(x)), x, atol=1e-5)
    assert same_state(PCAEncoder.fit(x, 5), PCAEncoder.fit(x, 5))
    assert PCAEncoder.fit(x, 5, trainable=True).trainable


def test_linear_encoders_accept_images_where_no_shape_was_given():
    x = torch.rand(2, 3, 2, 2)
    assert torch.equal(PCAEncoder(BASIS)(x), PCAEncoder(BASIS)(x.flatten(1)))


def test_own_encoder_and_decoder_of_the_specification():
    class MyEncoder(BaseEncoder):
        def forward(self, x):
            # x: (batch, d) -> z: (batch, k)
            z = x[:, :2]
            return z

    class MyDecoder(BaseDecoder):
        def forward(self, z): return torch.nn.functional.pad(z, (0, 2))

    x = torch.rand(5, 4)
    encoder, decoder = MyEncoder(), MyDecoder()
    assert encoder(x).shape == (5, 2) and decoder(encoder(x)).shape == (5, 4)
    assert encoder.dim is None and encoder.input_shape is None and encoder.trainable
    assert not encoder.freeze().trainable
    with pytest.raises(TypeError, match="abstract"): BaseEncoder()
    with pytest.raises(TypeError, match="abstract"): BaseDecoder()


def test_layers_of_a_transformer_start_apart():
    first, second = TransformerEncoder(1, 4, 2, 3, width=8, heads=2).transformer.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


# Everything that the two rooms export, each in one example; a class without one fails

EXAMPLES = {
    "BaseEncoder": None,
    "BaseDecoder": None,
    "PCAEncoder": lambda n: (PCAEncoder(BASIS, MEAN), (2, 12)),
    "PCADecoder": lambda n: (PCADecoder(BASIS, MEAN), (2, 4)),
    "LearnedLinearEncoder": lambda n: (LearnedLinearEncoder((n(3), n(4)), n(4)), (2, 3, 4)),
    "LearnedLinearDecoder": lambda n: (LearnedLinearDecoder(n(4), n(12)), (2, 4)),
    "ConvEncoder": lambda n: (ConvEncoder(n(1), n(4), n(6), n(8), n(1)), (2, 1, 12, 18)),
    "ConvDecoder": lambda n: (ConvDecoder(n(1), n(4), n(6), n(8), n(1)), (2, 2, 3, 4)),
    "TransformerEncoder": lambda n: (
        TransformerEncoder(n(1), n(8), n(4), n(5), n(16), n(1), n(2)), (2, 1, 8, 8)
    ),
    "TransformerDecoder": lambda n: (
        TransformerDecoder(n(1), (n(8), n(12)), n(4), n(5), n(16), n(1), n(2)), (2, 2, 3, 5)
    ),
}
NUMBERS = {"int": int, "int64": np.int64, "uint8": np.uint8, "prod": lambda n: np.prod([n, 1])}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
exported = pytest.mark.parametrize("name", [name for name, make in EXAMPLES.items() if make])


def test_every_exported_class_has_an_example():
    rooms = {*vqvae.encoders.__all__, *vqvae.decoders.__all__}
    assert rooms == set(EXAMPLES)


def example(name, number=int):
    part, shape = EXAMPLES[name](number)
    return part, torch.rand(shape, generator=torch.Generator().manual_seed(2))


@exported
@pytest.mark.parametrize("number", NUMBERS)
def test_sizes_of_numpy(name, number):
    part, x = example(name, NUMBERS[number])
    same, _ = example(name)
    assert torch.equal(part(x), same(x)) and type(part.dim) is int and repr(part) == repr(same)
    for shape in (getattr(part, "sample_shape", None), getattr(part, "input_shape", None)):
        assert shape is None or {type(size) for size in shape} == {int}


@exported
def test_sizes_that_are_no_integers(name):
    if name.startswith("PCA"): return
    for wrong in (float, str, lambda n: torch.tensor(float(n))):
        with pytest.raises(TypeError, match="must be an int|must hold integers"):
            example(name, wrong)


@exported
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(name, dtype):
    part, x = example(name)
    expected = part(x).shape
    y = part.to(dtype)(x.to(dtype))
    assert y.dtype == dtype and y.shape == expected and y.isfinite().all()


@exported
@pytest.mark.parametrize("again", ["deepcopy", "pickle", "file"])
def test_copies(name, again, tmp_path):
    part, x = example(name)
    part.freeze()
    if again == "file": save_component(part.bfloat16(), tmp_path / "f")
    twin = {"deepcopy": copy.deepcopy, "pickle": lambda p: pickle.loads(pickle.dumps(p)),
            "file": lambda p: load_component(tmp_path / "f")}[again](part)
    x = x.to(next(part.parameters()).dtype)
    assert same_state(part, twin) and torch.equal(part(x), twin(x)) and repr(twin) == repr(part)
    assert not twin.trainable and type(twin) is type(part)


@exported
def test_repr_says_what_it_is_made_of(name):
    part, _ = example(name)
    first = repr(part).splitlines()
    assert first[0].startswith(f"{name}(")
    assert "U_k=Tensor(12, 4)" in repr(part) if name.startswith("PCA") else "seed=0" in repr(part)


@exported
def test_freeze_and_unfreeze(name):
    part, x = example(name)
    part.unfreeze()
    first = next(part.parameters()).requires_grad_(False)
    part.freeze().train()
    assert not part.training and not any(p.requires_grad for p in part.parameters())
    part.unfreeze()
    assert part.training and not first.requires_grad
    assert all(p.requires_grad for p in part.parameters() if p is not first)


@exported
def test_shapes_on_meta_and_under_vmap(name):
    part, x = example(name)
    y = part(x)
    rows = torch.func.vmap(lambda row: part(row.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(rows, y)
    with torch.device("meta"): empty, _ = example(name)
    assert empty.to("meta")(x.to("meta")).shape == y.shape


def test_shapes_are_what_they_were():
    for shape, wanted in ((np.int64(4), (4,)), (np.array([2, 3]), (2, 3)),
                          (torch.Size([2, 3]), (2, 3)), (range(1, 3), (1, 2))):
        assert as_shape(shape) == wanted and {type(size) for size in as_shape(shape)} == {int}
    for wrong in (4.0, (4, 2.0), np.array([2.0]), "34", None, [None]):
        with pytest.raises(TypeError, match="sample_shape must hold integers"): as_shape(wrong)
    for wrong in ((), 0, (3, -1)):
        with pytest.raises(ValueError, match="sample_shape must"): as_shape(wrong)


def test_no_float64_where_a_device_has_none(monkeypatch):
    "Apple's GPUs refuse float64; here a tensor does, until it went through `.cpu()`."
    on_cpu, double = [], torch.Tensor.double

    def to_cpu(tensor):
        on_cpu.append(tensor.clone())
        return on_cpu[-1]

    def to_double(tensor):
        if not any(tensor is known for known in on_cpu):
            raise TypeError("this device has no float64")
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", to_cpu)
    monkeypatch.setattr(torch.Tensor, "double", to_double)
    images = torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert PCAEncoder.fit(images, 4)(images).shape == (20, 4) and len(on_cpu) == 2
