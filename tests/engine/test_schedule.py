"""The learning rate by hand, and the configuration's profiles."""

import dataclasses
import json

import pytest

from zoominnet.config import PROFILES, ConfigError, TrainConfig
from zoominnet.engine.optim import Schedule


def test_the_papers_schedule() -> None:
    """6471 images in batches of 4: 1618 steps an epoch; 0.001 to 0.01 in 500 steps; x 0.2 after epochs 7 and 15."""
    schedule = Schedule.from_config(PROFILES["paper"], steps_per_epoch=1618, epochs=20)
    assert schedule.at(0) == pytest.approx(0.001)
    assert schedule.at(250) == pytest.approx(0.0055)
    assert schedule.at(500) == 0.01
    assert schedule.at(7 * 1618 - 1) == 0.01
    assert schedule.at(7 * 1618) == pytest.approx(0.002)
    assert schedule.at(15 * 1618 - 1) == pytest.approx(0.002)
    assert schedule.at(15 * 1618) == pytest.approx(0.0004)
    assert schedule.total_steps == 20 * 1618


def test_the_authors_configurations() -> None:
    schedule = Schedule.from_config(PROFILES["repo"], steps_per_epoch=1618, epochs=20)
    assert schedule.at(0) == pytest.approx(1e-5)
    assert schedule.at(7 * 1618) == pytest.approx(0.001)


def test_short_runs_warm_up_for_a_tenth() -> None:
    config = dataclasses.replace(PROFILES["paper"], max_steps=100)
    schedule = Schedule.from_config(config, steps_per_epoch=80, epochs=5)
    assert (schedule.total_steps, schedule.warmup_steps, schedule.decay_steps) == (100, 10, (35, 75))
    assert Schedule.from_config(dataclasses.replace(config, max_steps=3), 80, 5).at(0) == 0.01


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_usable_and_named(name: str) -> None:
    config = PROFILES[name]  # type: ignore[index]
    config.check()
    assert config.profile == name
    json.dumps(config.as_dict())


def test_what_profiles_differ_in() -> None:
    paper, wang = PROFILES["paper"], PROFILES["wang2019"]
    assert (paper.lambda_distill, paper.mask_threshold, paper.distill_divisor) == (0.01, "adaptive", 1.0)
    assert (wang.mask_threshold, wang.distill_divisor, wang.distill_warmup_steps) == (0.5, 2.0, 400)
    assert (paper.ignored, PROFILES["demo"].ignored) == ("drop", "honour")
    assert (paper.assigner, PROFILES["repo"].assigner) == ("max-iou", "max-iou-own")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "--lr: -1.0 is not positive"),
        ({"lr": float("nan")}, "--lr: nan is not positive"),
        ({"momentum": 1.0}, r"--momentum: 1.0 is not in \[0, 1\)"),
        ({"decay_at": (0.7, 0.3)}, "--decay-at"),
        ({"workers": -1}, "--workers: -1 is negative"),
        ({"mask_scope": "all", "mask_boxes": "best-level"}, "exclude each other"),
        ({"clip_grad_norm": 0.0}, "--clip-grad-norm: 0.0 is not positive"),
        ({"ema": 1.0}, "--ema: 1.0 is not over 0 and below 1"),
        ({"max_steps": 0}, "--max-steps: 0 is not at least 1"),
        ({"image_size": 100}, "--image-size: 100 is not a multiple of 32"),
        (
            {"image_size": 96, "student": "la"},
            "--image-size: 96 is not a multiple of 128, as distillation into 'la' needs",
        ),
        ({"mask_threshold": 1.5}, r"--mask-threshold: 1.5 is not in \(0, 1\)"),
        ({"synthetic_images": (3, 0)}, r"--synthetic-images: \(3, 0\) are not both at least 1"),
        ({"distill_losses": ()}, "--distill-losses: .* are not one or more losses, each named once"),
        ({"distill_losses": (("pa-l2", 0.0),)}, "--distill-losses: .* have a factor that is not positive"),
        ({"seed": 2**63}, f"--seed: {2**63} is not below"),
    ],
)
def test_values_that_no_run_can_use(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PROFILES["paper"], **change).check()


def test_what_a_resumed_run_may_change() -> None:
    paper = PROFILES["paper"]
    other = dataclasses.replace(
        paper, workers=7, device="cpu", out="elsewhere", resume=True, debug=True, lr=0.5, seed=3
    )
    assert other.changes_from(paper) == ["--lr (was 0.01, is 0.5)", "--seed (was 0, is 3)"]
    assert paper.changes_from(paper) == []


def test_a_configuration_comes_back_from_its_json() -> None:
    config = dataclasses.replace(PROFILES["demo"], decay_at=(0.5,), distill_losses=(("pa-l2", 2.0),))
    assert TrainConfig(**json.loads(json.dumps(config.as_dict()))) == config
