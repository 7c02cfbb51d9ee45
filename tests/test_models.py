"""Every encoder/decoder pair with every quantizer; files on disk."""
import copy
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from platforms import posix, recent_compiler
from safetensors import safe_open
from safetensors.torch import save_file
from test_core import Computed
from test_quantizers import DIM, QUANTIZERS

import vqvae.models
from vqvae.core import Component, evaluating, import_path
from vqvae.data.base import InMemoryDataset
from vqvae.data.digits import DigitsDataset
from vqvae.data.patches import ImagePatchDataset
from vqvae.decoders.base import BaseDecoder
from vqvae.decoders.conv import ConvDecoder
from vqvae.decoders.linear import LearnedLinearDecoder
from vqvae.decoders.pca import PCADecoder
from vqvae.decoders.transformer import TransformerDecoder
from vqvae.encoders.base import BaseEncoder
from vqvae.encoders.conv import ConvEncoder
from vqvae.encoders.linear import LearnedLinearEncoder
from vqvae.encoders.pca import PCAEncoder
from vqvae.encoders.transformer import TransformerEncoder
from vqvae.models.io import check_saving, load_component, save_component
from vqvae.models.vqvae import VQVAE
from vqvae.quantizers.base import BaseQuantizer
from vqvae.quantizers.estimators import projection, rotation, straight_through
from vqvae.quantizers.gumbel import ExponentialTemperature, GumbelSoftmaxQuantizer
from vqvae.quantizers.learning import EMALearning, LossLearning, Revival
from vqvae.quantizers.vq import (
    ClassicalVectorQuantizer,
    RotationVectorQuantizer,
    VectorQuantizer,
)
from vqvae.training.loss import vqvae_loss
from vqvae.training.trainer import Trainer

DIGITS = DigitsDataset()
BASIS = torch.linalg.qr(torch.randn(64, DIM, generator=torch.Generator().manual_seed(0)))[0]
PAIRS = {
    "pca": lambda: (
        PCAEncoder(BASIS, sample_shape=(1, 8, 8)),
        PCADecoder(BASIS, sample_shape=(1, 8, 8)),
    ),
    "pca trainable": lambda: (
        PCAEncoder(BASIS, trainable=True, sample_shape=(1, 8, 8)),
        PCADecoder(BASIS, trainable=True, sample_shape=(1, 8, 8)),
    ),
    "linear": lambda: (LearnedLinearEncoder((1, 8, 8), DIM), LearnedLinearDecoder(DIM, (1, 8, 8))),
    "conv": lambda: (
        ConvEncoder(1, DIM, downsample=2, hidden=8, residual_blocks=1),
        ConvDecoder(1, DIM, upsample=2, hidden=8, residual_blocks=1),
    ),
    "transformer": lambda: (
        TransformerEncoder(1, 8, 4, DIM, width=16, depth=1),
        TransformerDecoder(1, 8, 4, DIM, width=16, depth=1),
    ),
    "conv to transformer": lambda: (
        ConvEncoder(1, DIM, downsample=4, hidden=8),
        TransformerDecoder(1, 8, 4, DIM, width=16, depth=1),
    ),
}


def model_of(pair, name):
    encoder, decoder = PAIRS[pair]()
    return VQVAE(encoder, QUANTIZERS[name](), decoder)


def images(n=12): return DIGITS.test[:n].clone()


every_model = pytest.mark.parametrize(("pair", "name"), [(p, q) for p in PAIRS for q in QUANTIZERS])


@every_model
def test_forward_backward_and_tokens(pair, name):
    model, x = model_of(pair, name).train(), images()
    out = model(x)
    assert out["x_recon"].shape == x.shape and {"x_recon", "z", "z_q", "indices", "z_q_hard",
                                                "distances", "losses"} <= set(out)
    loss = vqvae_loss(out, x)[0]
    if any(p.requires_grad for p in model.parameters()): loss.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
        else: assert parameter.grad is None, key
    before = copy.deepcopy(model.state_dict())
    tokens = model.tokenize(x)
    with evaluating(model): evaluated = model(x)
    assert torch.equal(tokens, evaluated["indices"])
    assert torch.equal(model.detokenize(tokens), evaluated["x_recon"])
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


