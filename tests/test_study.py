"""The study engine under interruption, failure and change; the command line as a process."""
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from platforms import IS_ROOT, POSIX, posix
from safetensors.torch import load_file

from vqvae.evaluation.intervals import compare_rows, summarize_rows
from vqvae.studies.run import run_study
from vqvae.studies.store import Results, code_note, load_rows, save_rows, stored_rows
from vqvae.studies.study import Study, find_study, study_names

# A study that writes down its calls, and stays in the row n = 3 as long as there is a file `hold`.
HELD = textwrap.dedent("""
    import os, time
    from pathlib import Path
    from vqvae.studies.run import run_study
    from vqvae.studies.study import Study
    from vqvae.studies.version import code_version

    def measure(n, seed):
        with open(os.environ["CALLS"], "a") as calls: calls.write(f"{n} {seed}\\n")
        while n == 3 and Path("hold").exists(): time.sleep(0.02)
        return {"value": n * 100 + seed}

    study = Study("held", "?", measure, [{"n": n} for n in range(5)], seeds=(0, 1, 2, 3))
    if __name__ == "__main__":
        from vqvae.studies import first_look
        print(code_version(measure), code_version(first_look.measure), flush=True)
        run_study(study, "results", progress=False)
""")


@pytest.fixture
def held(tmp_path, monkeypatch):
    """The file of that study in a folder of its own, where this process is; a function that lists
    the calls."""
    def calls(): return Path("calls").read_text().split("\n")[:-1] if Path("calls").exists() else []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "held.py").write_text(HELD)
    (tmp_path / "hold").touch()
    yield calls
    sys.modules.pop("held", None)


def wait_until(condition):
    for _ in range(15_000):
        if condition(): return
        time.sleep(0.02)
    raise TimeoutError("five minutes")


