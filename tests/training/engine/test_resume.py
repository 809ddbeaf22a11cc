"""Killed and resumed runs end with the same bits as uninterrupted ones."""

import json
import shutil
import struct

import pytest
from rednet.training.engine.checkpoints import checkpoints, damage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from processes import Training
from runs import assert_same


SHORT = {"max_train_samples": 240, "max_eval_samples": 60, "num_train_epochs": 2}
SHORT |= {"checkpointing_steps": "3", "logging_steps": 5}
RANDOM = {"color_jitter": 0.3, "auto_augment": "rand-m5-mstd0.5-inc1", "mixup_alpha": 0.2, "cutmix_alpha": 1.0}
RANDOM |= {"random_erase_prob": 0.5, "interpolation": "random", "mixup_prob": 0.8, "ema_decay": 0.9}
KINDS = {
    "files": {**SHORT, **RANDOM, "repeated_augmentation": 3, "train_image_size": [6, 8], "mixup_off_epoch": 1},
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


def logged(folder):
    """The lines of a log."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def kill_after_checkpoint(root, folder, arguments, **environment):
    """Starts a run that logs every step, and kills it some steps after its second checkpoint. Returns the step of the
    checkpoint."""
    arguments = [*arguments, str(folder), "--checkpointing_steps", "5", "--logging_steps", "1"]
    training = Training(root, folder.with_suffix(".txt"), arguments, **environment)
    training.kill_when(lambda: len(logged(folder)) > 11)
    newest = [path for path in checkpoints(folder / "checkpoints") if damage(path) is None][-1]
    return int(newest.name.split("_")[1])


@pytest.mark.parametrize("uninterrupted", ["files"], indirect=True)
def test_resumed_with_other_options(root, uninterrupted, digits, tmp_path):
    """A moved run on moved data, with other intervals and limits, ends with the same weights. TensorBoard has every line
    of its log once."""
    arguments, expected = uninterrupted
    arguments = [*arguments[:-1], "--report_to", "tensorboard", arguments[-1]]
    step = kill_after_checkpoint(root, tmp_path / "before", arguments)
    assert logged(tmp_path / "before")[-1]["step"] > step
    (tmp_path / "before").rename(tmp_path / "run")
    shutil.copytree(digits, tmp_path / "digits")
    more = ["--eval_epochs", "2", "--logging_steps", "2", "--checkpointing_steps", "epoch"]
    more += ["--checkpoints_total_limit", "1", "--dataset_name", str(tmp_path / "digits")]
    training = Training(root, tmp_path / "run.txt", [*arguments, str(tmp_path / "run"), *more])
    assert training.wait() == 0, training.text()
    assert f"Resuming from step {step}," in training.text()
    weights = [(folder / "last/model.safetensors").read_bytes() for folder in (tmp_path / "run", expected)]
    assert weights[0] == weights[1]
    log = logged(tmp_path / "run")
    steps = [entry["step"] for entry in log if "loss" in entry]
    assert steps == [n for n in range(1, 25) if n <= step or n % 2 == 0]
    events = EventAccumulator(str(tmp_path / "run/runs/rednet"))
    events.Reload()
    for name in ("loss", "eval_accuracy"):
        values = [(entry["step"], pytest.approx(entry[name])) for entry in log if name in entry]
        assert [(event.step, event.value) for event in events.Scalars(name)] == values
    assert len(list((tmp_path / "run/runs/rednet").glob("*/hparams.yml"))) == 1


@pytest.mark.parametrize("uninterrupted", ["files"], indirect=True)
def test_wandb_continues_its_run(root, uninterrupted, tmp_path):
    """Both parts of a run have the id of its file `run_id`."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    arguments = [*uninterrupted[0][:-1], "--report_to", "wandb", uninterrupted[0][-1]]
    environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    kill_after_checkpoint(root, tmp_path / "run", arguments, **environment)
    training = Training(root, tmp_path / "run.txt", [*arguments, str(tmp_path / "run")], **environment)
    assert training.wait() == 0, training.text()
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        records = [Record.FromString(data) for data in wandb_records(file.read_bytes())]
        assert {r.run.run_id for r in records if r.HasField("run")} == {(tmp_path / "run/run_id").read_text().strip()}
        options = {u.key: json.loads(u.value_json) for r in records for u in r.config.update}
        assert options["output_dir"] == str(tmp_path / "run") and options["learning_rate"] == "0.2"


def wandb_records(data, block=32768):
    """The records of a file of W&B, a log of LevelDB: blocks of parts, each after a header of checksum, length and
    type (whole, first, middle, last)."""
    record, position = b"", 7  # after the signature
    while position + 7 <= len(data):
        if block - position % block < 7:  # too little for a header
            position += block - position % block
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4) and position <= len(data):  # the last part of a killed run may be incomplete
            yield record
            record = b""


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