@every_model
def test_one_training_step_moves_what_is_trainable_only(pair, name):
    model = model_of(pair, name).train()
    model.quantizer.freeze()
    before = copy.deepcopy(model.state_dict())
    parameters = [p for p in model.parameters() if p.requires_grad]
    if parameters:  # without any, the model is all frozen
        optimizer = torch.optim.AdamW(parameters, lr=0.1)
        vqvae_loss(model(images()), images())[0].backward()
        optimizer.step()
    moved = {key
             for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert not any(key.startswith("quantizer") for key in moved)
    assert bool(moved) == bool(parameters)


@every_model
def test_save_and_load(pair, name, tmp_path):
    model = model_of(pair, name).eval()
    model.decoder.freeze()
    model.save(tmp_path / "folder" / "model.safetensors")
    loaded = VQVAE.load(tmp_path / "folder" / "model.safetensors")
    assert torch.equal(loaded.tokenize(images()), model.tokenize(images()))
    assert torch.equal(loaded(images())["x_recon"], model(images())["x_recon"])
    assert [c.trainable
            for c in (loaded.encoder, loaded.quantizer,
                      loaded.decoder)] == [model.encoder.trainable, True, False]
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["model.safetensors"]


@recent_compiler
@pytest.mark.parametrize("pair", PAIRS)
def test_compiles_in_evaluation_without_graph_break(pair):
    torch._dynamo.reset()
    model = model_of(pair, "rotation VQ").eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images())["x_recon"], model(images())["x_recon"])


def test_mismatched_parts_are_refused():
    encoder, decoder = PAIRS["conv"]()
    for bad, message in (
        ((encoder, ConvDecoder(1, DIM, upsample=4)), "but the encoder made them of"),
        ((encoder, ConvDecoder(3, DIM, upsample=2)), "but the encoder made them of"),
        ((ConvEncoder(1, DIM + 1, 2), decoder), "dimension 5, the quantizer expects 4"),
        ((encoder, LearnedLinearDecoder(DIM, 64)), "encoder turns"),
    ):
        with pytest.raises(ValueError, match=message): VQVAE(bad[0], QUANTIZERS["VQ"](), bad[1])
    with pytest.raises(TypeError, match="decoder must be a BaseDecoder"):
        VQVAE(encoder, QUANTIZERS["VQ"](), torch.nn.Identity())


