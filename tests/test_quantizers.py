"""One contract over every quantizer that the room exports x shape x mode x dtype."""
import copy
import importlib
import inspect
import pkgutil

import pytest
import torch

from vqvae import quantizers as room
from vqvae.models.io import load_component, save_component
from vqvae.quantizers.base import BaseQuantizer
from vqvae.quantizers.codebook import CodebookQuantizer
from vqvae.quantizers.estimators import rotation, rotation_tangent, rotation_unscaled
from vqvae.quantizers.fsq import FiniteScalarQuantizer
from vqvae.quantizers.gumbel import GumbelSoftmaxQuantizer, LinearLogits
from vqvae.quantizers.learning import CodebookLearning, EMALearning, LossLearning, Revival
from vqvae.quantizers.search import nearest_codes
from vqvae.quantizers.vq import (
    ClassicalVectorQuantizer,
    ProjectionVectorQuantizer,
    RotationVectorQuantizer,
    VectorQuantizer,
)

DIM, SIZE = 4, 16


def codes(): return torch.randn(SIZE, DIM, generator=torch.Generator().manual_seed(5))


# every exported quantizer needs an example here; one that is left out fails below
EXAMPLES = {
    VectorQuantizer: {
        "VQ": lambda: VectorQuantizer(DIM, SIZE, codes()),
        "VQ uniform": lambda: VectorQuantizer(DIM, SIZE),
        "VQ EMA": lambda: VectorQuantizer(
            DIM, SIZE, codes(), learning=EMALearning(0.9), revival=False
        ),
        "VQ EMA growing": lambda: VectorQuantizer(DIM, SIZE, codes(), revival=False),
        "VQ EMA revival": lambda: VectorQuantizer(
            DIM, SIZE, codes(), learning=EMALearning(0.9, every=2), revival=Revival(2)
        ),
        "VQ loss revival": lambda: VectorQuantizer(
            DIM, SIZE, codes(), learning=LossLearning(), revival=Revival(2)
        ),
    },
    ClassicalVectorQuantizer: {
        "classical": lambda: ClassicalVectorQuantizer(DIM, SIZE, codes()),
        "classical uniform": lambda: ClassicalVectorQuantizer(DIM, SIZE),
        "classical unscaled": lambda: ClassicalVectorQuantizer(
            DIM, SIZE, codes(), rotation_unscaled
        ),
        "classical tangent": lambda: ClassicalVectorQuantizer(
            DIM, SIZE, codes(), rotation_tangent
        ),
    },
    RotationVectorQuantizer: {
        "rotation VQ": lambda: RotationVectorQuantizer(DIM, SIZE, codes()),
    },
    ProjectionVectorQuantizer: {
        "projection VQ": lambda: ProjectionVectorQuantizer(DIM, SIZE, codes()),
    },
    FiniteScalarQuantizer: {
        "FSQ even": lambda: FiniteScalarQuantizer([2] * DIM),
        "FSQ odd": lambda: FiniteScalarQuantizer([3, 5, 7, 3]),
        "FSQ mixed": lambda: FiniteScalarQuantizer([8, 5, 2, 4]),
    },
    GumbelSoftmaxQuantizer: {
        "Gumbel": lambda: GumbelSoftmaxQuantizer(DIM, SIZE, codes()),
        "Gumbel linear": lambda: GumbelSoftmaxQuantizer(
            DIM, SIZE, codes(), logits=LinearLogits(DIM, SIZE)
        ),
        "Gumbel soft": lambda: GumbelSoftmaxQuantizer(DIM, SIZE, codes(), hard=False),
    },
}
QUANTIZERS = {name: make for examples in EXAMPLES.values() for name, make in examples.items()}
RULES = {LossLearning: LossLearning, EMALearning: EMALearning}
SHAPES = [(7,), (1,), (2, 3), (2, 3, 5), (2, 1, 3, 2)]  # all but the last axis
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

every_quantizer = pytest.mark.parametrize("name", QUANTIZERS)