def test_killed_study_continues_in_another_process_and_equals_an_undisturbed_one(held):
    versions = [find_study("held.py").code, find_study("first-look").code]
    killed = subprocess.Popen([sys.executable, "held.py"], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONHASHSEED": "1"})
    wait_until(lambda: held() or killed.poll() is not None)  # as a script, which here is a module
    wait_until(lambda: len(held()) == 4)
    killed.kill()
    assert killed.stdout.readline().split() == versions
    study = find_study("held.py")
    assert len(stored_rows(study, "results")) == 3
    assert killed.communicate(timeout=120) == ("", None)  # its worker has gone as well
    Path("hold").unlink()
    rows = here(study, "results")
    # only that one twice
    assert sorted(held()) == sorted([*(f"{n} {seed}" for seed in range(4) for n in range(5)),
                                     "3 0"])
    undisturbed = here(study, "other")
    pd.testing.assert_frame_equal(rows.drop(columns="seconds"), undisturbed.drop(columns="seconds"))
    held_again = here(study, "other")
    pd.testing.assert_frame_equal(undisturbed, held_again)
    assert len(held()) == 41


here = partial(run_study, jobs=0, progress=False)  # in this process, which is quick
VQVAE = str(Path(sys.executable).with_name("vqvae"))  # the installed command


def value_of(n, seed): return {"value": n + seed}


def failing_until_fixed(flag, n, text, seed):
    if n == 2 and not Path(flag).exists(): raise RuntimeError("not fixed")
    return {"value": n, "time_process": os.getpid()}


def test_two_processes_give_the_rows_of_one_with_their_failures_and_end(tmp_path):
    study = Study("both", "?", failing_until_fixed,
                  [{"flag": str(tmp_path / "fixed"), "n": n, "text": 'Größe 量, "x"\n'}
                   for n in (1, 2)], seeds=(0, 1, 2))
    one, two = (run_study(study, tmp_path / str(jobs), jobs=jobs, progress=False)
                for jobs in (1, 2))
    pd.testing.assert_frame_equal(*(rows.drop(columns=["seconds", "time_process"])
                                    for rows in (one, two)))
    assert two.error.isna().tolist() == [True, False] * 3 and "not fixed" in two.error[1]
    for process in two.time_process.dropna().astype(int):
        assert process != os.getpid()
        with pytest.raises(ProcessLookupError if POSIX else OSError):
            os.kill(process, 0)  # the next run imports what has changed meanwhile
    (tmp_path / "fixed").touch()
    again = run_study(study, tmp_path / "2", progress=False)  # failed rows are tried again
    assert again.error.isna().all() and again.value.tolist() == [1, 2] * 3
    assert again.seconds[0] == two.seconds[0]
    save_rows(again, tmp_path / "rows.csv", "?")
    assert set(load_rows(tmp_path / "rows.csv").text) == set(again.text) == {"Größe 量, \"x\"\n"}


def test_changed_configuration_is_measured_and_old_rows_are_not_shown(tmp_path):
    here(Study("s", "?", value_of, [{"n": 1}], seeds=(0,)), tmp_path)
    rows = here(Study("s", "?", value_of, [{"n": 2}], seeds=(0,)), tmp_path)
    assert rows.value.tolist() == [2]
    assert len(Results(tmp_path / "s" / "results.sqlite").finished()) == 2


@pytest.mark.parametrize(("change", "message"), [
    ({"name": "a/b"}, "name must be letters"), ({"name": ""}, "name must be letters"),
    ({"grid": []}, "grid must hold something"), ({"seeds": ()}, "seeds must hold something"),
    ({"seeds": 3}, "seeds must be a list, got int"),
    ({"grid": [3]}, "grid must hold dicts, got int"),
    ({"grid": ({"n": n} for n in (1, 2))}, "grid must be a list, got generator"),
    ({"grid": [{"n": Path("x")}]}, "grid must hold plain values"),
    ({"grid": [{"n": 1, "seed": 2}]}, "grid must not name seed"),
    ({"grid": [{"torch": "1"}]}, "grid must not name torch"),
    ({"grid": [{"code": 1}]}, "grid must not name code"),
    ({"measure": lambda n, seed: {}}, "measure must have a name: use def, not lambda"),
])
def test_study_that_cannot_be_stored_is_refused(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Study(**{"name": "s", "question": "?", "measure": value_of, "grid": [{"n": 1}]} | change)


def odd(n, seed):
    return {"vanishing": {"value": float("nan"), "exact": 1.0},
            "infinite": {"value": float("inf"), "exact": 1.0}, "short": {"exact": 1.0},
            "more": {"value": 2.0, "exact": 1.0, "other": 3.0}, "collision": {"n": 1.0},
            "list": [1.0], "text": {"value": "1"}}.get(n[0])


def test_results_that_are_not_plain_numbers(tmp_path):
    names = ["vanishing", "infinite", "short", "more", "collision", "list", "text", "nothing"]
    study = Study("odd", "?", odd, [{"n": (name, 4)} for name in [*names, "short"]], seeds=range(2))
    assert len(study.jobs()) == 16  # a configuration that is named twice is one
    rows = here(study, tmp_path)
    assert rows.error.isna().tolist() == [True] * 4 + [False] * 4 + [True] * 4 + [False] * 4
    expected = ["got n, which the row has", "must return a dict, got list", "got value = '1'",
                "must return a dict, got NoneType"]
    assert all(text in error for text, error in zip(expected, rows.error.dropna()))
    # lists of a configuration come back as tuples, which a table can be grouped by
    table = summarize_rows(rows, ["n"], ["value", "other"])
    assert table.n.tolist() == [(name, 4) for name in names[:4]] and table[
        "value"
    ].isna().tolist() == [True, False, True, False]
    save_rows(rows, tmp_path / "rows.csv", "?")
    assert set(compare_rows(rows, load_rows(tmp_path / "rows.csv"), ["n"]).verdict) == {"inside"}


def seed_only(seed): return {"value": seed}


def test_study_of_seeds_only(tmp_path):
    rows = here(Study("seeds", "?", seed_only, [{}]), tmp_path)
    assert summarize_rows(rows, [], ["value"])[["value", "seeds"]].values.tolist() == [[1, 3]]
    assert compare_rows(rows, rows[["seed", "value"]], []).verdict.tolist() == ["inside"]


def test_two_runs_into_one_folder_at_the_same_time(tmp_path):
    study = Study("s", "?", value_of, [{"n": n} for n in range(8)])
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: here(study, tmp_path), range(2))
    pd.testing.assert_frame_equal(one, two)
    assert one.value.tolist() == [n + seed for seed in range(3) for n in range(8)]


def test_finished_row_is_not_replaced_by_a_failed_one(tmp_path):
    results = Results(tmp_path / "results.sqlite")
    for result, error in ((None, "first"), ({"value": 1.0}, None), (None, "late"),
                          ({"value": 2.0}, None)):
        results.store("key", {"n": 1}, result, error, 0.0, {"torch": "1"})
    assert results.frame(["key"])[["value", "error"]].values.tolist() == [[1.0, None]]


def test_file_of_rows_holds_its_making_and_no_more(tmp_path):
    study = Study("s", "?", value_of, [{"n": 1 / 3}, {"n": None}, {"n": "None"}], seeds=(0, 1))
    rows = here(study, tmp_path)
    assert rows.error.notna().tolist() == [False, True, True] * 2
    save_rows(rows, tmp_path / "rows.csv", "make rows")
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[-3:] == ["n,seed,value", "0.333333,0,0.333333", "0.333333,1,1.33333"]
    assert lines[:3] == ["# command: make rows", f"# code: {study.code}", "# seeds: 0 1"]
    assert f"# python: {sys.version.split()[0]}" in lines
    heading = {*load_rows(tmp_path / "rows.csv").attrs}
    assert heading == {"command", "code", "seeds", "vqvae", "python", "torch", "numpy",
                       "scikit-learn"}
    # a version that differs is a column
    save_rows(rows.assign(torch=["1", "2"] * 3), tmp_path / "rows.csv", "make rows")
    assert load_rows(tmp_path / "rows.csv").torch.tolist() == [1, 2]


def test_csv_keeps_strings_like_none(tmp_path):
    rows = pd.DataFrame({"start": ["None", "NA", "# no"], "levels": ["[4, 4]", "[2]", "[8]"],
                         "value": [1.0, float("nan"), float("inf")]})
    save_rows(rows, tmp_path / "rows.csv", "?")
    pd.testing.assert_frame_equal(load_rows(tmp_path / "rows.csv"), rows)


def test_comparison_names_what_is_missing_and_what_is_new(tmp_path):
    rows = pd.DataFrame({"n": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "value": [1.0, 2.0, 3.0, 3.0],
                         "error": None, "seconds": 1.0})
    old = pd.DataFrame({"n": [1, 1, 3, 3], "seed": [0, 1, 0, 1], "value": [1.5, 2.5, 3.0, 3.0],
                        "other": [1.0, 1.0, float("nan"), 1.0]})
    table = compare_rows(rows, old, ["n"]).set_index(["n", "result"]).verdict
    assert table.to_dict() == {("1", "value"): "inside", ("2", "value"): "only measured",
                               ("3", "value"): "only committed", ("1", "other"): "only committed",
                               ("3", "other"): "only committed"}
    with pytest.raises(ValueError, match="lack m"): compare_rows(rows, old, ["n", "m"])
    exact = pd.DataFrame({"n": [2, 2], "seed": [0, 1], "value": [3.0, 3.0]})
    # no spread: only the rounding of the file is forgiven
    for shift, verdict in ((1e-5, "inside"), (1e-4, "moved")):
        assert compare_rows(rows[2:].assign(value=3 + shift), exact,
                            ["n"]).verdict.tolist() == [verdict]


def deadly(end, n, seed):
    "Leaves in many ways."
    if n == 1 and end == "killed": os.kill(os.getpid(), signal.SIGKILL)
    if n == 1 and end == "ended": os._exit(3)
    if n == 1 and end == "left": sys.exit("enough")
    if n == 1 and end == "memory": raise MemoryError("no more")
    return {"value": n + seed}


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("end", "error"), [
    ("killed", "SIGKILL"), ("ended", "EXIT(3)"), ("left", "SystemExit: enough"),
    ("memory", "no more"),
])
def test_row_that_kills_its_process_has_failed_and_the_others_are_measured(end, error, jobs,
                                                                           tmp_path):
    if jobs == 1 and end in ("left", "memory"): pytest.skip("the same as with two")
    if end == "killed" and not POSIX: pytest.skip("Windows has no SIGKILL")
    study = Study("deadly", "?", deadly, [{"end": end, "n": n} for n in range(4)], seeds=(0, 1))
    for _ in range(2 if jobs == 2 and end == "killed" else 1):  # a new run tries them again
        rows = run_study(study, tmp_path, jobs=jobs, progress=False)
        assert rows.error.notna().tolist() == [False, True, False, False] * 2
        assert all(error in text for text in rows.error.dropna()), rows.error.dropna().tolist()
    finished = rows[rows.error.isna()]
    assert (finished.value == finished.n + finished.seed).all()


