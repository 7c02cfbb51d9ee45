"""The study engine under interruption, failure and change; the command line as a process."""
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest

from vqvae.experiments.study import Results, Study, run_study

SLOW_STUDY = textwrap.dedent("""
    import sys, time
    from vqvae.experiments.study import Study, run_study

    def measure(n, seed):
        time.sleep(0.15)
        with open(sys.argv[2] + "/calls", "a") as calls: calls.write(f"{n} {seed}\\n")
        return {"value": n * 100 + seed}

    study = Study("slow", "?", measure, [{"n": n} for n in range(5)], seeds=(0, 1, 2, 3))
    if __name__ == "__main__":
        run_study(study, sys.argv[1], progress=False).drop(columns="seconds").to_csv(sys.argv[2] + "/table.csv", index=False)
""")


def start(script, results, log):
    log.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, script, results, log], stderr=subprocess.PIPE)


def test_killed_study_continues_and_equals_an_undisturbed_one(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW_STUDY)
    killed = start(script, tmp_path / "results", tmp_path / "log")
    base = tmp_path / "results" / "slow" / "results.sqlite"
    for _ in range(600):
        time.sleep(0.05)
        if (tmp_path / "log" / "calls").exists() and len((tmp_path / "log" / "calls").read_text().splitlines()) >= 5: break
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with sqlite3.connect(base) as connection: stored = connection.execute("SELECT COUNT(*) FROM rows").fetchone()[0]
    assert 3 <= stored < 20
    assert start(script, tmp_path / "results", tmp_path / "log").wait() == 0
    assert start(script, tmp_path / "other", tmp_path / "other_log").wait() == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "log" / "table.csv"), pd.read_csv(tmp_path / "other_log" / "table.csv"))
    calls = (tmp_path / "log" / "calls").read_text().splitlines()
    assert len(calls) <= 21  # nothing twice, except at most the row that was being measured when the process died


VQVAE = str(Path(sys.executable).with_name("vqvae"))  # the installed command


def value_of(n, seed): return {"value": n + seed}


def test_two_processes_give_the_rows_of_one(tmp_path):
    study = Study("both", "?", value_of, [{"n": n} for n in range(4)], seeds=(0, 1))
    one = run_study(study, tmp_path / "one", jobs=1, progress=False).drop(columns="seconds")
    two = run_study(study, tmp_path / "two", jobs=2, progress=False).drop(columns="seconds")
    pd.testing.assert_frame_equal(one, two)


def test_changed_configuration_is_measured_and_old_rows_are_not_shown(tmp_path):
    run_study(Study("s", "?", value_of, [{"n": 1}], seeds=(0,)), tmp_path, progress=False)
    rows = run_study(Study("s", "?", value_of, [{"n": 2}], seeds=(0,)), tmp_path, progress=False)
    assert rows.value.tolist() == [2]
    assert len(Results(tmp_path / "s" / "results.sqlite").finished()) == 2


def command(*arguments, cwd, **kwargs):
    return subprocess.run([VQVAE, *arguments], capture_output=True, text=True, cwd=cwd, **kwargs)


FIT = """--data DigitsDataset --model.encoder LearnedLinearEncoder --model.encoder.sample_shape [1,8,8] --model.encoder.dim 4
 --model.quantizer FiniteScalarQuantizer --model.quantizer.levels [4,4,4,4]
 --model.decoder LearnedLinearDecoder --model.decoder.sample_shape [1,8,8] --model.decoder.dim 4""".split()


def test_print_config_can_be_run_again(tmp_path):
    printed = command("fit", *FIT, "--steps", "5", "--print_config", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    (tmp_path / "config.yaml").write_text(printed.stdout)
    done = command("fit", "--config", "config.yaml", "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()
    again = command("fit", "--config", "run/config.yaml", "--output", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "evaluation.json").read_text() == (tmp_path / "run" / "evaluation.json").read_text()


def test_interrupted_fit_says_so_in_one_line_and_continues(tmp_path):
    line = [VQVAE, "fit", *FIT, "--epochs", "60", "--output", "run", "--checkpoint_every", "5"]
    running = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(600):
        time.sleep(0.05)
        if (tmp_path / "run" / "checkpoint.pt").exists(): break
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in err and "continues" in err.splitlines()[-1], err
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    other = subprocess.run([*line[:-4], "--output", "undisturbed", "--checkpoint_every", "5"], cwd=tmp_path, capture_output=True, text=True)
    assert other.returncode == 0, other.stderr
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (tmp_path / "undisturbed" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], "command"), (["fly"], "fly"), (["fit"], "required"), (["fit", *FIT], "--epochs or --steps"),
    (["fit", *FIT, "--steps", "0"], "steps must be positive"), (["fit", *FIT, "--steps", "3", "--initializer", "kmeans_init"], "levels"),
    (["fit", *FIT, "--steps", "3", "--weights", "{comitment: 1}"], "comitment"), (["study", "nothing"], "first-look"),
    (["fit", *FIT, "--steps", "3", "--config", "absent.yaml"], "absent.yaml"), (["fit", "--data", "json.JSONDecoder"], "JSONDecoder"),
])
def test_mistakes_end_in_one_line(arguments, expected, tmp_path, capsys, monkeypatch):
    from vqvae.cli import main
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    *bar, message = capsys.readouterr().err.splitlines()
    assert expected in message and not any(line.strip() and "step/s" not in line for line in bar), (bar, message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_output(tmp_path, capsys):
    from vqvae.cli import main
    (tmp_path / "locked").mkdir(mode=0o500)
    assert main(["fit", *FIT, "--steps", "3", "--output", str(tmp_path / "locked" / "run")]) == 1
    assert "Permission denied" in capsys.readouterr().err
    assert not list((tmp_path / "locked").iterdir())
