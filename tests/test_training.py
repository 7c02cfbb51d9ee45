"Training under conditions that no reader wants to see: several processes, signals, bad folders, precision."
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from vqvae.data.base import BaseDataset, InMemoryDataset
from vqvae.data.gaussian import GaussianDataset
from vqvae.decoders.linear import LearnedLinearDecoder
from vqvae.decoders.pca import PCADecoder
from vqvae.encoders.linear import LearnedLinearEncoder
from vqvae.encoders.pca import PCAEncoder
from vqvae.evaluation.tracking import MetricsTracker
from vqvae.models.vqvae import VQVAE
from vqvae.quantizers.gumbel import GumbelSoftmaxQuantizer
from vqvae.quantizers.learning import EMALearning, LossLearning, Revival
from vqvae.quantizers.vq import VectorQuantizer
from vqvae.training import Trainer

DATA = GaussianDataset(d=12, k=4, n_samples=250)


def cpu(**k): return Fabric(accelerator="cpu", devices=1, **k)


def build(learning=None, revival=None, frozen=False):
    encoder, decoder = LearnedLinearEncoder(12, 4), LearnedLinearDecoder(4, 12)
    if frozen: encoder, decoder = PCAEncoder(DATA.U_k), PCADecoder(DATA.U_k)
    return VQVAE(encoder, VectorQuantizer(4, 16, learning=learning, revival=revival), decoder)


def schedule(optimizer): return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Several processes

KINDS = {
    "loss": lambda: build(LossLearning()),
    "loss, revival": lambda: build(LossLearning(), Revival(after=4)),
    "ema": lambda: build(EMALearning(0.9)),
    "ema, revival": lambda: build(EMALearning(0.9), Revival(after=4)),
    "ema, every 3": lambda: build(EMALearning(0.9, every=3)),
    "ema, frozen": lambda: build(EMALearning(0.9), Revival(after=4), frozen=True),
}


def sgd(parameters): return torch.optim.SGD(parameters, lr=0.3)


def train_all(fabric, folder):
    "Train every kind for two ragged epochs and write what each rank ended with."
    torch.set_num_threads(1)
    results = {}
    for kind, make in KINDS.items():
        trainer = Trainer(make().to(torch.float64), optimizer=sgd, fabric=fabric, clip_norm=1.0)
        data = InMemoryDataset(DATA.train.double(), DATA.test.double())
        trainer.fit(data, steps=9, batch_size=49, progress=False)
        rows = trainer.tracker.frame.set_index(["step", "split", "metric"])["value"].to_dict()
        results[kind] = {"state": trainer.model.state_dict(),
                         "values": {str(key): value for key, value in rows.items()}}
    torch.save(results, Path(folder) / f"rank{fabric.global_rank}.pt")


def test_two_processes_equal_one(tmp_path):
    # float64 throughout, so that another order of summation is all that remains: far below 1e-9
    (tmp_path / "one").mkdir()
    train_all(cpu(), tmp_path / "one")
    code = (
        "from lightning_fabric import Fabric; from test_training import train_all\n"
        "Fabric(accelerator='cpu', devices=2, strategy='ddp_fork').launch(train_all, "
        f"{str(tmp_path)!r})"
    )
    script = tmp_path / "two.py"
    script.write_text(code)
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (torch.load(tmp_path / name)
                          for name in ("one/rank0.pt", "rank0.pt", "rank1.pt"))
    for kind in KINDS:
        for name, value in one[kind]["state"].items():
            a, b = first[kind]["state"][name], second[kind]["state"][name]
            assert torch.equal(a, b), f"{kind}: {name} differs between the ranks"
            close = torch.allclose(a.double(), value.double(), rtol=1e-9, atol=1e-9)
            assert close, f"{kind}: {name} differs from one process"
        assert first[kind]["values"].keys() == one[kind]["values"].keys()
        for name, value in one[kind]["values"].items():
            a, b = first[kind]["values"][name], second[kind]["values"][name]
            assert a == b == pytest.approx(value, rel=1e-7), (kind, name)


# Interruption