def test_leaving_and_running_out_of_memory_in_this_process(tmp_path):
    for end in ("left", "memory"):
        study = Study(end, "?", deadly, [{"end": end, "n": n} for n in range(3)])
        assert here(study, tmp_path).error.notna().tolist() == [False, True, False] * 3


def test_numbers_of_numpy_are_stored_as_plain_ones(tmp_path):
    grid = [{"n": n, "text": ""} for n in np.arange(2)] + [{"n": np.float32(0.5), "text": ""}]
    study = Study("s", "?", takes_plain, grid, seeds=np.arange(3, dtype=np.int32))
    rows = here(study, tmp_path)
    assert rows.error.isna().all() and rows.value.tolist() == [1, 1, 2] * 3
    assert {type(job["n"]) for job in study.jobs()} == {int, float}
    assert {type(seed) for seed in study.seeds} == {int}


def takes_plain(n, text, seed):
    assert type(n) in (int, float) and type(seed) is int
    return {"value": 1 if isinstance(n, int) else 2}


def test_code_that_was_edited_after_the_import_is_not_measured(held, tmp_path):
    Path("hold").unlink()
    study = find_study("held.py")
    source = Path("held.py").read_text()
    Path("held.py").write_text(source.replace("n * 100", "n * 10"))
    with pytest.raises(RuntimeError, match="held was edited after it had been imported"):
        here(study, tmp_path)
    assert not held() and not (tmp_path / "held").exists()
    Path("held.py").write_text(source + "# a comment")
    assert len(here(study, tmp_path)) == 20
    Path("held.py").write_text(source.replace("n * 100", "n * 10"))
    assert here(find_study("held.py"), tmp_path).value.max() == 43


