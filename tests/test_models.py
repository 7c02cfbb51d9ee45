"""Every encoder/decoder pair with every quantizer; files on disk."""
import copy
import json

import pytest
import torch
from test_quantizers import DIM, QUANTIZERS

from vqvae.core import evaluating
from vqvae.data.digits import DigitsDataset
from vqvae.decoders.conv import ConvDecoder
from vqvae.decoders.linear import LearnedLinearDecoder
from vqvae.decoders.pca import PCADecoder
from vqvae.decoders.transformer import TransformerDecoder
from vqvae.encoders.conv import ConvEncoder
from vqvae.encoders.linear import LearnedLinearEncoder
from vqvae.encoders.pca import PCAEncoder
from vqvae.encoders.transformer import TransformerEncoder
from vqvae.models.vqvae import VQVAE
from vqvae.training.loss import vqvae_loss

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


@pytest.mark.parametrize("pair", PAIRS)
def test_compiles_in_evaluation_without_graph_break(pair):
    torch._dynamo.reset()
    model = model_of(pair, "rotation VQ").eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images())["x_recon"], model(images())["x_recon"])


def test_mismatched_parts_are_refused():
    encoder, decoder = PAIRS["conv"]()
    for bad, message in (((encoder, QUANTIZERS["VQ"](), ConvDecoder(1, DIM, upsample=4)), "but the encoder made them of"),
                         ((encoder, QUANTIZERS["VQ"](), ConvDecoder(3, DIM, upsample=2)), "but the encoder made them of"),
                         ((ConvEncoder(1, DIM + 1, 2), QUANTIZERS["VQ"](), decoder), "dimension 5, the quantizer expects 4"),
                         ((encoder, QUANTIZERS["VQ"](), LearnedLinearDecoder(DIM, 64)), "encoder turns")):
        with pytest.raises(ValueError, match=message): VQVAE(*bad)
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
    from safetensors.torch import save_file
    def file(recipe):
        save_file({}, tmp_path / "bad.safetensors",
                  {"format": "vqvae 1", "recipe": json.dumps(recipe)})
        return tmp_path / "bad.safetensors"
    for recipe, message in (({"class": "os.system", "trainable": True, "arguments": {"command": "touch /tmp/owned"}}, "not a component"),
                            ({"class": "antigravity.Fly", "trainable": True, "arguments": {}}, "import antigravity first"),
                            ({"class": "vqvae.core.nothing", "trainable": True, "arguments": {}}, "there is no vqvae.core.nothing"),
                            ({"class": "vqvae.core.seeded", "trainable": True, "arguments": {"seed": 1}}, "not a component")):
        with pytest.raises(ValueError, match=message): VQVAE.load(file(recipe))


def test_load_refuses_what_is_not_a_model(tmp_path):
    from vqvae.models.io import save_component
    save_component(QUANTIZERS["VQ"](), tmp_path / "q.safetensors")
    with pytest.raises(ValueError, match="holds a VectorQuantizer, not a VQVAE"):
        VQVAE.load(tmp_path / "q.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        VQVAE.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError): VQVAE.load(tmp_path / "absent")