SLOW = """
import sys, time, torch
sys.path.insert(0, {tests!r})
from test_training import DATA, EMALearning, Revival, build, cpu, schedule
from vqvae.training import Trainer
torch.set_num_threads(1)
class Slow(Trainer):
    def take_step(self, batch):
        counted = super().take_step(batch)
        print(self.step, flush=True)
        time.sleep(0.05)
        return counted
trainer = Slow(build(EMALearning(0.9), Revival(after=4)), schedule=schedule, folder={folder!r},
               fabric=cpu())
trainer.fit(DATA, steps=60, batch_size=32, validate_every=1, checkpoint_every=5, progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_continues_bit_for_bit(tmp_path, how):
    script = SLOW.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 12: break
    process.send_signal(how)
    error = process.communicate(timeout=20)[1]
    if how == signal.SIGINT: assert process.returncode != 0 and "stopped after step" in error
    else: assert process.returncode == -how
    resumed = Trainer(build(EMALearning(0.9), Revival(after=4)), schedule=schedule,
                      folder=tmp_path / "run", fabric=cpu())
    resumed.load_checkpoint()
    assert resumed.step == 10 if how == signal.SIGKILL else 12 <= resumed.step < 60
    plain = Trainer(build(EMALearning(0.9), Revival(after=4)), schedule=schedule, fabric=cpu())
    for trainer in (resumed, plain):
        trainer.fit(DATA, steps=60, batch_size=32, validate_every=1, progress=False)
    assert same(resumed.model, plain.model)
    assert resumed.tracker.frame.equals(plain.tracker.frame)
    assert MetricsTracker.load(tmp_path / "run/metrics.csv").frame.equals(plain.tracker.frame)


class Signalling(LearnedLinearEncoder):
    "Sends SIGINT to its own process at chosen forward calls."
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + self.training
        for _ in range(self.at.get(self.calls, 0)): os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x)


def signalling(at, **k):
    encoder = Signalling(12, 4)
    encoder.at = at
    return Trainer(VQVAE(encoder, VectorQuantizer(4, 16), LearnedLinearDecoder(4, 12)),
                   fabric=cpu(), **k)


def test_interrupt_without_folder_stops_at_the_boundary_and_goes_on():
    trainer, before = signalling({4: 1}), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4"):
        trainer.fit(DATA, steps=9, progress=False)
    assert trainer.step == 4 and signal.getsignal(signal.SIGINT) is before
    trainer.fit(DATA, steps=9, progress=False)
    plain = signalling({})
    plain.fit(DATA, steps=9, progress=False)
    assert same(trainer.model, plain.model)


def test_second_interrupt_is_immediate():
    trainer = signalling({4: 2})
    with pytest.raises(KeyboardInterrupt): trainer.fit(DATA, steps=9, progress=False)
    assert trainer.step == 3 and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_fit_works_outside_the_main_thread():
    trainer = Trainer(build(), fabric=cpu())
    thread = threading.Thread(target=lambda: trainer.fit(DATA, steps=3, progress=False))
    thread.start()
    thread.join(20)
    assert trainer.step == 3


# Resuming

class OnlyShuffle(BaseDataset):
    "Nothing but seed.md's method, with augmentation that draws from the global generator."
    def get_dataloader(self, batch_size, shuffle=True):
        augment = lambda rows: torch.stack(rows) + 0.1 * torch.randn(len(rows), 12)
        return DataLoader(DATA.train, batch_size, shuffle=shuffle, collate_fn=augment)


class Dropout(LearnedLinearEncoder):
    def forward(self, x): return nn.functional.dropout(super().forward(x), 0.3, self.training)


@pytest.mark.parametrize("data", [DATA, OnlyShuffle()], ids=["seeded", "plain"])
@pytest.mark.parametrize("stop", [4, 8, 11])  # an epoch has 8 steps
@pytest.mark.parametrize("quantizer", [
    lambda: VectorQuantizer(4, 16, learning=LossLearning(), revival=Revival(after=3)),
    lambda: VectorQuantizer(4, 16, learning=EMALearning(every=3), revival=Revival(after=3)),
    lambda: GumbelSoftmaxQuantizer(4, 16)], ids=["loss", "ema", "gumbel"])
def test_resumed_equals_undisturbed(tmp_path, data, stop, quantizer):
    def trainer(folder=None):
        model = VQVAE(Dropout(12, 4), quantizer(), LearnedLinearDecoder(4, 12))
        return Trainer(model, schedule=schedule, folder=folder, fabric=cpu(), clip_norm=0.5)
    state = torch.get_rng_state()
    plain = trainer()
    plain.fit(data, epochs=2, batch_size=32, progress=False)
    trainer(tmp_path).fit(data, steps=stop, batch_size=32, progress=False)
    resumed = trainer(tmp_path)
    resumed.fit(data, epochs=2, batch_size=32, progress=False)
    assert same(resumed.model, plain.model) and resumed.step == plain.step == 16
    for a, b in zip(resumed.optimizer.state.values(), plain.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert resumed.schedule.get_last_lr() == plain.schedule.get_last_lr()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("change, message", [
    (dict(batch_size=16), "batch_size=32, this run has batch_size=16"),
    (dict(dataset=GaussianDataset(d=12, k=4, n_samples=99)), "samples=250"),
    (dict(seed=3), "seed=0"),
    (dict(model=lambda: VQVAE(LearnedLinearEncoder(12, 4), VectorQuantizer(4, 8), LearnedLinearDecoder(4, 12))),
     "quantizer.codebook is (16, 4) there, (8, 4) here"),
    (dict(optimizer=lambda p: torch.optim.SGD(p, lr=0.1)), "another optimizer"),
    (dict(schedule=None), "another schedule"),
    (dict(optimizer=lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.0)), "AdamW there, Adam"),
    (dict(schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 5)), "another schedule"),
    (dict(model=lambda: build(frozen=True).freeze()), "another model"),
])
def test_checkpoint_that_does_not_fit_changes_nothing(tmp_path, change, message):
    Trainer(build(), schedule=schedule, folder=tmp_path, fabric=cpu()).fit(
        DATA, steps=3, batch_size=32, progress=False
    )
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    model = change.get("model", build)()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(model, optimizer=change.get("optimizer"),
                      schedule=change.get("schedule", schedule), folder=tmp_path,
                      seed=change.get("seed", 0), fabric=cpu())
    with pytest.raises(ValueError) as error:
        trainer.fit(change.get("dataset", DATA), steps=6, batch_size=change.get("batch_size", 32),
                    progress=False)
    assert message in str(error.value)
    assert trainer.step == 0 and len(trainer.tracker) == 0
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert files == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_broken_and_missing_checkpoints(tmp_path):
    trainer = Trainer(build(), folder=tmp_path, fabric=cpu())
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"): trainer.load_checkpoint()
    trainer.save_checkpoint()
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    for content in (whole[:1000], b"", b"nonsense"):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ValueError, match="not a readable checkpoint"): trainer.load_checkpoint()
    torch.save({"model": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="not a checkpoint of a Trainer"): trainer.load_checkpoint()
    with pytest.raises(ValueError, match="give a path"):
        Trainer(build(), fabric=cpu()).save_checkpoint()


def test_finished_run_is_left_alone_and_extended(tmp_path):
    first = Trainer(build(), folder=tmp_path, fabric=cpu())
    first.fit(DATA, epochs=2, progress=False)
    again = Trainer(build(), folder=tmp_path, fabric=cpu())
    again.fit(DATA, epochs=2, progress=False)
    assert same(first.model, again.model) and again.tracker.frame.equals(first.tracker.frame)
    assert same(VQVAE.load(tmp_path / "model.safetensors"),
                first.model) and not first.model.training
    anew = Trainer(build(), folder=tmp_path, fabric=cpu())
    anew.fit(DATA, epochs=1, resume=False, progress=False)
    assert anew.epoch == 1


# What may go wrong

def test_unwritable_folder_is_noticed_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    trainer = Trainer(build(), folder=tmp_path / "file" / "run", fabric=cpu())
    with pytest.raises(OSError, match="cannot write into folder"):
        trainer.fit(DATA, steps=2, progress=False)
    assert trainer.step == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(OSError, match="cannot write into folder"):
        Trainer(build(), folder=tmp_path / "run", fabric=cpu()).fit(DATA, steps=2, progress=False)


def test_model_that_cannot_be_saved_is_noticed_before_training(tmp_path):
    model = build()
    model.quantizer = VectorQuantizer(4, 16, estimator=lambda z, q: q)
    model._arguments["quantizer"] = model.quantizer
    trainer = Trainer(model, folder=tmp_path, fabric=cpu())
    with pytest.raises(ValueError, match="no import path"):
        trainer.fit(DATA, steps=2, progress=False)
    assert trainer.step == 0


class Spoiled(LearnedLinearDecoder):
    "Gives infinity at chosen forward calls."
    def forward(self, z):
        self.calls = getattr(self, "calls", 0) + self.training
        return super().forward(z) * (torch.inf if self.calls == 6 else 1.0)


def test_non_finite_loss_stops_before_the_step(tmp_path):
    model = VQVAE(LearnedLinearEncoder(12, 4), VectorQuantizer(4, 16), Spoiled(4, 12))
    trainer = Trainer(model, folder=tmp_path, fabric=cpu())
    with pytest.raises(FloatingPointError,
                       match="training step 6: the loss is not finite: .*reconstruction"):
        trainer.fit(DATA, steps=9, checkpoint_every=5, progress=False)
    assert trainer.step == 5
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 5
    assert all(torch.equal(value, model.state_dict()[name])
               for name, value in saved["model"].items())
    trainer.fit(DATA, steps=9, progress=False)  # and it can go on
    assert trainer.step == 9


def test_non_finite_gradient_stops_before_the_step():
    def explode(parameters):
        parameters[0].register_hook(lambda grad: grad * torch.nan)
        return torch.optim.SGD(parameters, lr=0.1)
    trainer = Trainer(build(), optimizer=explode, fabric=cpu())
    with pytest.raises(FloatingPointError,
                       match="training step 1: the norm of the gradient is nan"):
        trainer.fit(DATA, steps=2, progress=False)
    assert same(trainer.model, build())


def test_bad_latents_and_bad_data_name_the_step():
    class Nan(LearnedLinearEncoder):
        def forward(self, x): return super().forward(x) * (torch.nan if self.training else 1.0)
    trainer = Trainer(VQVAE(Nan(12, 4), VectorQuantizer(4, 16), LearnedLinearDecoder(4, 12)),
                      fabric=cpu())
    with pytest.raises(ValueError, match="training step 1: z holds"):
        trainer.fit(DATA, steps=2, progress=False)
    class Empty(BaseDataset):
        def get_dataloader(self, batch_size, shuffle=True): return DataLoader([], batch_size)
    with pytest.raises(ValueError, match="Empty gave no batch"):
        Trainer(build(), fabric=cpu()).fit(Empty(), steps=2, progress=False)


@pytest.mark.parametrize("arguments, message", [
    (dict(), "either epochs or steps"), (dict(epochs=1, steps=1), "either epochs or steps"),
    (dict(steps=0), "steps must be positive"), (dict(steps=1, batch_size=0), "batch_size must be positive"),
    (dict(steps=1, checkpoint_every=1), "needs a Trainer with a folder"),
    (dict(epochs=1, validate_every=-1), "validate_every must be positive"),
])
def test_arguments_of_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        Trainer(build(), fabric=cpu()).fit(DATA, progress=False, **arguments)


def test_arguments_of_the_trainer():
    with pytest.raises(TypeError, match="must be a VQVAE, got Linear"): Trainer(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="clip_norm must be positive"):
        Trainer(build(), clip_norm=-1.0)
    with pytest.raises(ValueError, match="finite and not negative"):
        Trainer(build(), weights={"codebook": -1.0})
    with pytest.raises(ValueError, match="weights names 'comit'"):
        Trainer(build(), weights={"comit": 1.0}, fabric=cpu()).fit(DATA, steps=1, progress=False)


# Precision, frozen parts

@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision(precision):
    trainer = Trainer(build(EMALearning(0.9)), fabric=cpu(precision=precision))
    rows = trainer.fit(DATA, epochs=4, validate_every=1, progress=False).frame
    values = rows.query("split == 'test' and metric == 'mse'")["value"]
    assert values.iloc[-1] < values.iloc[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_moving_averages_alone(precision, tmp_path):
    def trainer(folder=None):
        return Trainer(build(EMALearning(0.8), frozen=True), fabric=cpu(precision=precision),
                       schedule=schedule, folder=folder)
    plain = trainer()
    before = plain.evaluate(DATA)["distortion"]
    plain.fit(DATA, epochs=5, progress=False)
    assert plain.optimizer is None and plain.evaluate(DATA)["distortion"] < before
    trainer(tmp_path).fit(DATA, steps=7, progress=False)
    resumed = trainer(tmp_path)
    resumed.fit(DATA, epochs=5, progress=False)
    assert same(resumed.model, plain.model)


def test_frozen_parts_do_not_move():
    for frozen in ("encoder", "quantizer", "decoder", None):
        model = build(EMALearning(0.8), Revival(after=2))
        part = getattr(model, frozen) if frozen else model
        before = {name: value.clone() for name, value in part.freeze().state_dict().items()}
        Trainer(model, fabric=cpu()).fit(DATA, epochs=2, progress=False)
        assert all(torch.equal(value, part.state_dict()[name]) for name, value in before.items())


def test_unfrozen_too_late():
    model = build()
    model.encoder.freeze()
    trainer = Trainer(model, fabric=cpu())
    model.encoder.unfreeze()
    with pytest.raises(ValueError, match="encoder.* became trainable"):
        trainer.fit(DATA, steps=1, progress=False)


def test_progress_bar_and_no_output(capfd):
    trainer = Trainer(build(), fabric=cpu())
    trainer.fit(DATA, epochs=1, progress=False)
    assert capfd.readouterr() == ("", "")
    trainer.fit(DATA, epochs=2)
    assert "perplexity=" in capfd.readouterr().err