def test_relative_folder_is_that_of_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study("wanders", "?", wanders, [{"folder": str(tmp_path / "elsewhere")}])
    (tmp_path / "elsewhere").mkdir()
    assert here(study, "results").error.isna().all()
    assert (tmp_path / "results" / "wanders" / "results.sqlite").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def wanders(folder, seed):
    os.chdir(folder)
    return {"value": seed}


def test_note_says_with_which_code_rows_were_measured(tmp_path):
    study = Study("s", "?", value_of, [{"n": 1}])
    rows = here(study, tmp_path)
    assert set(rows.code) == {study.code}
    path = tmp_path / "rows.csv"
    for code, expected in ((study.code, "which is today's"),
                           ("0" * 16, f"other code, `{'0' * 16}`; today's is `{study.code}`")):
        save_rows(rows.assign(code=code), path, "?")
        assert expected in code_note(load_rows(path), study)
    text = path.read_text()
    path.write_text(text.replace(f"# code: {'0' * 16}\n", ""))  # a file from before
    assert "unknown, older code" in code_note(load_rows(path), study)
    save_rows(rows.assign(code=[study.code, "1", "1"]), path, "?")
    assert "code" not in load_rows(path).attrs and "`1`" in code_note(load_rows(path), study)


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "nbs" / "studies" / "results"


