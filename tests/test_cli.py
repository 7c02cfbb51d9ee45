"The command `vqvae`: what it imports, what it finds, what its folders keep."
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from vqvae import cli

MODEL = """--model.encoder LearnedLinearEncoder --model.encoder.sample_shape [1,8,8]
--model.encoder.dim 4 --model.quantizer VectorQuantizer --model.quantizer.dim 4
--model.quantizer.codebook_size 8 --model.decoder LearnedLinearDecoder
--model.decoder.sample_shape [1,8,8] --model.decoder.dim 4""".split()
NOISE = """
import torch
from torch.utils.data import DataLoader
from vqvae.data.base import BaseDataset

class Noise(BaseDataset):
    def __init__(self, samples: int = 32):
        self.train = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def get_dataloader(self, batch_size, shuffle=True):
        return DataLoader(self.train, batch_size, shuffle)

def flipped(z, q): return z + (q - z).detach()
"""


def in_new_process(*typed: str, cwd: Path | str = ".", **env: str) -> subprocess.CompletedProcess:
    root = str(Path(cli.__file__).parent.parent)
    code = "import sys; from vqvae.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *typed], cwd=cwd, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": root, **env})


def photos(folder: Path, count: int = 6) -> Path:
    folder.mkdir(parents=True)
    for i in range(count): Image.new("L", (8, 8), 40 * i).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def working(tmp_path, monkeypatch):
    "An empty working folder; what is found in it is forgotten afterwards."
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    yield tmp_path / "a"
    sys.modules.pop("noise", None)


# What is imported and what is shown

@pytest.mark.parametrize("typed", ["--version", "--help", "study --help", "evaluate --help",
                                   "evaluate nowhere", "fti"])
def test_quick_answers_import_no_pytorch(typed):
    code = ("import sys; from vqvae.cli import main\ntry: main(sys.argv[1:])\nfinally:\n"
            "  print({'torch', 'pandas', 'matplotlib'} & {*sys.modules}, file=sys.stderr)")
    run = subprocess.run([sys.executable, "-c", code, *typed.split()], capture_output=True,
                         text=True)
    assert run.stderr.rstrip().endswith("set()"), run.stderr


def test_options_of_fit_import_no_figures_and_no_fabric():
    code = ("import sys; from vqvae.cli import build_parser; build_parser('fit')\n"
            "print({'lightning_fabric', 'matplotlib'} & {*sys.modules})")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def shown(capsys, *typed: str) -> str:
    with pytest.raises(SystemExit) as stop: cli.main([*typed])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_says_what_options_are(capsys):
    text = shown(capsys, "fit", "--model.quantizer.help", "VectorQuantizer")
    assert "number of codewords, n (required, type: int)" in text
    assert "size of the last axis of the latents" in text
    assert not any(word in text for word in ("[@", "torch.nn.Buffer", "known subclasses: torch"))


def test_help_shows_neither_lambdas_nor_defaults_of_what_is_required(capsys):
    assert "<lambda>" not in shown(capsys, "evaluate", "--help")
    text = shown(capsys, "fit", "--help")
    assert "--data DATA what is trained on (required," in text and "<lambda>" not in text


def test_every_option_of_fit_is_explained():
    for name in cli._fit_parser().get_defaults().keys():
        if "." not in name and name not in ("data", "model"):
            assert f"--{name}" in cli._fit_parser().format_help()


# Names

def test_functions_by_bare_name(working):
    (working / "noise.py").write_text(NOISE)
    typed = ["fit", "--data", "noise.Noise", *MODEL, "--epochs", "1", "--output", "run"]
    for estimator in ("rotation", "vqvae.quantizers.rotation", "noise.flipped"):
        shutil.rmtree("run", ignore_errors=True)
        status = cli.main([*typed, "--model.quantizer.estimator", estimator,
                           "--initializer", "kmeans_init"])
        saved = yaml.safe_load(Path("run/config.yaml").read_text())
        path = saved["model"]["quantizer"]["init_args"]["estimator"]
        assert status == 0 and path.endswith(estimator.rpartition(".")[2])


def test_functions_by_bare_name_in_a_file(working):
    options = {"model": {"quantizer": {"class_path": "VectorQuantizer", "init_args": {
        "dim": 4, "codebook_size": 8, "estimator": "projection"}}}}
    Path("part.yaml").write_text(yaml.dump(options))
    with cli._functions_by_name():
        parsed = cli._fit_parser().parse_args(["--config", "part.yaml", *MODEL[:6], *MODEL[12:],
                                               "--data", "DigitsDataset", "--epochs", "1"])
    assert parsed.model.quantizer.init_args.estimator.__name__ == "projection"


@pytest.mark.slow
def test_own_classes_are_found_in_the_working_folder(working):
    (working / "noise.py").write_text(NOISE)
    run = in_new_process("fit", "--data", "noise.Noise", *MODEL, "--epochs", "1", "--output", "run",
                         cwd=working)
    assert run.returncode == 0, run.stderr
    again = in_new_process("evaluate", str(working / "run"), cwd="/")
    assert again.returncode == 0 and "mse" in again.stdout, again.stderr