def test_a_failed_save_keeps_the_good_file(tmp_path, monkeypatch):
    model, path = model_of("linear", "VQ"), tmp_path / "model.safetensors"
    model.save(path)
    good = path.read_bytes()

    def broken(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("vqvae.models.io.save_file", broken)
    with pytest.raises(OSError, match="disk full"): model.save(path)
    assert path.read_bytes() == good and len(list(tmp_path.iterdir())) == 1


def test_load_runs_nothing_that_the_file_names(tmp_path):
    def file(recipe):
        save_file({}, tmp_path / "bad.safetensors",
                  {"format": "vqvae 1", "recipe": json.dumps(recipe)})
        return tmp_path / "bad.safetensors"
    for name, arguments, message in (
        ("os.system", {"command": "touch /tmp/owned"}, "not a component"),
        ("antigravity.Fly", {}, "import antigravity first"),
        ("vqvae.core.nothing", {}, "there is no vqvae.core.nothing"),
        ("vqvae.core.seeded", {"seed": 1}, "not a component"),
    ):
        recipe = {"class": name, "trainable": True, "arguments": arguments}
        with pytest.raises(ValueError, match=message): VQVAE.load(file(recipe))


def test_load_refuses_what_is_not_a_model(tmp_path):
    save_component(QUANTIZERS["VQ"](), tmp_path / "q.safetensors")
    with pytest.raises(ValueError, match="holds a VectorQuantizer, not a VQVAE"):
        VQVAE.load(tmp_path / "q.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        VQVAE.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError): VQVAE.load(tmp_path / "absent")


# What a file brings back


def round_trip(component, tmp_path, **options):
    path = tmp_path / "component.safetensors"
    save_component(component, path)
    return load_component(path, **options)


def same_bits(a, b):
    a, b = a.state_dict(), b.state_dict()
    bits = [(x.dtype, y.dtype, x.contiguous().flatten().view(torch.uint8),
             y.contiguous().flatten().view(torch.uint8)) for x, y in zip(a.values(), b.values())]
    return [*a] == [*b] and all(s == t and torch.equal(x, y) for s, t, x, y in bits)


class Blend(BaseEncoder):
    "A component of a user: settings, parts in containers, tables that are computed."

    def __init__(self, parts=(), named=None, temperature: float = 1.0, shape=(2, 3),
                 init_scale: torch.Tensor | None = None, rule=torch.square, table=None) -> None:
        super().__init__(3)
        self.parts, self.named = torch.nn.ModuleList(parts), torch.nn.ModuleDict(named or {})
        self.temperature, self.shape, self.rule, self.table = temperature, shape, rule, table
        scale = torch.ones(3) if init_scale is None else init_scale.detach().clone()
        self.scale = torch.nn.Parameter(scale)
        self.inner = EMALearning()
        self.register_buffer("window", torch.linspace(0, 1, 3), persistent=False)

    def forward(self, x): return x * self.scale


class Shared(BaseDecoder):
    "A decoder that knows its encoder."

    def __init__(self, encoder: BaseEncoder) -> None:
        super().__init__(DIM)
        self.encoder = encoder
        self.linear = torch.nn.Linear(DIM, 64)

    def forward(self, z): return self.linear(z).unflatten(-1, (1, 8, 8))


class Loose(BaseEncoder):
    "Keeps its parts in a plain list, where PyTorch does not see them."

    def __init__(self, parts: list) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x): return x


class Several(BaseEncoder):
    def __init__(self, first: int, *more: int, **options: float) -> None:
        super().__init__()
        self.sizes, self.options = (first, *more), options

    def forward(self, x): return x


def test_settings_that_were_changed_come_back(tmp_path):
    q = VectorQuantizer(DIM, 8, estimator=rotation, learning=EMALearning(), revival=Revival())
    q.learning.decay, q.revival.after, q.estimator = 0.5, 7, straight_through
    model = VQVAE(LearnedLinearEncoder(64, DIM), q, LearnedLinearDecoder(DIM, 64))
    loaded = round_trip(model, tmp_path).quantizer
    assert (loaded.learning.decay, loaded.revival.after) == (0.5, 7)
    assert loaded.estimator is straight_through
    again = round_trip(loaded, tmp_path)  # and once more, now from a loaded one
    assert (again.learning.decay, again.revival.after) == (0.5, 7)

    q = GumbelSoftmaxQuantizer(DIM, 8)
    q.temperature, q.hard, q.logits.scale = 0.1, False, 3.0
    loaded = round_trip(q, tmp_path)
    assert (loaded.temperature, loaded.hard, loaded.logits.scale) == (0.1, False, 3.0)
    q.temperature = ExponentialTemperature(2.0, 1.0, 10)  # a number became a part,
    q.temperature.end = 0.5
    loaded = round_trip(q, tmp_path)
    assert loaded.temperature.start == 2.0 and loaded.temperature.end == 0.5
    del loaded.temperature  # and a part a number
    loaded.temperature = 0.25
    assert round_trip(loaded, tmp_path).temperature == 0.25

    for given, now in ((Revival(), None), (True, None), (True, Revival(20)), (True, Revival())):
        q = VectorQuantizer(DIM, 8, revival=given)
        q.revival = now
        if now is not None: now.attach(q.codebook)
        loaded = round_trip(q, tmp_path)
        assert repr(loaded.revival) == repr(now)
    loaded.revival.samples_per_code = 3.0
    loaded.learning.decay = 0.9
    again = round_trip(loaded, tmp_path)
    assert again.revival.samples_per_code == 3.0 and again.learning.decay == 0.9
    q = VectorQuantizer(DIM, 8, revival=False)
    assert round_trip(q, tmp_path).revival is None
    q = RotationVectorQuantizer(DIM, 8)  # whose constructor takes no estimator
    q.estimator = projection
    assert round_trip(q, tmp_path).estimator is projection


def test_settings_that_cannot_come_back_are_named(tmp_path):
    for name, value in (("temperature", lambda step: 1.0), ("rule", lambda x: x),
                        ("rule", LearnedLinearEncoder(3, 2).forward), ("table", {1: 2}),
                        ("table", np.array([object()])), ("table", tmp_path)):
        part = Blend()
        setattr(part, name, value)
        with pytest.raises((TypeError, ValueError), match=f"{name} cannot be saved"):
            save_component(part, tmp_path / "folder" / "file")
        with pytest.raises((TypeError, ValueError), match=f"{name} cannot be saved"):
            check_saving(part)
    assert not (tmp_path / "folder").exists()


def test_settings_behind_properties_come_back(tmp_path):
    part = Computed()
    part.rate, part.rule, part.half = 2.0, torch.relu, 4
    loaded = round_trip(part, tmp_path)
    assert (loaded.rate, loaded.rule, loaded.half, loaded.width) == (2.0, torch.relu, 4.0, 3)
    part.rule = lambda x: x
    with pytest.raises(ValueError, match="rule cannot be saved"): check_saving(part)


def test_a_cache_is_left_out(tmp_path):
    part = Blend()
    part.last, part.calls = {1: torch.ones(3, requires_grad=True) * 2}, 6
    loaded = round_trip(part, tmp_path)
    assert loaded.calls == 6 and not hasattr(loaded, "last")


@pytest.mark.parametrize("value", [
    (1, (2, "a")), [1, (2.5, None)], {"a": (1, [2])}, float("inf"), True, -3, "text", 2**70,
    torch.bfloat16, torch.arange(3)], ids=str)
def test_arguments_come_back_as_they_were(value, tmp_path):
    loaded = round_trip(Blend(table=value), tmp_path).table
    assert type(loaded) is type(value)
    assert torch.equal(loaded, value) if isinstance(value, torch.Tensor) else loaded == value


def test_nan_and_numpy_in_arguments(tmp_path):
    part = Blend(temperature=float("nan"), shape=(np.int64(2), np.float32(0.5)))
    loaded = round_trip(part, tmp_path)
    assert math.isnan(loaded.temperature) and loaded.shape == (2, 0.5)
    for array in (np.arange(4.0).reshape(2, 2)[:, 1], np.array([True]), np.array(3, np.int16)):
        table = round_trip(Blend(table=array), tmp_path).table
        assert isinstance(table, np.ndarray) and table.dtype == array.dtype
        assert np.array_equal(table, array)


def test_arguments_kept_as_tensors_are_those_of_today(tmp_path):
    table = torch.arange(3.0)
    for kept in (table, table.numpy()):
        part = Blend(table=kept)
        save_component(part, tmp_path / "file")
        with safe_open(tmp_path / "file", "pt") as file:  # once, although it is also an attribute
            assert len([name for name in file.keys() if "table" in name]) == 1
        part.table = part.table + 1  # exchanged
        assert round_trip(part, tmp_path).table.tolist() == [1.0, 2.0, 3.0]
        part.table[0] = 7  # changed in place
        assert round_trip(part, tmp_path).table.tolist() == [7.0, 2.0, 3.0]
    part.table = torch.ones(2, requires_grad=True) * 2
    assert round_trip(part, tmp_path).table.tolist() == [2.0, 2.0]


def test_components_in_containers(tmp_path):
    part = Blend([EMALearning(0.5), Revival()], {"a": EMALearning(0.25)})
    part.parts[0].decay, part.named["a"].every = 0.75, 3
    part.parts[1].freeze(), part.named["a"].freeze(), setattr(part.inner, "decay", 0.125)
    loaded = round_trip(part, tmp_path)
    assert [type(p) for p in loaded.parts] == [EMALearning, Revival]
    assert (loaded.parts[0].decay, loaded.named["a"].every, loaded.inner.decay) == (0.75, 3, 0.125)
    assert [p.trainable for p in (*loaded.parts, loaded.named["a"])] == [True, False, False]
    part.parts[1] = EMALearning(0.0625)  # exchanged in the container
    assert round_trip(part, tmp_path).parts[1].decay == 0.0625


def test_components_in_a_plain_list(tmp_path):
    part = Loose([EMALearning(0.5), (ExponentialTemperature(2.0, 1.0, 3).freeze(),)])
    part.parts[0].every = 2
    loaded = round_trip(part, tmp_path).parts
    assert (loaded[0].decay, loaded[0].every, loaded[0].trainable) == (0.5, 2, True)
    assert loaded[1][0].start == 2.0 and not loaded[1][0].trainable
    with pytest.raises(TypeError, match="parts.0 cannot be saved: it has state and is no"):
        save_component(Loose([Revival()]), tmp_path / "file")


def test_shared_parts_and_tied_weights_are_one_thing(tmp_path):
    encoder = LearnedLinearEncoder((1, 8, 8), DIM)
    model = VQVAE(encoder, VectorQuantizer(DIM, 8), Shared(encoder))
    model.decoder.linear.weight = torch.nn.Parameter(encoder.linear.weight.detach().T.clone())
    loaded = round_trip(model, tmp_path)
    assert loaded.decoder.encoder is loaded.encoder and same_bits(loaded, model)
    with safe_open(tmp_path / "component.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "decoder.encoder" in name]

    first, second = Blend(), Blend()
    second.scale = first.scale
    both = Blend([first, second])
    loaded = round_trip(both, tmp_path)
    assert loaded.parts[0].scale is loaded.parts[1].scale is not loaded.scale
    with torch.no_grad(): loaded.parts[0].scale.fill_(2.0)
    assert round_trip(loaded, tmp_path).parts[1].scale.tolist() == [2.0] * 3


def test_an_object_that_is_a_part_of_itself_is_refused(tmp_path):
    part = Loose([])
    part.parts.append(part)
    with pytest.raises(ValueError, match="it is a part of itself"):
        save_component(part, tmp_path / "file")


def test_parameters_held_one_by_one_come_back(tmp_path):
    model = model_of("linear", "VQ EMA")
    model.encoder.linear.bias.requires_grad_(False)
    model.decoder.linear.weight.requires_grad_(False)
    model.decoder.freeze()
    held = {name for name, p in model.named_parameters() if not p.requires_grad}
    loaded = round_trip(model, tmp_path)
    assert {name for name, p in loaded.named_parameters() if not p.requires_grad} == held
    loaded.decoder.unfreeze()
    linear = loaded.decoder.linear
    assert not linear.weight.requires_grad and linear.bias.requires_grad
    model.unfreeze().freeze()
    assert not any(p.requires_grad for p in round_trip(model, tmp_path).parameters())


def test_nothing_is_stored_twice(tmp_path):
    codebook, path = torch.randn(64, DIM), tmp_path / "file"
    for learning in (None, EMALearning()):
        q = VectorQuantizer(DIM, 64, codebook, learning=learning).train()
        q.set_codebook(q.get_codebook().detach() + 1)
        save_component(q, path)
        with safe_open(path, "pt") as file: stored = [*file.keys()]
        assert sorted(stored) == sorted(f"state.{name}" for name in q.state_dict())
    encoder = PCAEncoder(BASIS, BASIS[:, 0])
    save_component(encoder, path)
    with safe_open(path, "pt") as file: assert sorted(file.keys()) == ["state.U_k", "state.mean"]
    assert same_bits(load_component(path), encoder)


def test_a_trained_basis_is_no_argument(tmp_path):
    encoder = PCAEncoder(BASIS, trainable=True)
    with torch.no_grad(): encoder.U_k.mul_(3)
    loaded = round_trip(encoder, tmp_path)
    assert same_bits(loaded, encoder) and torch.equal(loaded.arguments["U_k"], BASIS)
    with torch.no_grad(): loaded.U_k.mul_(3)  # the record is not the weights
    assert torch.equal(loaded.arguments["U_k"], BASIS)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pair", PAIRS)
def test_dtype_and_bits_come_back(pair, dtype, default, tmp_path):
    model = model_of(pair, "VQ EMA revival").to(dtype)
    model.save(tmp_path / "file")
    torch.set_default_dtype(default)
    try: loaded = VQVAE.load(tmp_path / "file")
    finally: torch.set_default_dtype(torch.float32)
    assert same_bits(loaded, model)
    x = images().to(dtype)
    with evaluating(model), evaluating(loaded):
        assert torch.equal(loaded(x)["x_recon"], model(x)["x_recon"])


def test_mixed_dtypes_and_tables_that_are_computed(tmp_path):
    part = Blend([LearnedLinearEncoder(3, 2).double(), LearnedLinearEncoder(3, 2).bfloat16()])
    part.window = part.window.half()
    loaded = round_trip(part, tmp_path)
    assert same_bits(loaded, part)
    assert loaded.window.dtype == torch.float16 and torch.equal(loaded.window, part.window)


def test_a_graph_is_left_behind(tmp_path):
    scale = torch.ones(3, requires_grad=True) * 2
    part = Blend(init_scale=scale, table=scale)
    part.window = part.window * scale
    loaded = round_trip(copy.deepcopy(Blend(init_scale=scale)), tmp_path)
    assert loaded.scale.is_leaf and torch.equal(loaded.scale, scale)
    assert round_trip(part, tmp_path).table.is_leaf


def test_what_no_constructor_makes_is_refused(tmp_path):
    def changed(change):
        encoder = ConvEncoder(1, 4, hidden=8)
        change(encoder)
        return encoder

    cases = {
        "ReLU.* as layers.1, it has GELU": lambda e: e.layers.__setitem__(1, torch.nn.GELU()),
        "Unexpected key": lambda e: e.layers.append(torch.nn.Linear(2, 2)),
        "size mismatch": lambda e: e.layers.__setitem__(0, torch.nn.Conv2d(1, 8, 3)),
        "holds NaN": lambda e: e.layers[0].bias.data.fill_(torch.nan),
        "meta device": lambda e: e.to("meta"),
        "not a plain tensor, got dict": lambda e: setattr(type(e), "get_extra_state", lambda s: {}),
    }
    for message, change in cases.items():
        try:
            with pytest.raises((TypeError, ValueError), match=message):
                save_component(changed(change), tmp_path / "folder" / "file")
        finally:
            if "get_extra_state" in vars(ConvEncoder): del ConvEncoder.get_extra_state
    assert not (tmp_path / "folder").exists()


def test_positional_and_keyword_arguments_of_any_number(tmp_path):
    for part in (Several(1, 2, 3, a=0.5), Several(1)):
        loaded = round_trip(part, tmp_path)
        assert loaded.sizes == part.sizes and loaded.options == part.options


def test_saving_and_loading_leave_the_generator_alone(tmp_path):
    before = torch.get_rng_state()
    encoder = LearnedLinearEncoder((1, 8, 8), DIM)
    # its decoder draws unseeded weights
    round_trip(VQVAE(encoder, VectorQuantizer(DIM, 8), Shared(encoder)), tmp_path)
    expected = torch.get_rng_state()
    torch.set_rng_state(before)
    VQVAE(encoder, VectorQuantizer(DIM, 8), Shared(encoder))
    assert torch.equal(torch.get_rng_state(), expected)


@posix
def test_links_and_long_names(tmp_path):
    quantizer, name = VectorQuantizer(2, 4), "q" * 240 + ".safetensors"
    save_component(quantizer, tmp_path / name)
    (tmp_path / "best").symlink_to(name)
    quantizer.set_codebook(torch.ones(4, 2))
    save_component(quantizer, tmp_path / "best")
    assert (tmp_path / "best").is_symlink()
    assert torch.equal(load_component(tmp_path / name).codebook, torch.ones(4, 2))


def test_weights_do_not_hang_on_the_file(tmp_path):
    path = tmp_path / "file"
    save_component(VectorQuantizer(2, 4), path)
    loaded = load_component(path)
    before = loaded.codebook.detach().clone()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded.codebook, before)


def test_files_of_the_first_format_are_read(tmp_path):
    model = model_of("pca", "VQ EMA")
    model.encoder.unfreeze(), model.quantizer.learning.freeze()

    def old(value):
        if isinstance(value, Component):
            return {"class": import_path(type(value)), "trainable": value.trainable, "arguments": {
                name: old(getattr(value, name) if isinstance(argument, Component) else argument)
                for name, argument in value.arguments.items()}}
        if isinstance(value, torch.Tensor):
            tensors[f"a{len(tensors)}"] = value.contiguous().clone()
            return {"tensor": f"a{len(tensors) - 1}"}
        return {"name": import_path(value)} if callable(value) else value

    tensors = {}
    recipe = old(model)
    tensors |= {f"state.{name}": value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, tmp_path / "old", {"format": "vqvae 1", "recipe": json.dumps(recipe)})
    loaded = VQVAE.load(tmp_path / "old")
    assert same_bits(loaded, model) and loaded.encoder.trainable and not loaded.decoder.trainable
    assert not loaded.quantizer.learning.trainable and loaded.quantizer.trainable


def test_the_first_format_left_learning_by_loss_out(tmp_path):
    expected = ClassicalVectorQuantizer(2, 4)
    arguments = {"dim": 2, "codebook_size": 4, "learning": None, "revival": None}
    recipe = {"class": import_path(VectorQuantizer), "trainable": True, "arguments": arguments}
    save_file({"state.codebook": expected.codebook.detach()}, tmp_path / "old",
              {"format": "vqvae 1", "recipe": json.dumps(recipe)})
    loaded = load_component(tmp_path / "old")
    assert type(loaded.learning) is LossLearning and loaded.revival is None
    assert torch.equal(loaded.codebook, expected.codebook)


def test_files_from_before_the_defaults_changed_are_what_they_were(tmp_path):
    """Two files that the code before the change wrote: `VectorQuantizer(2, 4)`, and with
    `EMALearning(0.9)` and `Revival(after=3)`, both after five training steps."""
    folder = Path(__file__).parent / "files"
    by_loss = load_component(folder / "quantizer_by_loss.safetensors")
    assert type(by_loss) is VectorQuantizer and type(by_loss.learning) is LossLearning
    assert by_loss.revival is None and isinstance(by_loss.codebook, torch.nn.Parameter)
    averaged = load_component(folder / "quantizer_by_averages.safetensors")
    assert averaged.learning.decay == 0.9 and averaged.revival.after == 3
    assert averaged.revival.step == 5
    count, codebook = averaged.learning.count.clone(), averaged.codebook.clone()
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    indices = averaged.train()(z)[1]
    moved = averaged.learning.count != 1  # a revived code starts with count 1
    torch.testing.assert_close(averaged.learning.count[moved], (0.9 * count + 0.1 * torch.bincount(
        indices, minlength=4))[moved])
    assert not torch.equal(averaged.codebook, codebook)
    assert same_bits(round_trip(averaged, tmp_path), averaged)


@pytest.mark.parametrize("setting", ["forward", "__class__", "_modules", "freeze"])
def test_a_file_cannot_replace_methods(setting, tmp_path):
    recipe = {"class": import_path(Revival), "trainable": True, "arguments": {},
              "changed": {setting: {"name": "os.system"}}}
    state = {f"state.{name}": value for name, value in Revival().state_dict().items()}
    save_file(state, tmp_path / "bad", {"format": "vqvae 1", "recipe": json.dumps(recipe)})
    with pytest.raises(ValueError, match=f"{setting} of a Revival is not a setting"):
        load_component(tmp_path / "bad")


def test_damaged_recipes_are_value_errors(tmp_path):
    for recipe, message in (("{", "Expecting"),
                            (json.dumps({"class": import_path(Revival)}), "recipe"),
                            (json.dumps({"class": import_path(Revival), "trainable": True,
                                         "arguments": {"age": 3}}), "cannot be constructed again")):
        save_file({}, tmp_path / "bad", {"format": "vqvae 1", "recipe": recipe})
        with pytest.raises(ValueError, match=message): load_component(tmp_path / "bad")


# The model's door


@pytest.mark.parametrize("data", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["VQ", "VQ EMA", "FSQ mixed", "Gumbel"])
def test_data_are_converted_at_the_door(name, dtype, data):
    model, x = model_of("conv", name).to(dtype).eval(), images().to(data)
    out = model(x)
    assert out["x_recon"].dtype == out["z"].dtype == out["z_q"].dtype == dtype
    tokens = model.tokenize(x)
    assert torch.equal(tokens, out["indices"])
    recon = model.detokenize(tokens)
    assert recon.dtype == dtype and torch.equal(recon, out["x_recon"])
    assert model.encode(x).dtype == model.decode(out["z_q"].to(data)).dtype == dtype


def test_parts_of_different_dtypes():
    encoder, decoder = PAIRS["conv"]()
    model = VQVAE(encoder.double(), QUANTIZERS["FSQ mixed"](), decoder.bfloat16()).eval()
    out = model(images())
    assert out["z"].dtype == torch.float64 and out["x_recon"].dtype == torch.bfloat16
    assert torch.equal(model.detokenize(out["indices"]), out["x_recon"])


def test_what_a_dtype_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="x holds 1 NaN or infinite"):
        model_of("linear", "VQ").half()(torch.tensor([[[[1e6, *[0.0] * 63]]]]).view(1, 1, 8, 8))


