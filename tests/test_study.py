"""The study engine under interruption, failure and change; the command line as a process."""
import importlib
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

from vqvae.experiments.study import Results, Study, code_fingerprint, compare_rows, load_rows, run_study, save_rows

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
    with sqlite3.connect(base) as connection: stored = connection.execute("SELECT COUNT(*) FROM measured").fetchone()[0]
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


def test_failed_rows_are_tried_again_and_do_not_stop_others(tmp_path):
    study = Study("s", "?", failing_until_fixed, [{"flag": str(tmp_path / "fixed"), "n": n} for n in (1, 2)], seeds=(0, 1))
    rows = run_study(study, tmp_path, jobs=2, progress=False)
    assert rows.error.isna().tolist() == [True, False, True, False] and "not fixed" in rows.error[1]
    (tmp_path / "fixed").touch()
    again = run_study(study, tmp_path, progress=False)
    assert again.error.isna().all() and again.value.tolist() == [1, 2, 1, 2]
    assert again.seconds[0] == rows.seconds[0]


def failing_until_fixed(flag, n, seed):
    if n == 2 and not Path(flag).exists(): raise RuntimeError("not fixed")
    return {"value": n}


def test_file_of_rows_holds_its_making_and_no_more(tmp_path):
    rows = run_study(Study("s", "?", value_of, [{"n": 1 / 3}, {"n": None}, {"n": "None"}], seeds=(0, 1)), tmp_path, progress=False)
    assert rows.error.notna().tolist() == [False, True, True] * 2
    save_rows(rows, tmp_path / "rows.csv", "make rows")
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[-3:] == ["n,seed,value", "0.333333,0,0.333333", "0.333333,1,1.33333"]
    assert lines[:2] == ["# command: make rows", "# seeds: 0 1"] and f"# python: {sys.version.split()[0]}" in lines
    assert set(load_rows(tmp_path / "rows.csv").attrs) == {"command", "seeds", "vqvae", "python", "torch", "numpy", "scikit-learn"}
    save_rows(rows.assign(torch=["1", "2"] * 3), tmp_path / "rows.csv", "make rows")  # a version that differs is a column
    assert load_rows(tmp_path / "rows.csv").torch.tolist() == [1, 2]


def test_text_that_looks_like_nothing_survives_the_file(tmp_path):
    rows = pd.DataFrame({"start": ["None", "NA", "# no"], "levels": ["[4, 4]", "[2]", "[8]"], "value": [1.0, float("nan"), float("inf")]})
    save_rows(rows, tmp_path / "rows.csv", "?")
    pd.testing.assert_frame_equal(load_rows(tmp_path / "rows.csv"), rows)


def test_comparison_names_what_is_missing_and_what_is_new(tmp_path):
    rows = pd.DataFrame({"n": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "value": [1.0, 2.0, 3.0, 3.0], "error": None, "seconds": 1.0})
    old = pd.DataFrame({"n": [1, 1, 3, 3], "seed": [0, 1, 0, 1], "value": [1.5, 2.5, 3.0, 3.0], "other": [1.0, 1.0, float("nan"), 1.0]})
    table = compare_rows(rows, old, ["n"]).set_index(["n", "result"]).verdict
    assert table.to_dict() == {("1", "value"): "inside", ("2", "value"): "only measured", ("3", "value"): "only committed",
                               ("1", "other"): "only committed", ("3", "other"): "only committed"}
    with pytest.raises(ValueError, match="lack m"): compare_rows(rows, old, ["n", "m"])
    exact = pd.DataFrame({"n": [2, 2], "seed": [0, 1], "value": [3.0, 3.0]})
    for shift, verdict in ((1e-5, "inside"), (1e-4, "moved")):  # no spread: only the rounding of the file is forgiven
        assert compare_rows(rows[2:].assign(value=3 + shift), exact, ["n"]).verdict.tolist() == [verdict]