def latents(shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def noisy(name, training): return name == "Gumbel soft" and training


def exported(kind):
    "Classes of a kind, without the abstract ones, that the room exports."
    found = [getattr(room, name) for name in room.__all__]
    return [value for value in found if isinstance(value, type) and issubclass(value, kind)
            and not inspect.isabstract(value)]


def estimators():
    "Functions `(z, q) -> z_q` that the room exports."
    found = [getattr(room, name) for name in room.__all__]
    return [value for value in found if inspect.isfunction(value)
            and list(inspect.signature(value).parameters) == ["z", "q"]]


def without_example():
    return [kind for kind in exported(BaseQuantizer) if kind not in EXAMPLES]


def test_every_exported_quantizer_and_rule_has_an_example():
    assert without_example() == []
    for kind, examples in EXAMPLES.items():
        assert examples and all(type(make()) is kind for make in examples.values())
    assert set(RULES) == set(exported(CodebookLearning)) and len(estimators()) >= 5


def test_a_quantizer_without_example_is_found(monkeypatch):
    class Forgotten(FiniteScalarQuantizer): pass
    monkeypatch.setattr(room, "Forgotten", Forgotten, raising=False)
    monkeypatch.setattr(room, "__all__", [*room.__all__, "Forgotten"])
    assert without_example() == [Forgotten]


def test_every_quantizer_of_the_room_is_exported():
    for module in pkgutil.iter_modules(room.__path__):
        for name, value in vars(importlib.import_module(f"{room.__name__}.{module.name}")).items():
            if isinstance(value, type) and issubclass(value, (BaseQuantizer, CodebookLearning)):
                assert name in room.__all__, f"{name} is not exported"


def test_no_quantizer_overrides_a_method_to_refuse_it():
    quantizer = FiniteScalarQuantizer([3, 4])
    assert not isinstance(quantizer, CodebookQuantizer)
    assert not hasattr(quantizer, "set_codebook") and not hasattr(quantizer, "initialize")
    for kind in exported(BaseQuantizer):
        assert list(inspect.signature(kind.forward).parameters) == ["self", "z", "mask"]


@every_quantizer
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triple(name, shape, training, dtype):
    quantizer = QUANTIZERS[name]().train(training)
    # learning moves the codes after the output was made
    table = quantizer.get_codebook().detach().clone()
    z = latents(shape, dtype).requires_grad_()
    z_q, indices, info = quantizer(z)
    assert z_q.shape == z.shape and z_q.dtype == dtype
    assert indices.shape == z.shape[:-1] and indices.dtype == torch.int64
    assert set(info) == {"z_q_hard", "distances", "losses"}
    codewords = table[indices].to(dtype)
    assert torch.equal(info["z_q_hard"].to(dtype), codewords)
    if not noisy(name, training):
        assert torch.equal(z_q.view(torch.uint8), codewords.view(torch.uint8))  # bit for bit
    assert info["distances"].shape == indices.shape
    torch.testing.assert_close(info["distances"].double(),
                               (z.double() - table[indices].double()).square().sum(-1), rtol=1e-4,
                               atol=1e-5)
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in info["losses"].values())
    if not training: assert torch.equal(quantizer.decode(indices).to(dtype), z_q)

    total = z_q.float().square().sum() + sum(info["losses"].values())
    total.backward()
    assert torch.isfinite(z.grad).all() and z.grad.abs().sum() > 0
    for parameter_name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), parameter_name


@every_quantizer
def test_codebook_is_a_bijection(name):
    quantizer = QUANTIZERS[name]().eval()
    table = quantizer.get_codebook()
    assert table.shape == (quantizer.codebook_size, quantizer.dim)
    assert len(table.unique(dim=0)) == quantizer.codebook_size
    everything = torch.arange(quantizer.codebook_size)
    assert torch.equal(quantizer.decode(everything), table)
    assert torch.equal(quantizer.decode(everything.reshape(-1, 1).int()), table.unsqueeze(1))


@every_quantizer
def test_evaluation_changes_nothing_and_is_repeatable(name):
    quantizer = QUANTIZERS[name]().eval()
    before = copy.deepcopy(quantizer.state_dict())
    rng = torch.get_rng_state()
    first, second = quantizer(latents((50,))), quantizer(latents((50,)))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert all(torch.equal(value, quantizer.state_dict()[key]) for key, value in before.items())
    assert torch.equal(rng, torch.get_rng_state())


@every_quantizer
def test_frozen_is_frozen(name):
    quantizer = QUANTIZERS[name]().freeze()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.train()
    for step in range(4):
        z = latents((50,), seed=step).requires_grad_()
        z_q, _, info = quantizer(z)
        (z_q.sum() + sum(info["losses"].values())).backward()
        assert torch.isfinite(z.grad).all() and z.grad.abs().sum() > 0
        assert all(p.grad is None for p in quantizer.parameters())
    assert all(torch.equal(value, quantizer.state_dict()[key]) for key, value in before.items())


