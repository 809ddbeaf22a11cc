"""The files that a run writes next to its checkpoints and models: options.json, log.jsonl, results.json."""

import json
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator, PartialState
from rednet.hub import check_replaceable
from rednet.loading import read_object
from rednet.training.options.resumable import PATH_OPTIONS, RESUMABLE_OPTIONS
from rednet.training.utils.distributed import check_on_main_process
from rednet.training.utils.errors import clear_errors
from rednet.training.utils.files import locked, to_json, write_text


@contextmanager
def only_run(state: Accelerator | PartialState, folder: Path) -> Iterator[None]:
    """
    Creates `folder`, and refuses a second run that would write to it at the same time, for example of the same command.

    A run on several machines is not protected: after the loss of a machine, a network disk may keep its lock for minutes.

    Raises:
        SystemExit: another run writes to `folder`.
    """
    with ExitStack() as stack:
        if int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)) == state.num_processes:
            with clear_errors():
                check_on_main_process(state, stack.enter_context, locked(folder))
        yield


def check_options(
    output_dir: str, options: dict, defaults: dict, resumable: Collection[str] = RESUMABLE_OPTIONS
) -> None:
    """
    Checks before anything is computed that the run can write to `output_dir`.

    Args:
        options: of this run, as options.json has them.
        defaults: of options that options.json may lack: it had only those that its version knew.
        resumable: the options that a resumed run may change, besides paths.

    Raises:
        SystemExit: the folder belongs to a run with other options, options.json is damaged, or there are files where the
            models will be saved.
    """
    try:
        for name in ("best", "last"):
            check_replaceable(Path(output_dir, name))
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    path = Path(output_dir) / "options.json"
    if not path.exists():
        return
    with clear_errors():
        recorded = read_object(path)
    now, before = (json.loads(to_json({**defaults, **values})) for values in (options, recorded))
    changed = {
        name: f"{name} {before.get(name)!r} -> {now.get(name)!r}"
        for name in {**now, **before}
        if now.get(name) != before.get(name)
        and name not in resumable
        and not (name in PATH_OPTIONS and now.get(name) and before.get(name))
    }
    if changed:
        paths = ", ".join(sorted(PATH_OPTIONS & now.keys()))
        raise SystemExit(
            f"error: {output_dir} belongs to a run with other options ({', '.join(changed.values())}), and "
            f"{'this changes' if len(changed) == 1 else 'these change'} its weights or its results. A resumed run may "
            f"change {', '.join(sorted(set(resumable) & now.keys()))}, and the paths of the same files ({paths}). Choose "
            "another --output_dir, or remove the folder"
        )


def check_inputs(output_dir: str, train_samples: int, num_processes: int, model: object) -> dict:
    """
    Checks that a resumed run has the training images, the number of processes and the architecture that it started with.
    Its paths may change.

    Args:
        num_processes: it may change only if the run has results, and is evaluated but not trained.
        model: with the `config` of a Transformers model, which has the names of the classes, or without one.

    Returns:
        What inputs.json in `output_dir` records.

    Raises:
        ValueError: the number of images or of processes, the classes or the architecture differ.
    """
    config = getattr(model, "config", None)
    architecture = {} if config is None else json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "transformers_version", "dtype"):
        architecture.pop(name, None)
    inputs = {"train_samples": train_samples, "processes": num_processes, "architecture": architecture}
    path = Path(output_dir) / "inputs.json"
    if not path.exists():  # a new run, or one that was started by an older version
        return inputs
    before = read_object(path)
    differences = [f"{before['train_samples']} -> {train_samples} training images"]
    differences *= before["train_samples"] != train_samples
    started_on = before.get("processes", num_processes)  # an older version did not record it
    if started_on != num_processes and not (Path(output_dir) / "results.json").exists():
        differences.append(f"{started_on} -> {num_processes} processes")
    old = before["architecture"]  # another release of Transformers has other options
    differences += [
        f"{name} {old[name]!r:.200} -> {architecture[name]!r:.200}"
        for name in old.keys() & architecture.keys()
        if old[name] != architecture[name]
    ]
    if differences:
        raise ValueError(
            f"{output_dir} belongs to a run on other data, on another number of processes or with another architecture "
            f"({', '.join(differences)}). Its paths may change, but not the files in them"
        )
    return inputs | {"processes": started_on}


def append_log(path: Path, values: dict) -> None:
    with open(path, "a") as file:
        file.write(to_json(values) + "\n")


def truncate_log(path: Path, lines: int) -> None:
    """Keeps the first `lines` lines. A resumed run logs again what came after its checkpoint."""
    if path.exists():
        write_text(path, "".join(path.read_text().splitlines(True)[:lines]))