def pages():
    "Text of the page of every module of studies, by module."
    texts = {path: path.read_text("utf-8") for path in (ROOT / "nbs" / "studies").glob("*.ipynb")}
    return {found[1]: (path, text) for path, text in texts.items()
            if (found := re.search(r"default_exp studies\.(\w+)", text))}


@pytest.mark.parametrize("name", study_names())
def test_every_study_has_a_question_a_page_and_stored_rows(name):
    study = find_study(name)
    assert study.name == name and study.question.endswith("?")
    assert study.summarize and study.plot and len(study.seeds) >= 3
    path, page = pages()[name.replace("-", "_")]
    assert f"({path.name})" in (ROOT / "nbs" / "studies" / "index.ipynb").read_text("utf-8")
    assert f"code_note(load_rows(Path(\\\"results\\\") / \\\"{name}.csv" in page
    rows = load_rows(RESULTS / f"{name}.csv")
    assert {*study.columns(), "seed"} <= {*rows.columns} and set(rows.seed) == set(study.seeds)
    assert len(rows) == len(study.jobs()) and "command" in rows.attrs
    assert "code" in rows.attrs or "code" in rows
    assert len(study.summarize(rows)) > 0


def test_every_module_of_studies_is_engine_or_study():
    modules = {path.stem for path in (ROOT / "vqvae" / "studies").glob("*.py")} - {"__init__"}
    engine = {"study", "version", "store", "run", "protocol"}
    assert modules == engine | {name.replace("-", "_") for name in study_names()}
    assert {path.stem.split("-tuning")[0] for path in RESULTS.glob("*.csv")} == {*study_names()}


FIT = """--data DigitsDataset
 --model.encoder LearnedLinearEncoder --model.encoder.sample_shape [1,8,8] --model.encoder.dim 4
 --model.quantizer FiniteScalarQuantizer --model.quantizer.levels [4,4,4,4]
 --model.decoder LearnedLinearDecoder --model.decoder.sample_shape [1,8,8] --model.decoder.dim 4
""".split()


@pytest.fixture
def cli(tmp_path, capsys, monkeypatch):
    "The command in this process, in a folder of its own: exit status, output, errors."
    from vqvae.cli import main
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # of processes that a test starts, as conftest sets it for this one
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda *arguments: (main(list(arguments)), *capsys.readouterr())