@every_quantizer
def test_same_seed_same_training_and_global_generator_untouched(name):
    rng = torch.get_rng_state()
    states = []
    for _ in range(2):
        quantizer = QUANTIZERS[name]().train()
        outputs = [quantizer(latents((50,), seed=step))[1] for step in range(4)]
        states.append((quantizer.state_dict(), outputs))
    assert all(torch.equal(states[0][0][key], states[1][0][key]) for key in states[0][0])
    assert all(torch.equal(a, b) for a, b in zip(states[0][1], states[1][1]))
    assert torch.equal(rng, torch.get_rng_state())


@every_quantizer
def test_saved_and_continued_equals_undisturbed(name, tmp_path):
    straight, stopped = QUANTIZERS[name]().train(), QUANTIZERS[name]().train()
    for step in range(3): straight(latents((50,), seed=step)), stopped(latents((50,), seed=step))
    save_component(stopped, tmp_path / "q.safetensors")
    continued = load_component(tmp_path / "q.safetensors").train()
    for step in range(3, 7):
        expected, found = straight(latents((50,), seed=step)), continued(latents((50,), seed=step))
        assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])
    assert all(torch.equal(value, continued.state_dict()[key])
               for key, value in straight.state_dict().items())


@every_quantizer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_cpu_autocast(name, training):
    plain, cast = QUANTIZERS[name]().train(training), QUANTIZERS[name]().train(training)
    z = latents((64,))
    expected = plain(z)
    with torch.autocast("cpu", dtype=torch.bfloat16): found = cast(z)
    assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])
    for key, loss in expected[2]["losses"].items():
        assert torch.equal(loss, found[2]["losses"][key])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VQ EMA", "rotation VQ", "FSQ mixed", "Gumbel"])
def test_compiles_without_graph_break_in_evaluation(name):
    torch._dynamo.reset()
    quantizer = QUANTIZERS[name]().eval()
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        with torch.no_grad():
            expected, found = (
                quantizer(latents((6, 3), seed=seed)),
                compiled(latents((6, 3), seed=seed)),
            )
        assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])
    z = latents((6, 3)).requires_grad_()
    compiled(z)[0].sum().backward()
    reference = latents((6, 3)).requires_grad_()
    quantizer(reference)[0].sum().backward()
    torch.testing.assert_close(z.grad, reference.grad)


@every_quantizer
def test_bad_input_is_refused_and_changes_nothing(name):
    quantizer = QUANTIZERS[name]().train()
    before = copy.deepcopy(quantizer.state_dict())
    wrong = latents((5,))
    nan, inf = wrong.clone(), wrong.clone()
    nan[1, 2], inf[0, 0] = torch.nan, torch.inf
    for bad, message in ((nan, "NaN or infinite"), (inf, "NaN or infinite"),
                         (wrong[:, :3], f"{DIM} values on its last axis"), (wrong[:0], "empty"),
                         (wrong[0], r"\(B, \*grid, 4\)")):
        with pytest.raises(ValueError, match=message): quantizer(bad)
    with pytest.raises((TypeError, ValueError)): quantizer(wrong.long())
    for bad, kind in ((torch.tensor([quantizer.codebook_size]), ValueError),
                      (torch.tensor([-1]), ValueError), (torch.tensor([0.0]), TypeError),
                      (torch.tensor([], dtype=torch.int64), ValueError)):
        with pytest.raises(kind, match="indices"): quantizer.decode(bad)
    assert all(torch.equal(value, quantizer.state_dict()[key]) for key, value in before.items())


@every_quantizer
def test_padding_changes_nothing(name):
    """A batch of padded sequences equals the same vectors without padding: outputs, losses,
    gradients, statistics."""
    short, padded = QUANTIZERS[name]().train(), QUANTIZERS[name]().train()
    if "Gumbel" in name: short.eval(), padded.eval()  # in training the noise is drawn per position
    mask = torch.tensor([[True, True, True], [True, False, False]])
    z = latents((2, 3))
    garbage = torch.where(mask.unsqueeze(-1), z, torch.tensor(torch.nan))
    a, b = z[mask].requires_grad_(), garbage.requires_grad_()
    for _ in range(3): expected, found = short(a), padded(b, mask=mask)
    assert torch.equal(found[0][mask], expected[0]) and torch.equal(found[1][mask], expected[1])
    for key, loss in expected[2]["losses"].items():
        torch.testing.assert_close(found[2]["losses"][key], loss)
    (expected[0].sum() + sum(expected[2]["losses"].values())).backward()
    (found[0][mask].sum() + sum(found[2]["losses"].values())).backward()
    torch.testing.assert_close(b.grad[mask], a.grad)
    assert torch.equal(b.grad[~mask], torch.zeros_like(b.grad[~mask]))
    assert all(torch.equal(value, padded.state_dict()[key])
               for key, value in short.state_dict().items())