def test_pixels_and_other_things_at_the_door():
    model = model_of("conv", "VQ")
    with pytest.raises(TypeError, match=r"got torch.uint8: scale pixels .* x.float\(\) / 255"):
        model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match="x must be a torch.Tensor, got ndarray"):
        model(np.zeros((2, 1, 8, 8)))


def test_plain_modules_are_told_what_to_derive_from():
    encoder, decoder = PAIRS["conv"]()
    with pytest.raises(TypeError, match="Identity: derive it from vqvae.encoders.base.BaseEncoder"):
        VQVAE(torch.nn.Identity(), QUANTIZERS["VQ"](), decoder)
    with pytest.raises(TypeError, match="Identity: derive it from vqvae.decoders.base.BaseDecoder"):
        VQVAE(encoder, QUANTIZERS["VQ"](), torch.nn.Identity())


@pytest.mark.parametrize("name", ["VQ", "VQ EMA revival", "FSQ mixed", "Gumbel"])
@pytest.mark.parametrize("training", [True, False])
def test_mask_goes_through(name, training):
    model, x = model_of("conv", name).train(training), images(4)
    mask = torch.ones(4, 4, 4, dtype=torch.bool)
    mask[:, :, 2:] = False
    expected = copy.deepcopy(model)
    z = expected.encode(x)
    z_q, indices, info = expected.quantizer(z, mask)
    out = model(x, mask)
    assert out["mask"] is mask and "mask" not in model.eval()(x)
    assert torch.equal(out["indices"], indices)
    assert torch.equal(out["x_recon"], expected.decode(z_q))
    assert all(torch.equal(out["losses"][key], value) for key, value in info["losses"].items())
    assert same_bits(model, expected)
    assert torch.equal(model.tokenize(x, mask)[mask], model.tokenize(x)[mask])
    with pytest.raises(ValueError, match="mask"): model(x, mask[:2])