BASE = {
    "helpers": """
        import numpy as np, torch
        def scale(x, by=2): return by * x
        def untouched(x): return x
        TABLE = {"double": scale, "limits": [1, (2, "a")]}
        WEIGHTS, GRID = torch.tensor([1.0, 2.0]), np.array([1, 2])
        class Base:
            power = 1
            def run(self, x): return self.step(x)
            def step(self, x): return x ** self.power
        class Child(Base):
            def step(self, x): return super().step(x) + 1
    """,
    "mine": """
        import functools
        import helpers
        from helpers import Child, TABLE
        OFFSET = 3
        LOG = []
        def twice(f):
            @functools.wraps(f)
            def wrapper(*args, **kwargs): return 2 * f(*args, **kwargs)
            return wrapper
        @functools.cache
        def data(n): return helpers.GRID.sum() * n
        @twice
        def inner(x): return x + OFFSET
        shifted = functools.partial(inner, 1)
        def measure(n, seed):
            "One row."
            from helpers import scale  # inside
            f = lambda x: x + 1
            return {"y": Child().run(n) + f(data(n)) + shifted() + TABLE["double"](seed) + float(helpers.WEIGHTS.sum()) + scale(n)}
        def draw(rows): return rows
    """,
}
KEEP = {
    "comment": ("mine", "return x + OFFSET", "return (x+OFFSET)  # shifted"),
    "docstring": ("mine", '"One row."', '"One row, as a dict."'),
    "docstring added": ("helpers", "def step(self, x): return x", 'def step(self, x):\n                "Power."\n                return x'),
    "annotations": ("mine", "def measure(n, seed):", "def measure(n: int, seed: int) -> dict:"),
    "drawing": ("mine", "def draw(rows): return rows", "def draw(rows): return rows.plot()"),
    "unrelated function": ("helpers", "def untouched(x): return x", "def untouched(x): return -x"),
    "lines moved": ("mine", "OFFSET = 3", "\n\n        OFFSET = 3"),
    "order of a dict": ("helpers", '{"double": scale, "limits": [1, (2, "a")]}', '{"limits": [1, (2, "a")], "double": scale}'),
}
CHANGE = {
    "measure": ("mine", "float(helpers", "2 * float(helpers"),
    "lambda": ("mine", "lambda x: x + 1", "lambda x: x + 2"),
    "function in a dict": ("helpers", "return by * x", "return by * x + 1"),
    "default": ("helpers", "by=2", "by=4"),
    "constant": ("mine", "OFFSET = 3", "OFFSET = 4"),
    "constant in a container": ("helpers", '(2, "a")', '(2, "b")'),
    "tensor": ("helpers", "tensor([1.0, 2.0])", "tensor([1.0, 2.5])"),
    "array": ("helpers", "np.array([1, 2])", "np.array([1, 3])"),
    "cached function": ("mine", "helpers.GRID.sum() * n", "helpers.GRID.sum() + n"),
    "decorator": ("mine", "return 2 * f(", "return 3 * f("),
    "decorated function": ("mine", "return x + OFFSET", "return x - OFFSET"),
    "argument of partial": ("mine", "partial(inner, 1)", "partial(inner, 2)"),
    "method": ("helpers", "super().step(x) + 1", "super().step(x) + 2"),
    "method of a base class": ("helpers", "return x ** self.power", "return x * self.power"),
    "class attribute": ("helpers", "power = 1", "power = 2"),
    "base class": ("helpers", "class Child(Base)", "class Child(Base, Exception)"),
    "exception handling": ("mine", "f = lambda x: x + 1", "f = lambda x: x + 1\n            try: n + 1\n            except ValueError: pass"),
}


def fingerprint(folder, edit=None):
    "Fingerprint of `mine.measure` after one edit, imported afresh from files in `folder`."
    folder.mkdir(exist_ok=True)
    for name, source in BASE.items():
        module, old, new = edit or (None, "", "")
        assert name != module or source.count(old) == 1
        (folder / f"{name}.py").write_text(textwrap.dedent(source.replace(old, new) if name == module else source))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try: return code_fingerprint(importlib.import_module("mine").measure)
    finally:
        sys.path.remove(str(folder))
        for name in BASE: sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def no_bytecode_files(monkeypatch): monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.mark.parametrize("edit", KEEP.values(), ids=KEEP)
def test_rows_are_kept_when_nothing_that_is_reached_changes(edit, tmp_path):
    assert fingerprint(tmp_path / "a", edit) == fingerprint(tmp_path / "b")


@pytest.mark.parametrize("edit", CHANGE.values(), ids=CHANGE)
def test_rows_are_measured_anew_when_something_that_is_reached_changes(edit, tmp_path):
    assert fingerprint(tmp_path / "a", edit) != fingerprint(tmp_path / "b")