@pytest.mark.parametrize("typed, meant", [
    (["--batchsize", "3"], "--batch_size"), (["--epoch=3"], "--epochs"),
    (["--initializer", "kmeans"], "kmeans_init"), (["--data", "DigitDataset"], "DigitsDataset"),
    (["--model.quantizer.estimator", "rotaton"], "rotation"),
    (["--model.quantizer.learning", "EMALearnin"], "EMALearning"),
    (["--model.quantizer.code_book_size", "3"], "codebook_size"),
])
def test_did_you_mean(capsys, typed, meant):
    assert cli.main(["fit", *MODEL, "--data", "DigitsDataset", *typed]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"(did you mean {meant}?)\n") and error.count("\n") == 1


def test_did_you_mean_a_study(capsys):
    assert cli.main(["study", "show", "first-lok"]) == 1
    assert "(did you mean first-look?)" in capsys.readouterr().err


def test_one_line_keeps_alternatives_and_value():
    tree = """Parser key "a":
  Does not validate
  Subtypes: [int, float]
  Errors:
    - Expected an int
    - Problem with b:
        too small
  Given value type: str
  Given value: x"""
    assert cli.one_line(ValueError(tree)) == (
        'Parser key "a": Expected an int; Problem with b: too small; Given value: x')
    assert cli.one_line(ValueError()) == "ValueError"
    assert cli.one_line(KeyError("k")) == "'k'"


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "just text"])
def test_a_broken_configuration_is_one_line(working, capsys, text):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(text)
    for typed in (["evaluate", "run"], ["fit", "--config", "run/config.yaml"]):
        assert cli.main(typed) in (1, 2)
        error = capsys.readouterr().err
        assert "config" in error and error.count("\n") == 1
    assert cli.main(["evaluate", "x" * 5000]) == 1      # a name that no disk can hold


def test_output_in_an_encoding_without_arrows(working):
    (working / "noise.py").write_text(NOISE)
    assert fit("--data", "noise.Noise", "--epochs", "1") == 0
    run = in_new_process("fit", "--data", "noise.Noise", *MODEL, "--epochs", "2", "--lr", "0.5",
                         "--output", "run", cwd=working, PYTHONIOENCODING="cp1252")
    assert run.returncode == 1 and "lr: 0.003 ? 0.5" in run.stderr


# A run's folder

def fit(*typed: str, output: str = "run") -> int:
    return cli.main(["fit", *MODEL, "--output", output, *typed])


@pytest.mark.parametrize("name", ["photos", "1e3", "no", "2024-01-01", "0x10", "nan"])
def test_a_run_explains_itself_from_anywhere(working, monkeypatch, capsys, name):
    photos(working / name)
    assert fit("--data", "ImageFolderDataset", "--data.folder", name, "--data.image_size", "8",
               "--data.color", "false", "--epochs", "1") == 0, capsys.readouterr().err
    here = cli.evaluate("run")
    monkeypatch.chdir("/")
    assert cli.evaluate(str(working / "run")) == here
    moved = shutil.move(working, working.parent / "moved")
    assert cli.evaluate(f"{moved}/run") == here
    monkeypatch.chdir(working.parent)
    assert cli.main(["fit", "--config", "moved/run/config.yaml", "--output", "again"]) == 0
    assert cli.evaluate("again") == here
    assert yaml.safe_load(Path("again/config.yaml").read_text())["base"] == "../moved"


def test_a_path_that_yaml_takes_for_a_list_is_refused_by_name(capsys):
    assert fit("--data", "ImageFolderDataset", "--data.folder", "[a]", "--epochs", "1") == 2
    assert "a path must be text, got ['a']" in capsys.readouterr().err


def test_a_base_on_the_command_line_starts_in_the_working_folder(working):
    photos(working / "data" / "photos")
    assert fit("--data", "ImageFolderDataset", "--data.folder", "photos", "--data.image_size", "8",
               "--data.color", "false", "--epochs", "1", "--base", "data") == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["base"] == "../data"


def test_text_that_looks_like_a_number_stays_text():
    parser = cli._fit_parser()
    options = parser.parse_args([*MODEL, "--data", "DigitsDataset", "--epochs", "1"])
    for text in ("1e3", ".inf", "1_000", "nan", "012", "1.5", "é"):
        options.precision = text
        saved = cli.config_text(options, Path(), Path("run"))
        assert parser.parse_string(saved).precision == text


def test_more_epochs_continue_a_finished_run(working, capsys):
    (working / "noise.py").write_text(NOISE)
    assert fit("--data", "noise.Noise", "--epochs", "2") == 0
    assert fit("--data", "noise.Noise", "--epochs", "3", "--checkpoint_every", "1") == 0
    longer = torch.load("run/checkpoint.pt", weights_only=False)
    assert fit("--data", "noise.Noise", "--epochs", "3", output="once") == 0
    once = torch.load("once/checkpoint.pt", weights_only=False)
    assert all(torch.equal(longer["model"][k], v) for k, v in once["model"].items())
    capsys.readouterr()
    kept = Path("run/config.yaml").read_text()
    for typed, said in [(["--epochs", "1"], "epochs: 3 → 1"),
                        (["--epochs", "4", "--lr", "0.01"], "lr: 0.003 → 0.01"),
                        (["--epochs", "4", "--data.samples", "16"], "data.samples: 32 → 16"),
                        (["--epochs", "4", "--clip_norm", "0.5"], "clip_norm: 1.0 → 0.5"),
                        (["--steps", "9"], "epochs: 3 → none; steps: none → 9")]:
        assert fit("--data", "noise.Noise", *typed) == 1
        assert said in capsys.readouterr().err and Path("run/config.yaml").read_text() == kept


