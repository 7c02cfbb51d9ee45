"Live training without a browser: every composition trains, buttons work, stopping loses nothing."
import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("ipywidgets", reason="live training needs ipywidgets: pip install -e '.[lab]'")
pytest.importorskip("anywidget", reason="explorers need anywidget: pip install -e '.[lab]'")

from vqvae.data.digits import DigitsDataset
from vqvae.explorers.live import (
    CHOICES,
    USED,
    LiveTraining,
    Repeater,
    live_trainer,
    training_picture,
)
from vqvae.training.trainer import Trainer

PLAIN = {"data": "digits", "encoder": "linear", "codes": 16, "lr": 1e-3, "seed": 0,
         **{name: next(iter(CHOICES[name])) for name in CHOICES}}


def compositions():
    "Every quantizer with everything that it uses, on both encoders."
    for encoder, quantizer in itertools.product(CHOICES["encoder"], CHOICES["quantizer"]):
        names = sorted(USED[quantizer])
        for values in itertools.product(*(CHOICES[name] for name in names)):
            yield {"encoder": encoder, "quantizer": quantizer, **dict(zip(names, values))}


@pytest.mark.parametrize("chosen", list(compositions()),
                         ids=lambda chosen: ", ".join(chosen.values()))
def test_every_composition_trains(chosen):
    data = DigitsDataset()
    trainer = live_trainer(PLAIN | chosen, data)
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.fit(data, steps=2, progress=False)
    assert trainer.step == 2 and any(not torch.equal(a, b)
                                     for a, b in zip(before, trainer.model.parameters()))


@pytest.mark.parametrize("quantizer", CHOICES["quantizer"])
@pytest.mark.parametrize("data", CHOICES["data"])
def test_every_quantizer_has_a_picture(quantizer, data):
    samples = CHOICES["data"][data]()
    trainer = live_trainer(PLAIN | {"quantizer": quantizer}, samples)
    assert len(training_picture(trainer, samples).axes) == 3  # before the first step, too


def state(live): return {name: value.clone() for name, value in live.model.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def in_thread(function, *arguments):
    "Call it where no event loop runs: Playwright keeps one in the main thread."
    with ThreadPoolExecutor(1) as pool: return pool.submit(function, *arguments).result()


def made(*arguments, **choices):
    return in_thread(partial(LiveTraining, *arguments, **choices))  # it belongs to no event loop


async def until(condition):
    for _ in range(1000):
        if condition(): return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize("chosen", [
    {"revival": "none"}, {"learning": "loss"},
    {"quantizer": "Gumbel-softmax"}], ids=str)
def test_run_stop_run_is_one_run(chosen):
    live = made(every=5, **chosen)

    async def press():
        live.buttons["Run"].click()
        assert live.running and live.buttons["Run"].disabled and live.controls["codes"].disabled
        live.buttons["Run"].click()  # a second press changes nothing
        await until(lambda: live.trainer.step >= 10)
        live.buttons["Stop"].click()
        assert not live.running and not live.buttons["Run"].disabled
        step = live.trainer.step
        await asyncio.sleep(0.1)
        assert live.trainer.step == step
        live.buttons["Run"].click()
        await until(lambda: live.trainer.step >= step + 10)
        live.buttons["Stop"].click()

    in_thread(asyncio.run, press())
    data = DigitsDataset().standardized()
    options = {name: control.value for name, control in live.controls.items()}
    whole = live_trainer(options, data)
    whole.fit(data, steps=live.trainer.step, batch_size=64, progress=False)
    assert same(state(live), whole.model.state_dict())


def test_reset_and_a_changed_control_begin_anew():
    live = made(every=5)
    start = state(live)
    live.advance()
    live.buttons["Reset"].click()
    assert live.trainer.step == 0 and same(state(live), start)
    live.advance()
    live.controls["codes"].value = 8
    assert "new run" in live.status.value and live.trainer.step == 5  # nothing is lost yet

    async def press():
        live.buttons["Run"].click()
        assert live.trainer.step == 0 and live.model.quantizer.codebook_size == 8
        live.buttons["Stop"].click()

    in_thread(asyncio.run, press())


def test_controls_without_effect_are_grey():
    live = LiveTraining(quantizer="finite scalar")
    assert {name for name, control in live.controls.items() if control.disabled} == {
        "initialization",
        "estimator",
        "learning",
        "revival",
    }


def test_a_control_changed_back_continues_the_run():
    live = made(every=5)
    live.advance()
    said = live.status.value
    live.controls["codes"].value = 8
    live.controls["codes"].value = 32
    assert live.status.value == said

    async def press():
        live.buttons["Run"].click()
        assert live.trainer.step == 5
        live.buttons["Stop"].click()

    in_thread(asyncio.run, press())


def test_parts_that_do_not_fit_leave_the_last_run():
    live = made(every=5)
    live.advance()
    model, trained = live.model, state(live)
    live.controls["data"].value, live.controls["encoder"].value = "Gaussian", "convolutional"

    async def press():
        live.buttons["Run"].click()
        assert not live.running

    in_thread(asyncio.run, press())
    assert (
        "needs images" in live.status.value and live.model is model and same(state(live), trained)
    )


@pytest.mark.slow
def test_clicks_in_another_thread_never_train_twice_at_once(monkeypatch):
    """JupyterLab delivers clicks in a thread of its own, with an event loop of its own, also in the
    middle of a step."""
    fit, active, most, threads, inside = Trainer.fit, [], [], set(), threading.Event()

    def watched(trainer, *arguments, **options):
        active.append(1)
        most.append(len(active))
        threads.add(threading.get_ident())
        inside.set()
        try: return fit(trainer, *arguments, **options)
        finally: active.pop()

    monkeypatch.setattr(Trainer, "fit", watched)

    async def cell():
        live = LiveTraining(every=200)
        live.run()

        async def page():
            assert inside.wait(30)
            for button in ("Stop", "Run", "Stop", "Run"): live.buttons[button].click()
            count = len(most)
            await until(lambda: len(most) > count + 1)
            live.buttons["Reset"].click()
            assert live.trainer.step == 0 and not live.running
            await asyncio.sleep(0.3)
            assert live.trainer.step == 0  # no old task trains the new model

        await asyncio.to_thread(asyncio.run, page())
        return threading.get_ident()

    assert threads == {in_thread(asyncio.run, cell())} and max(most) == 1


def test_an_error_in_training_stops_it_and_is_shown(monkeypatch):
    live = made()
    monkeypatch.setattr(
        Trainer,
        "fit",
        lambda *_, **__: (_ for _ in ()).throw(FloatingPointError("the loss is <infinite>")),
    )

    async def press():
        live.buttons["Run"].click()
        await until(lambda: not live.running)

    in_thread(asyncio.run, press())
    assert live.status.value == "the loss is &lt;infinite&gt;" and not live.buttons["Run"].disabled


def test_an_interrupted_kernel_stops_the_loop():
    ended = []
    repeater = in_thread(Repeater, lambda: (_ for _ in ()).throw(KeyboardInterrupt), ended.append)

    async def press():
        repeater.start()
        await until(lambda: ended)

    in_thread(asyncio.run, press())
    assert ended == [None] and not repeater.running


def test_without_an_event_loop_run_says_so_and_advance_works():
    live = made(every=3)
    with pytest.raises(RuntimeError): in_thread(live.run)
    assert not live.running
    live.advance()
    assert live.trainer.step == 3


def test_a_model_of_ones_own_is_trained_and_reset():
    data = DigitsDataset()
    model = live_trainer(PLAIN, data).model
    start = {name: value.clone() for name, value in model.state_dict().items()}
    live = LiveTraining(model, data)
    live.advance(4)
    assert live.model is model and not same(state(live), start)
    live.reset()
    assert live.model is model and same(state(live), start)
    with pytest.raises(TypeError): LiveTraining(torch.nn.Linear(2, 2), data)
    with pytest.raises(TypeError): LiveTraining(model, "digits")
    for steps in (0, -1, 1.5):
        with pytest.raises((ValueError, TypeError)): live.advance(steps)
    assert live.trainer.step == 0


@pytest.mark.parametrize("wrong", [
    {"every": 0}, {"every": 2.5}, {"batch_size": -1}, {"data": "guess"}, {"codes": 1},
    {"codes": 16.5}, {"quantizer": "guess"}, {"quantizer": None}, {"steps": 3}], ids=str)
def test_wrong_arguments(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))): LiveTraining(**wrong)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"data must be one of \['digits', 'Gaussian'\]"):
        LiveTraining(data="mnist")


