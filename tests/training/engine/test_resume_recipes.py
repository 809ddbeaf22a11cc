"""The states of today's recipes resume: of the optimizers, the averages with warm-up, stochastic depth and a teacher."""

import io
import json

import pytest
import torch
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.training.engine.optimizers import layer_groups, make_optimizer
from rednet.training.options.scripts import TrainingConfig
from safetensors.torch import load_file
from transformers import ConvNextImageProcessor

from processes import Training
from runs import assert_same
from small_models import random_images, small_model


RECIPE = {
    "optimizer": "lamb",
    "learning_rate": 0.005,
    "min_learning_rate": 1e-4,
    "warmup_type": "linear",
    "weight_decay": 0.02,
    "no_decay_on_norm_and_bias": True,
    "layer_decay": 0.8,
    "frozen_stages": 0,
    "clip_mode": "agc",
    "max_grad_norm": 0.05,
    "ema_decay": 0.9,
    "ema_warmup": True,
    "drop_path_rate": 0.5,
    "gradient_checkpointing": True,
    "loss": "bce",
    "bce_target_thresh": 0.2,
    "mixup_alpha": 0.2,
    "distillation_alpha": 0.3,
}
SHORT = {"max_train_samples": 160, "max_eval_samples": 40, "num_train_epochs": 2, "checkpointing_steps": "3"}


def test_killed_run_of_a_recipe(root, options, tmp_path):
    """The weights, the log and the results are those of the run that was not killed. The frozen stem stays as it was."""
    torch.manual_seed(0)
    config = RedNetConfig.from_pretrained(options[1]["config_name"])
    teacher = RedNetForImageClassification(config)
    teacher.save_pretrained(tmp_path / "teacher")
    ConvNextImageProcessor(size={"shortest_edge": 12}, crop_pct=1.0).save_pretrained(tmp_path / "teacher")
    start = {"model_name_or_path": str(tmp_path / "teacher"), "config_name": None, "ignore_mismatched_sizes": True}
    values = {**options[1], **SHORT, **RECIPE, **start, "teacher_model_name_or_path": str(tmp_path / "teacher")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    arguments = ["--config", str(tmp_path / "recipe.yaml"), "--output_dir"]
    checkpoints = tmp_path / "run/checkpoints"
    Training(root, tmp_path / "run.txt", [*arguments, str(tmp_path / "run")]).kill_when(
        lambda: (checkpoints / "step_00000006").exists()
    )
    for name in ("run", "whole"):
        training = Training(root, tmp_path / f"{name}.txt", [*arguments, str(tmp_path / name)])
        assert training.wait() == 0, training.text()
        assert ("Resuming from step" in training.text()) is (name == "run")
    assert_same(tmp_path / "run", tmp_path / "whole")

    before, after = teacher.state_dict(), load_file(tmp_path / "run/last/model.safetensors")
    for name, value in after.items():
        if value.is_floating_point() and "normalization" not in name:
            frozen = name.startswith("rednet.embedder.")
            assert torch.allclose(value, before[name], rtol=1e-6) is frozen, name
    saved = json.loads((tmp_path / "run/last/config.json").read_text())
    assert saved["drop_path_rate"] == 0.5
    card = (tmp_path / "run/last/README.md").read_text()
    assert (
        "LAMB, 2 epochs" in card
        and "binary cross-entropy, label smoothing 0.1, soft distillation from teacher" in card
    )


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_a_saved_optimizer_takes_the_same_steps(name):
    """Two steps, the state through a file, and two more, to the bit as four steps."""
    config = TrainingConfig(optimizer=name, learning_rate=0.01, layer_decay=0.7, no_decay_on_norm_and_bias=True)
    images, labels = random_images(4, 3, 32, 32), torch.arange(4)
    results = []
    for interrupted in (False, True):
        model = small_model(hidden_sizes=[64], depths=[1])
        optimizer = make_optimizer(layer_groups(model, config), config)
        for step in range(4):
            if step == 2 and interrupted:
                file = io.BytesIO()
                torch.save((model.state_dict(), optimizer.state_dict()), file)
                file.seek(0)
                weights, state = torch.load(file)
                model = small_model(seed=1, hidden_sizes=[64], depths=[1])
                model.load_state_dict(weights)
                optimizer = make_optimizer(layer_groups(model, config), config)
                optimizer.load_state_dict(state)
            model(images, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