def test_a_quantizer_without_masks_still_works():
    class Signs(BaseQuantizer):
        def forward(self, z):
            indices = (z > 0).long() @ 2 ** torch.arange(z.shape[-1])
            distances = (z - z.sign()).square().sum(-1)
            return z.sign(), indices, {"z_q_hard": z.sign(), "distances": distances, "losses": {}}

    encoder, decoder = PAIRS["linear"]()
    model = VQVAE(encoder, Signs(DIM, 2**DIM), decoder)
    assert model(images())["x_recon"].shape == images().shape
    assert model.tokenize(images()).shape == (12,)


@pytest.mark.parametrize("pair", PAIRS)
def test_values_are_looked_at_once(pair, monkeypatch):
    model, x = model_of(pair, "FSQ mixed"), images()
    seen, look = [], torch.isfinite
    monkeypatch.setattr("torch.isfinite", lambda t: (seen.append(t), look(t))[1])
    out = model(x)
    assert len([t for t in seen if t is x]) == 1
    assert not [t for t in seen if t is out["z_q"]] and not [t for t in seen if t is out["x_recon"]]
    assert len(seen) <= 3  # x, z at the quantizer's door, and what its search may look at
    seen.clear()
    model.decode(out["z_q"])  # a door by itself
    assert len(seen) == 1
    with pytest.raises(ValueError, match="z holds"): model.decode(out["z_q"] * torch.nan)
    with pytest.raises(ValueError, match="x holds"): model.encoder(x * torch.nan)