def test_numpy_integers_are_numbers():
    live = LiveTraining(every=np.int64(3), batch_size=np.int32(32), codes=np.int64(8))
    live.advance(np.int16(2))
    assert live.trainer.step == 2 and live.model.quantizer.codebook_size == 8


# --- closed is stopped ---

def test_a_closed_widget_stops():
    live = made(every=5)

    async def press():
        live.run()
        await until(lambda: live.trainer.step >= 5)
        live.close()
        assert not live.running
        step = live.trainer.step
        await asyncio.sleep(0.2)
        assert live.trainer.step == step
        with pytest.raises(RuntimeError, match="closed"): live.run()

    in_thread(asyncio.run, press())
    live.advance(5)  # model and trainer are still there
    assert all(control.comm is None for control in live.controls.values())


def cell_run(monkeypatch, cell, run):
    monkeypatch.setattr("vqvae.explorers.live._execution", lambda: (cell, run))


def test_a_cell_run_again_closes_what_it_made(monkeypatch):
    async def press():
        cell_run(monkeypatch, "a", "first")
        first, beside = LiveTraining(every=5), LiveTraining(every=5)  # two in one cell
        cell_run(monkeypatch, "b", "second")
        other = LiveTraining(every=5)  # another cell
        for live in (first, other): live.run()
        assert first.running and beside.comm is not None
        cell_run(monkeypatch, "a", "third")
        with pytest.raises(ValueError): LiveTraining(every=0)
        assert first.running  # a cell that fails leaves the former
        again = LiveTraining(every=5)
        assert not first.running and first.comm is beside.comm is None
        assert other.running and again.comm is not None
        other.close()

    in_thread(asyncio.run, press())


KERNEL = """
import asyncio
from vqvae.explorers import LiveTraining
try: former = live
except NameError: former = None
live = LiveTraining(every=5)
live.run()
print(None if former is None else former.running)
"""


@pytest.mark.slow
def test_a_kernel_says_which_cell_runs():
    client = pytest.importorskip("jupyter_client")
    manager, kernel = client.manager.start_new_kernel(kernel_name="python3")
    try:
        told = []
        for cell in ("a", "a", "b"):
            content = {"code": KERNEL, "silent": False, "store_history": True,
                       "user_expressions": {}, "allow_stdin": False}
            message = kernel.session.msg("execute_request", content, metadata={"cellId": cell})
            kernel.shell_channel.send(message)
            while True:
                answer = kernel.get_iopub_msg(timeout=120)
                if answer["parent_header"].get("msg_id") != message["msg_id"]: continue
                if answer["msg_type"] == "stream": told.append(answer["content"]["text"])
                assert answer["msg_type"] != "error", answer["content"]["traceback"]
                if answer["content"].get("execution_state") == "idle": break
        assert "".join(told).split() == ["None", "False", "True"]
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