def test_scores_that_are_no_number_are_null(working, monkeypatch):
    from vqvae.training.trainer import Trainer
    (working / "noise.py").write_text(NOISE)
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: {"mse": math.nan, "psnr": 3.0})
    assert fit("--data", "noise.Noise", "--epochs", "1") == 0
    text = Path("run/evaluation.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"mse": None, "psnr": 3.0}


def test_evaluates_what_fit_evaluated(working, capsys):
    (working / "noise.py").write_text(NOISE)
    assert fit("--data", "noise.Noise", "--epochs", "1") == 0      # it has no test split
    fitted = json.loads(Path("run/evaluation.json").read_text())
    assert cli.evaluate("run") == cli.evaluate("run", "train") == pytest.approx(fitted)


def test_an_initializer_needs_a_codebook(working, capsys):
    (working / "noise.py").write_text(NOISE)
    quantizer = "--model.quantizer FiniteScalarQuantizer --model.quantizer.levels [3,3,3,3]".split()
    typed = [*MODEL[:6], *quantizer, *MODEL[12:], "--data", "noise.Noise", "--epochs", "1"]
    assert cli.main(["fit", *typed, "--initializer", "kmeans_init", "--output", "run"]) == 1
    assert "codebook" in capsys.readouterr().err


@pytest.mark.slow
def test_one_process_inside_a_job_of_several_tasks(working):
    (working / "noise.py").write_text(NOISE)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4",
             "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
             "SLURM_JOB_NODELIST": "localhost"}
    run = in_new_process("fit", "--data", "noise.Noise", *MODEL, "--epochs", "1", "--output", "run",
                         cwd=working, **slurm)
    assert run.returncode == 0, run.stderr


# Standardized data

DIGITS = ["--data", "DigitsDataset", *MODEL]


def test_a_run_on_standardized_data_is_saved_in_original_units(working):
    from vqvae.data import DigitsDataset
    from vqvae.models import VQVAE
    from vqvae.training import Trainer

    assert cli.main(["fit", *DIGITS, "--epochs", "1", "--output", "run"]) == 0
    fitted = json.loads(Path("run/evaluation.json").read_text())
    assert cli.evaluate("run") == fitted
    digits = DigitsDataset()
    raw = Trainer(VQVAE.load("run/model.safetensors")).evaluate(digits)
    assert raw["mse"] == pytest.approx(fitted["mse"], rel=1e-4)
    assert raw["psnr"] == pytest.approx(fitted["psnr"], rel=1e-4)
    assert raw["dead_codes"] == fitted["dead_codes"]
    scale = digits.standardized().standardization.scale
    assert fitted["reconstruction"] == pytest.approx(fitted["mse"] / scale**2, rel=1e-5)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["standardize"] is True
    # and the run goes on as one that was not interrupted
    assert cli.main(["fit", *DIGITS, "--epochs", "2", "--output", "run"]) == 0
    assert cli.main(["fit", *DIGITS, "--epochs", "2", "--output", "whole"]) == 0
    assert cli.evaluate("run") == cli.evaluate("whole")


def test_a_run_from_before_standardization_is_evaluated_as_it_was(working, capsys):
    typed = ["fit", *DIGITS, "--epochs", "1", "--output", "run"]
    assert cli.main([*typed, "--standardize", "false"]) == 0
    fitted = json.loads(Path("run/evaluation.json").read_text())
    assert fitted["reconstruction"] == pytest.approx(fitted["mse"], rel=1e-5)
    config = Path("run/config.yaml")
    kept = [line for line in config.read_text().splitlines() if "standardize" not in line]
    config.write_text("\n".join(kept))
    assert cli.evaluate("run") == fitted
    assert cli.main(typed) == 1 and "standardize: False → True" in capsys.readouterr().err
    assert cli.main([*typed, "--standardize", "false"]) == 0


def test_weights_are_those_of_the_run(working):
    typed = ["--epochs", "1", "--output", "run", "--weights", "{commitment: 2.0}"]
    assert cli.main(["fit", *DIGITS, *typed]) == 0
    assert cli.evaluate("run") == json.loads(Path("run/evaluation.json").read_text())


def test_data_that_cannot_be_standardized_are_trained_as_they_are(working, capsys):
    (working / "noise.py").write_text(NOISE)
    assert cli.main(["fit", "--data", "noise.Noise", *MODEL, "--epochs", "1",
                     "--output", "run"]) == 0
    assert "Noise does not hold its samples in memory" in capsys.readouterr().err
    assert cli.evaluate("run") == json.loads(Path("run/evaluation.json").read_text())
