"""Killed and resumed runs end with the same bits as uninterrupted ones."""

import json
import shutil

import pytest
from rednet.training.engine.checkpoints import damage

from processes import Training
from runs import assert_same


SHORT = {"max_train_samples": 240, "max_eval_samples": 60, "num_train_epochs": 2}
SHORT |= {"checkpointing_steps": "3", "logging_steps": 5}
RANDOM = {"color_jitter": 0.3, "rand_augment_magnitude": 5, "mixup_alpha": 0.2, "cutmix_alpha": 1.0, "ema_decay": 0.9}
KINDS = {
    "files": {**SHORT, **RANDOM},
    "stream": {
        **SHORT,
        **RANDOM,
        "streaming": True,
        "shuffle_buffer_size": 64,
        "gradient_accumulation_steps": 5,
        "image_column_name": "png",
        "label_column_name": "cls",
    },
}


@pytest.fixture(scope="module", params=KINDS)
def uninterrupted(request, root, options, digit_archives, tmp_path_factory):
    """Arguments of a training, and the folder of an uninterrupted run without loader workers."""
    folder = tmp_path_factory.mktemp(request.param)
    values = {**options[1], **KINDS[request.param]}
    if request.param == "stream":
        values["dataset_name"] = str(digit_archives)
    (folder / "options.yaml").write_text(json.dumps(values))
    arguments = ["--config", str(folder / "options.yaml"), "--output_dir"]
    training = Training(root, folder / "run.txt", [*arguments, str(folder / "run")])
    assert training.wait() == 0, training.text()
    return arguments, folder / "run"


def test_killed_at_any_moment(root, uninterrupted, tmp_path):
    """While a checkpoint is written, between checkpoints, after an evaluation, after the last step; resumed with loader
    workers."""
    arguments, expected = uninterrupted
    checkpoints, folder = tmp_path / "run/checkpoints", tmp_path / "run"

    steps = json.loads((expected / "results.json").read_text())["steps"]

    def between():
        log = folder / "log.jsonl"
        return list(checkpoints.glob("step_*")) and log.exists() and not (checkpoints / ".new").exists()

    moments = [
        (lambda: (checkpoints / ".new/optimizer.bin").exists(), 0),  # the first checkpoint, half written
        (between, 2),
        (lambda: (folder / "best").exists(), 0),  # after the first evaluation, before its checkpoint
        (lambda: (checkpoints / f"step_{steps:08}").exists(), 0),  # after the last step, before its evaluation
    ]
    for moment, workers in moments:
        more = [str(folder), "--dataloader_num_workers", str(workers)]
        Training(root, tmp_path / "run.txt", [*arguments, *more]).kill_when(moment)
        assert not (folder / "results.json").exists()
    training = Training(root, tmp_path / "run.txt", [*arguments, str(folder), "--dataloader_num_workers", "1"])
    assert training.wait() == 0, training.text()
    assert "Resuming from step" in training.text()
    assert_same(folder, expected)
    assert len(list(checkpoints.iterdir())) == 2


@pytest.mark.parametrize("harm", ["truncated", "missing", "unfinished"])
def test_a_damaged_checkpoint_is_skipped(root, uninterrupted, tmp_path, harm):
    """The newest of two is damaged: the run warns, resumes from the other one, and replaces it."""
    arguments, expected = uninterrupted
    shutil.copytree(expected, tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    older, newest = sorted((tmp_path / "run/checkpoints").iterdir())
    weights = newest / "model.safetensors"
    if harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif harm == "missing":
        weights.unlink()
    else:  # its removal was interrupted
        (newest / "check_sums.json").unlink()
    training = Training(root, tmp_path / "run.txt", [*arguments, str(tmp_path / "run")])
    assert training.wait() == 0, training.text()
    assert f"{newest} is damaged and skipped" in training.text() and f"({older})" in training.text()
    assert_same(tmp_path / "run", expected)
    assert sorted((tmp_path / "run/checkpoints").iterdir()) == [older, newest] and damage(newest) is None
