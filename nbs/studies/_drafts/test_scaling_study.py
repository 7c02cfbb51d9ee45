"""The study of scaling: its grid fits its function, and its rules learn as they say."""
import inspect
import math

import pytest
import torch

from vqvae.quantizers.learning import EMALearning
from vqvae.studies import scaling as page
from vqvae.studies.scaling import LEARNING, measure, scaling, schedule


def test_every_configuration_is_one_that_measure_takes():
    jobs = scaling.jobs()
    for job in jobs: inspect.signature(measure).bind(**job)
    assert len({tuple(sorted(job.items())) for job in jobs}) == len(jobs)
    assert {job["learning"] for job in jobs} == {*LEARNING}


@pytest.mark.parametrize("samples", [16, 256])
def test_the_growing_memory_has_no_end_in_any_length(samples):
    plan = schedule(16, "EMA", samples)
    quantizer = page._quantizer(1, 16, "EMA", plan, 0)
    assert isinstance(quantizer.learning, EMALearning)
    for step in range(1, plan.steps + 1):
        with torch.no_grad(): quantizer(torch.randn(plan.batch, 1))
        if step in (1, plan.steps):
            assert quantizer.learning._share() == pytest.approx(3 / (step + 3))


def test_only_the_loss_has_an_optimizer_with_the_step_size_asked_for():
    plan = schedule(16, "EMA", 16)
    assert page._optimizer(page._quantizer(2, 16, "EMA", plan, 0), 0.1) is None
    optimizer = page._optimizer(page._quantizer(2, 16, "loss", plan, 0), 0.1)
    assert optimizer is not None and optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("learning", LEARNING)
def test_rules_measure_named_numbers(learning):
    row = measure("gaussian", 2, 16, "sample", 0 if learning == "loss" else 10, learning, 16, 0)
    assert 0 < row["usage"] <= 1 and 1 < row["perplexity"] <= 16
    assert all(math.isfinite(value) for value in row.values())
    assert {"distortion", "distortion_start", "distortion_at_4"} <= row.keys()