def test_a_model_on_meta_has_shapes():
    with torch.device("meta"):
        encoder, decoder = PAIRS["conv"]()
    assert encoder(images().to("meta")).shape == (12, 4, 4, DIM)
    assert decoder(torch.empty(2, 4, 4, DIM, device="meta")).shape == (2, 1, 8, 8)


def test_an_ensemble_by_vmap():
    x = images()
    for pair in ("linear", "conv"):
        parts = [PAIRS[pair]()[0], PAIRS[pair]()[0]]
        with torch.no_grad(): next(parts[1].parameters()).mul_(2)
        state = torch.func.stack_module_state(parts)

        def encode(parameters, buffers):
            return torch.func.functional_call(parts[0], (parameters, buffers), (x,))

        z = torch.func.vmap(encode)(*state)
        torch.testing.assert_close(z, torch.stack([part(x) for part in parts]))


# Contracts over what the room exports

EXAMPLES = {"VQVAE": lambda: model_of("linear", "VQ"), "load_component": None,
            "save_component": None, "check_saving": None,
            # these are measured by the page of units and by tests/test_training.py
            "StandardizedEncoder": None, "StandardizedDecoder": None,
            "in_original_units": None, "in_standardized_units": None}


def test_everything_that_models_exports_has_an_example():
    assert set(vqvae.models.__all__) == set(EXAMPLES)


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if example])
def test_contract_of_models(name, tmp_path):
    model = EXAMPLES[name]()
    assert isinstance(model, Component) and f"{name}(" in repr(model)
    for again in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)),
                  lambda m: round_trip(m, tmp_path)):
        assert same_bits(again(model), model) and repr(again(model)) == repr(model)
    x, before = images(), copy.deepcopy(model.freeze().state_dict())
    x.requires_grad_()
    vqvae_loss(model.train()(x), x.detach())[0].backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def standardized(data):
    "Minus the mean image, over the rms of the rest."
    mean = data.train.mean(0)
    scale = (data.train - mean).square().mean().sqrt()
    return InMemoryDataset((data.train - mean) / scale, (data.test - mean) / scale)


@pytest.mark.slow
@pytest.mark.parametrize("make, steps", [
    (DigitsDataset, 200), (lambda: ImagePatchDataset(8, n_train=8000, n_test=2000), 300),
], ids=["digits", "patches"])
def test_the_shortest_thing_keeps_its_codes(make, steps):
    data, size = standardized(make()), {"hidden": 32, "residual_blocks": 1}
    model = VQVAE(ConvEncoder(1, dim=4, downsample=4, **size), VectorQuantizer(4, 256),
                  ConvDecoder(1, dim=4, upsample=4, seed=1000, **size))
    trainer = Trainer(model, optimizer=lambda p: torch.optim.Adam(p, lr=3e-3), clip_norm=1.0)
    trainer.fit(data, steps=steps, batch_size=64, progress=False)
    found = trainer.evaluate(data, "train")
    assert found["dead_codes"] <= 0.05 * 256 and found["mse"] < 0.3