@pytest.mark.parametrize("seed", range(20))
def test_rotation_identity(seed):
    """⟨z, ∂L/∂z⟩ = ⟨q, g⟩ to float64 precision, for norms over ten orders of magnitude and every
    dimension."""
    generator = torch.Generator().manual_seed(seed)
    dim = 2 + seed
    z, q, g = (torch.randn(500, dim, generator=generator, dtype=torch.float64)
               * 10 ** (10 * torch.rand(500, 1, generator=generator, dtype=torch.float64) - 5)
               for _ in range(3))
    z.requires_grad_()
    rotation(z, q).backward(g)
    scale = (q.norm(dim=-1) * g.norm(dim=-1))
    assert (((z * z.grad).sum(-1) - (q * g).sum(-1)).abs() / scale).max() < 1e-13


@pytest.mark.parametrize("estimator", estimators())
def test_estimators_return_the_codeword_and_finite_gradients_in_degenerate_cases(estimator):
    special = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1e-30, 0.0], [1e30, 1e30],
                            [1.0, 1e-7], [-1.0, 1e-4], [-0.0, 1.0]])
    z, q = (
        special.repeat_interleave(len(special), 0).requires_grad_(),
        special.repeat(len(special), 1),
    )
    z_q = estimator(z, q)
    assert torch.equal(z_q.view(torch.int32), q.view(torch.int32))
    z_q.backward(torch.ones_like(z_q) * 1e-6)
    assert not torch.isnan(z.grad).any()


def test_beta_zero_sends_no_loss_gradient_to_z_and_codebook_gradient_ignores_beta():
    from vqvae.training.loss import vqvae_loss
    gradients = []
    for beta in (0.0, 0.25, 2.0):
        quantizer = QUANTIZERS["classical"]().train()
        z = latents((50,)).requires_grad_()
        z_q, indices, info = quantizer(z)
        x_recon = torch.zeros(50, 3)
        total, _ = vqvae_loss({"x_recon": x_recon, "losses": info["losses"]}, torch.ones(50, 3),
                              weights={"commitment": beta})
        total.backward()
        gradients.append(quantizer.codebook.grad)
        assert (z.grad is None or z.grad.abs().sum() == 0) == (beta == 0)
        counts = torch.bincount(indices, minlength=SIZE)
        sums = torch.zeros(SIZE, DIM).index_add_(0, indices, latents((50,)))
        expected = -2 / (50 * DIM) * (sums - counts.unsqueeze(1) * quantizer.codebook.detach())
        torch.testing.assert_close(quantizer.codebook.grad, expected)
    assert all(torch.equal(gradients[0], g) for g in gradients)