def test_fingerprint_is_the_same_in_every_process_and_as_a_script(tmp_path):
    from vqvae.experiments.first_look import measure
    here = [fingerprint(tmp_path), code_fingerprint(measure)]
    with open(tmp_path / "mine.py", "a") as file: file.write(textwrap.dedent("""
        if __name__ == "__main__":
            from vqvae.experiments import first_look, study
            print(study.code_fingerprint(measure), study.code_fingerprint(first_look.measure))
    """))
    for seed in ("1", "2"):
        there = subprocess.run([sys.executable, tmp_path / "mine.py"], env={**os.environ, "PYTHONHASHSEED": seed},
                               capture_output=True, text=True, check=True)
        assert there.stdout.split() == here


def test_code_without_a_source_file():
    def compiled(source):
        scope = {}
        exec(source, scope)
        return code_fingerprint(scope["f"])
    assert compiled("def g(x): return x\ndef f(seed): return g(seed)") == compiled("def g(x): return (x)\n\ndef f(seed): return g(seed)")
    assert compiled("def g(x): return x\ndef f(seed): return g(seed)") != compiled("def g(x): return -x\ndef f(seed): return g(seed)")


def test_things_that_point_at_each_other_end():
    scope = {"ring": []}
    scope["ring"].append(scope["ring"])
    exec("class A:\n    def other(self): return B\nclass B(A): pass\ndef even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n and even(n - 1)\n"
         "def f(seed): return A, ring, even(seed), {one}\none = A()\none.self = one", scope)
    assert code_fingerprint(scope["f"]) == code_fingerprint(scope["f"])


def test_method_of_this_package_is_reached_through_a_class():
    from vqvae.quantizers.vq import VectorQuantizer
    def f(seed): return VectorQuantizer(2, 4, seed=seed)
    before, original = code_fingerprint(f), VectorQuantizer.get_codebook
    try:
        VectorQuantizer.get_codebook = lambda self: self.codebook + 1
        assert code_fingerprint(f) != before
    finally: VectorQuantizer.get_codebook = original


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


@pytest.fixture
def cli(tmp_path, capsys, monkeypatch):
    "The command in this process, in a folder of its own: exit status, output, errors."
    from vqvae.cli import main
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda *arguments: (main(list(arguments)), *capsys.readouterr())
    sys.modules.pop("slow", None)


def test_interrupted_study_says_so_in_one_line_and_continues(cli, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_STUDY.replace("sys.argv[2]", "'.'"))
    line = [VQVAE, "study", "run", "slow.py", "--jobs", "2"]
    running = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(600):
        time.sleep(0.05)
        if (tmp_path / "calls").exists() and len((tmp_path / "calls").read_text().splitlines()) >= 5: break
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in err and "continues" in err.splitlines()[-1], err
    assert cli("study", "run", "slow.py", "--jobs", "1", "--save", "rows.csv")[0] == 0
    assert len((tmp_path / "calls").read_text().splitlines()) <= 24  # at most those that were being measured twice
    status, out, err = cli("study", "show", "slow.py")
    assert status == 0 and "20 rows finished, 0 failed, 0 missing" in out and "results.sqlite" in out, (out, err)
    assert cli("study", "compare", "slow.py", "rows.csv")[0] == 0
    save_rows(load_rows("rows.csv").assign(value=0.0), "rows.csv", "by hand")
    status, out, err = cli("study", "compare", "slow.py", "rows.csv")
    assert status == 1 and "--save rows.csv" in err and "5 moved" in out, (out, err)


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], "command"), (["fly"], "fly"), (["fit"], "required"), (["fit", *FIT], "--epochs or --steps"),
    (["fit", *FIT, "--steps", "0"], "steps must be positive"), (["fit", *FIT, "--steps", "3", "--initializer", "kmeans_init"], "levels"),
    (["fit", *FIT, "--steps", "3", "--weights", "{comitment: 1}"], "comitment"), (["study", "run", "nothing"], "first-look"), (["study", "show", "first-look"], "vqvae study run first-look"),
    (["study", "run", "absent.py"], "absent.py"), (["study", "compare", "first-look", "absent.csv"], "absent.csv"),
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