def test_print_config_can_be_run_again(cli, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop: cli("fit", *FIT, "--steps", "5", "--print_config")
    assert not stop.value.code
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    for config, folder in (("config.yaml", "run"), ("run/config.yaml", "again")):
        status, _, err = cli("fit", "--config", config, "--output", folder)
        assert status == 0, err
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert (tmp_path / "again" / "evaluation.json").read_text() == (
        tmp_path / "run" / "evaluation.json"
    ).read_text()


@posix
def test_interrupted_fit_says_so_in_one_line_and_continues(cli, tmp_path):
    line = ["fit", *FIT, "--epochs", "40", "--checkpoint_every", "20", "--output"]
    running = subprocess.Popen([VQVAE, *line, "run"], stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    wait_until((tmp_path / "run" / "checkpoint.pt").exists)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (
        running.returncode == 130 and "Traceback" not in err and "continues" in err.splitlines()[-1]
    ), err
    assert not (tmp_path / "run" / "model.safetensors").exists()
    for folder in ("run", "undisturbed"):
        status, _, err = cli(*line, folder)
        assert status == 0, err
    one, two = (load_file(tmp_path / folder / "model.safetensors")
                for folder in ("run", "undisturbed"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@posix
def test_interrupted_study_says_so_in_one_line_and_continues(held, cli):
    study = find_study("held.py")
    running = subprocess.Popen([VQVAE, "study", "run", "held.py", "--jobs", "2"],
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    # both processes are in the row that is held
    wait_until(lambda: len(held()) == 9 and len(stored_rows(study, "studies")) == 7)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (
        running.returncode == 130 and "Traceback" not in err and "continues" in err.splitlines()[-1]
    ), err
    Path("hold").unlink()
    assert cli("study", "run", "held.py", "--jobs", "1", "--save", "rows.csv")[0] == 0
    # two of them twice
    assert len(held()) == 22 and set(held()) == {f"{n} {seed}" for n in range(5)
                                                 for seed in range(4)}
    status, out, err = cli("study", "show", "held.py")
    assert (
        status == 0 and "20 rows finished, 0 failed, 0 missing" in out and "results.sqlite" in out
    ), (out, err)
    assert cli("study", "compare", "held.py", "rows.csv")[0] == 0
    save_rows(load_rows("rows.csv").assign(value=0.0), "rows.csv", "by hand")
    status, out, err = cli("study", "compare", "held.py", "rows.csv")
    assert status == 1 and "--save rows.csv" in err and "5 moved" in out, (out, err)


def test_mistakes_in_a_file_of_ones_own_end_in_one_line(held, cli):
    def fails(source, expected, name="own.py"):
        if source is not None: Path(name).write_text(source)
        status, _, err = cli("study", "run", name, "--jobs", "1")
        *bar, message = err.splitlines()
        assert status == 1 and expected in message and not any(line.strip() and "/20 [" not in line
                                                               for line in bar), err

    fails("def measure(:", "own.py: SyntaxError: invalid syntax (own.py, line 1)")
    fails("\nimport json\n\njson.loads('[')", "own.py, line 4: JSONDecodeError")
    fails("import absent_module",
          "own.py, line 1: ModuleNotFoundError: No module named 'absent_module'")
    fails("x = 1", "own must hold one Study, found 0")
    fails("x = 1", "json.py: ValueError: another module has this name", "json.py")
    Path("json.py").unlink()  # which processes that start here would import
    fails(HELD.replace('{"n": n} for', '{"m": n} for'),
          "20 of 20 rows failed, first: TypeError: measure() got an unexpected")
    # the file is read again each time
    fails(HELD.replace("range(5)", "range(0)"), "grid must hold something")
    Path("studies/held/results.sqlite").write_text(
        "not a database, and long enough to be looked at " * 100
    )
    fails(None, "results.sqlite cannot be used: file is not a database", "held.py")
    Path("studies/held/results.sqlite").unlink()
    Path("studies/held/results.sqlite").mkdir()
    fails(None, "results.sqlite cannot be used: unable to open database file", "held.py")
    sys.modules.pop("own", None)


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], "command"),
    (["fly"], "fly"),
    (["fit"], "required"),
    (["fit", *FIT], "--epochs or --steps"),
    (["fit", *FIT, "--steps", "0"], "steps must be positive"),
    (["fit", *FIT, "--steps", "3", "--initializer", "kmeans_init"], "no codebook"),
    (["fit", *FIT, "--steps", "3", "--weights", "{comitment: 1}"], "comitment"),
    (["study", "run", "nothing"], "first-look"),
    (["study", "show", "first-look"], "vqvae study run first-look"),
    (["study", "run", "absent.py"], "absent.py"),
    (["study", "compare", "first-look", "absent.csv"], "absent.csv"),
    (["fit", *FIT, "--steps", "3", "--config", "absent.yaml"], "absent.yaml"),
    (["fit", "--data", "json.JSONDecoder"], "JSONDecoder"),
])
def test_mistakes_end_in_one_line(arguments, expected, tmp_path, capsys, monkeypatch):
    from vqvae.cli import main
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    *bar, message = capsys.readouterr().err.splitlines()
    assert expected in message and not any(line.strip() and "step/s" not in line
                                           for line in bar), (bar, message)


@posix
@pytest.mark.skipif(IS_ROOT, reason="root writes everywhere")
def test_read_only_output(tmp_path, capsys):
    from vqvae.cli import main
    (tmp_path / "locked").mkdir(mode=0o500)
    for arguments in (["fit", *FIT, "--steps", "3"], ["study", "run", "first-look"]):
        assert main([*arguments, "--output", str(tmp_path / "locked" / "run")]) == 1
        assert "Permission denied" in capsys.readouterr().err
    assert not list((tmp_path / "locked").iterdir())