def test_search_over_sizes_and_tiles(monkeypatch):
    "Every way in which latents and codes can be cut into tiles gives the brute-force answer."
    from vqvae.quantizers import search
    monkeypatch.setattr(search, "_TILE", 64)
    monkeypatch.setattr(search, "_CODES", 8)
    generator = torch.Generator().manual_seed(0)
    for n, size, dim in ((1, 1, 1), (5, 7, 1), (33, 8, 2), (17, 9, 3), (40, 31, 2), (3, 65, 5)):
        z = torch.randint(-2, 3, (n, dim), generator=generator).float()  # many exact ties
        book = torch.randint(-2, 3, (size, dim), generator=generator).float() + 1000
        expected = (z.unsqueeze(1).double() + 1000 - book.double()).square().sum(-1).argmin(1)
        assert torch.equal(nearest_codes(z + 1000, book), expected)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_search_is_exact_under_reduced_matmul_precision(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        generator = torch.Generator().manual_seed(1)
        z, book = (
            torch.randn(400, 16, generator=generator),
            torch.randn(300, 16, generator=generator),
        )
        expected = torch.stack([(row.double() - book.double()).square().sum(-1).argmin()
                                for row in z])
        assert torch.equal(nearest_codes(z, book), expected)
    finally: torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("decay", [0.9, None])
def test_micro_batches_equal_one_batch(decay):
    z = latents((120,))
    once, pieces = (VectorQuantizer(DIM, SIZE, codes(), learning=EMALearning(decay, every=n),
                                    revival=False).train() for n in (1, 4))
    once(z)
    for part in z.chunk(4): pieces(part)
    assert torch.equal(once.learning.count, pieces.learning.count)
    # sums in another order
    torch.testing.assert_close(once.codebook, pieces.codebook, rtol=1e-6, atol=1e-6)


def test_set_codebook_refuses_and_keeps():
    quantizer = VectorQuantizer(DIM, SIZE, codes())
    for bad in (torch.zeros(SIZE, DIM + 1), torch.full((SIZE, DIM), torch.nan)):
        with pytest.raises(ValueError, match="codebook"): quantizer.set_codebook(bad)
    assert torch.equal(quantizer.codebook, codes())


@pytest.mark.parametrize("estimator", estimators())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimators_keep_shape_and_dtype_and_send_the_codebook_nothing(estimator, dtype):
    z, q = (latents((2, 3), dtype, seed).requires_grad_() for seed in (0, 1))
    z_q = estimator(z, q)
    assert torch.equal(z_q, q) and z_q.dtype == dtype
    z_q.sum().backward()
    assert z.grad.shape == z.shape and z.grad.dtype == dtype
    assert q.grad is None or q.grad.abs().sum() == 0


@pytest.mark.parametrize("rule", RULES.values())
def test_learning_rules_keep_their_contract(rule):
    quantizer = VectorQuantizer(DIM, SIZE, codes(), learning=rule(), revival=Revival(3)).train()
    assert isinstance(quantizer.codebook, torch.nn.Parameter) == quantizer.learning.by_gradient
    for step in range(5):
        losses = quantizer(latents((20,), seed=step))[2]["losses"]
        assert "commitment" in losses and all(value.ndim == 0 for value in losses.values())
    quantizer.set_codebook(codes())      # attaches the rule again
    fresh = VectorQuantizer(DIM, SIZE, codes(), learning=rule(), revival=Revival(3))
    found, expected = (q.learning.state_dict() for q in (quantizer, fresh))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(TypeError, match="learning must be a CodebookLearning, got str"):
        VectorQuantizer(DIM, SIZE, learning="ema")
    with pytest.raises(TypeError, match="revival must be a Revival, got EMALearning"):
        VectorQuantizer(DIM, SIZE, revival=EMALearning())


@pytest.mark.parametrize("kind", [VectorQuantizer, RotationVectorQuantizer,
                                  ProjectionVectorQuantizer])
def test_what_is_left_out_works(kind):
    quantizer = kind(DIM, SIZE, seed=3)
    assert quantizer.learning.decay is None and quantizer.learning.memory == 10
    assert quantizer.revival.after is None and quantizer.revival.samples_per_code == 10
    assert quantizer.revival.seed == 3
    assert kind(DIM, SIZE, revival=False).revival is kind(DIM, SIZE, revival=None).revival is None
    mine = Revival(20)
    assert kind(DIM, SIZE, revival=mine).revival is mine


def test_the_classical_form_learns_by_loss_and_revives_nothing():
    quantizer = ClassicalVectorQuantizer(DIM, SIZE).train()
    assert type(quantizer.learning) is LossLearning and quantizer.revival is None
    assert isinstance(quantizer.codebook, torch.nn.Parameter) and len([*quantizer.buffers()]) == 0
    assert quantizer.codebook.abs().max() <= 1 / SIZE
    before = quantizer.codebook.detach().clone()
    losses = quantizer(latents((50,)))[2]["losses"]
    assert set(losses) == {"codebook", "commitment"} and torch.equal(before, quantizer.codebook)


@pytest.mark.parametrize("size, memory, every", [(30, 10.0, 1), (4, 2.5, 1), (500, 10.0, 3)])
def test_growing_memory_against_its_formula(size, memory, every):
    rule, codebook = EMALearning(epsilon=0, every=every, memory=memory), codes()
    rule.attach(codebook)
    count, total = torch.ones(SIZE).double(), codes().double()
    for t in range(1, 200):
        batches = [latents((size,), seed=1000 * t + i) for i in range(every)]
        indices = [nearest_codes(z, codebook) for z in batches]
        for z, chosen in zip(batches, indices): rule.update(codebook, z, chosen)
        share = 1 / min((t + 3) / 3, max(10, memory * SIZE / (size * every)))
        z, chosen = torch.cat(batches).double(), torch.cat(indices)
        count = (1 - share) * count + share * torch.bincount(chosen, minlength=SIZE)
        total = (1 - share) * total + share * torch.zeros(SIZE, DIM).double().index_add_(
            0, chosen, z)
    assert rule.updates == 199
    torch.testing.assert_close(rule.count.double(), count, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codebook.double(), total / count.unsqueeze(1), rtol=1e-4, atol=1e-4)


def test_revival_replaces_no_more_codes_than_there_are_latents_each_by_another():
    for revival in (Revival(1), Revival()):
        codebook = 100 + torch.arange(40.0).unsqueeze(1).expand(40, DIM).clone()
        revival.attach(codebook)
        before, z = codebook.clone(), latents((6,))
        revived = revival.revive(codebook, z, torch.zeros(6, dtype=torch.int64))
        assert revived.sum() == 6 and not revived[0]
        assert torch.equal(codebook[~revived], before[~revived])
        assert {tuple(row) for row in codebook[revived].tolist()} == {tuple(r) for r in z.tolist()}
        assert revived.nonzero().flatten().tolist() != [1, 2, 3, 4, 5, 6]  # drawn, not the first
        for _ in range(100): revival.revive(codebook, z, torch.zeros(6, dtype=torch.int64))
        assert (codebook[1:] < 50).all()  # the others follow


def test_idle_latents_are_counted_up_to_ten_per_code_or_half_of_all():
    "Code 1 was chosen in the first batch only; in batches of 5 latents, 4 codes."
    revival, codebook = Revival(), codes()[:4].clone()
    revival.attach(codebook)
    z, dead = latents((5,)), []
    for step in range(30):
        chosen = [0, 2, 3, 0, 1] if step < 12 else [0, 2, 3, 0, 0]
        dead.append(bool(revival.revive(codebook, z, torch.tensor(chosen))[1]))
    assert revival.latents == 150
    # idle after 12 batches: 8 batches reach 10 × 4 latents before half of all is reached
    assert [step for step, value in enumerate(dead) if value] == [19, 27]
    revival.attach(codebook)
    assert revival.latents == 0 and not revival.unchosen.any() and not revival.idle.any()
    assert [bool(revival.revive(codebook, z, torch.tensor(chosen))[1]) for chosen in
            ([0, 1, 2, 3, 0], [0, 2, 3, 0, 0], [0, 2, 3, 0, 0])] == [False, True, False]


def test_all_ranks_count_together(monkeypatch):
    "Two processes that see the same: counts double, and so does what is counted in latents."
    from vqvae.quantizers import learning
    monkeypatch.setattr(learning, "sum_over_ranks", lambda x: x.mul_(2))
    monkeypatch.setattr(learning, "rows_of_all_ranks", lambda x: torch.cat([x, x]))
    pair = VectorQuantizer(DIM, SIZE, codes())
    for seed in range(3): pair(latents((20,), seed=seed))
    monkeypatch.undo()
    one = VectorQuantizer(DIM, SIZE, codes())
    for seed in range(3): one(latents((20,), seed=seed).repeat(2, 1))
    assert one.revival.latents == pair.revival.latents == 120
    for name, value in one.state_dict().items():
        torch.testing.assert_close(pair.state_dict()[name], value)


def test_a_state_of_an_older_version_is_one_of_long_training():
    new = VectorQuantizer(DIM, SIZE, codes())
    new(latents((50,)))
    state = new.state_dict()
    for name in ("learning.updates", "revival.latents", "revival.unchosen"): state.pop(name)
    other = VectorQuantizer(DIM, SIZE, codes())
    other.load_state_dict(state)
    before = other.codebook.clone()
    other(latents((50,)))
    # 10 latents per code of 16 are 3.2 batches of 50, fewer than the 10 updates at least
    share = 1 / 10
    expected = (1 - share) * new.learning.count + share * torch.bincount(
        nearest_codes(latents((50,)), before), minlength=SIZE)
    assert not other.revival._dead().any()
    torch.testing.assert_close(other.learning.count, expected)
