"""Runs a training: the skeleton that the training scripts share, from the launch to the pushed model."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

import rednet
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast, set_seed
from rednet.training.engine.checkpoints import checkpoints, load_newest, save_checkpoint
from rednet.training.engine.hub_folder import check_push, push
from rednet.training.engine.launch import make_accelerator
from rednet.training.engine.models import enable_checkpointing
from rednet.training.engine.optimization import average_function, check_warmup, learning_rate_factor, train_step
from rednet.training.engine.optimizers import layer_groups, make_optimizer
from rednet.training.engine.run_folder import append_log, check_inputs, check_options, only_run, truncate_log
from rednet.training.engine.trackers import start_trackers
from rednet.training.options.groups import HubOptions
from rednet.training.options.optimization import LoopOptions
from rednet.training.utils.errors import clear_errors
from rednet.training.utils.files import write_json
from rednet.training.utils.hardware import describe_hardware
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar


@dataclass
class Task:
    """The parts of a training that differ from script to script."""

    loss: Callable[[torch.nn.Module, dict], torch.Tensor]  # of a batch of the training loader, on the device
    evaluate: Callable[[torch.nn.Module], dict]  # returns the results on the evaluation set, on all processes
    save: Callable[[Path, Any, dict], None]  # writes the model and its results into a folder
    metric: str  # the key of the result, from 0 to 1, that decides which model is `best`
    metric_name: str  # its name for people
    # The number of items that `loss` is the mean of, if batches have different numbers of them.
    count_items: Callable[[dict], torch.Tensor] | None = None
    frozen: list[torch.nn.Module] = field(default_factory=list)  # modules that stay in evaluation mode


class BatchOrder(Protocol):
    """The batch sampler of a training loader."""

    num_images: int  # of an epoch
    global_batch: int  # images of one batch of all processes together

    def __len__(self) -> int: ...

    def begin(self, epoch: int, position: int) -> None:
        """The next iteration goes over `epoch`, from the image at `position` on."""


class Progress:
    """The state of a run that Accelerate does not save by itself."""

    def __init__(self, total_steps: int) -> None:
        self.epoch = 0
        self.position = 0  # images of the epoch that all processes together have seen
        self.step = 0  # optimizer steps
        self.total_steps = total_steps  # of the whole run
        self.losses: list[float] = []  # of the steps since the last line of the log, means over all processes
        self.log_lines = 0
        self.best = -1.0  # of the task's metric
        self.seconds: dict[str, float] = {}  # of training, by hardware: a run may resume on another machine

    def add_seconds(self, hardware: str, seconds: float) -> None:
        self.seconds = {**self.seconds, hardware: self.seconds.get(hardware, 0.0) + seconds}

    def state_dict(self) -> dict:
        return vars(self).copy()

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


@dataclass
class Run:
    """The objects of a run."""

    config: LoopOptions
    accelerator: Accelerator
    loader: DataLoader
    order: BatchOrder  # of the loader
    model: torch.nn.Module
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    task: Task
    progress: Progress
    bar: tqdm

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)


def run_training(
    config: LoopOptions, build: Callable[[Accelerator], tuple[torch.nn.Module, Task, DataLoader]]
) -> None:
    """Trains from the newest checkpoint on, or from the start, and pushes the last model if the options ask for it.

    Args:
        build: returns the model, the task and the loader of training batches. Its ValueErrors and OSErrors end the
            script with their message.
    """
    disable_progress_bar()  # of loading and saving weights: the training has its own
    accelerator = make_accelerator(config)
    check_options(config.output_dir, asdict(config), asdict(type(config)()))
    hub = config if isinstance(config, HubOptions) and config.push_to_hub and accelerator.is_main_process else None
    if hub is not None:
        check_push(config.output_dir, hub)
    set_seed(config.seed)
    with clear_errors():
        model, task, loader = build(accelerator)
    with only_run(accelerator, Path(config.output_dir)):
        train(prepare(config, accelerator, model, task, loader))
        accelerator.end_training()  # closes the logs of the trackers, which are pushed
        if hub is not None:
            push(Path(config.output_dir, "last"), hub)


def prepare(
    config: LoopOptions, accelerator: Accelerator, model: torch.nn.Module, task: Task, loader: DataLoader
) -> Run:
    """Moves the model to the device, creates optimizer and schedule, and loads the newest checkpoint."""
    folder, order = Path(config.output_dir), cast(BatchOrder, loader.batch_sampler)
    record_start(config, accelerator, order, model)
    if config.sync_batch_norm:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(accelerator.device)
    if accelerator.distributed_type == DistributedType.FSDP:  # supports contiguous weights only
        # Accelerate calls it; Transformers raises an error.
        model.get_input_embeddings = lambda: None  # type: ignore[assignment]
    else:
        model.to(memory_format=torch.channels_last)
    ema = None
    if config.ema_decay is not None:
        # The statistics of BatchNorm are averaged too: those of the last weights would not fit the average.
        average = average_function(config.ema_decay, config.ema_warmup)
        ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        accelerator.register_for_checkpointing(ema)
    if config.gradient_checkpointing:
        rednets = (module for module in model.modules() if isinstance(module, rednet.RedNetPreTrainedModel))
        enable_checkpointing(next(rednets))
    if config.torch_compile:
        model.compile()
    optimizer = make_optimizer(layer_groups(model, config), config)
    model, optimizer = accelerator.prepare(model, optimizer)

    steps_per_epoch = math.ceil(len(order) / config.gradient_accumulation_steps)
    total_steps = config.max_train_steps or config.num_train_epochs * steps_per_epoch
    check_warmup(config, total_steps)
    # Not prepared: Accelerate would step it once for every process.
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, total_steps, config)
    )
    progress = Progress(total_steps)
    accelerator.register_for_checkpointing(scheduler, progress)
    if newest := load_newest(accelerator, folder / "checkpoints"):
        accelerator.print(f"Resuming from step {progress.step}, epoch {progress.epoch} ({newest})")
    if accelerator.is_main_process:
        truncate_log(folder / "log.jsonl", progress.log_lines)
    # Trackers accept numbers and strings, but no lists.
    options = {name: str(value) for name, value in asdict(config).items()}
    start_trackers(accelerator, folder, options, progress.step)
    bar = tqdm(
        total=progress.total_steps,
        initial=progress.step,
        unit="step",
        disable=not accelerator.is_local_main_process,
    )
    return Run(config, accelerator, loader, order, model, ema, optimizer, scheduler, task, progress, bar)


def record_start(config: LoopOptions, accelerator: Accelerator, order: BatchOrder, model: torch.nn.Module) -> None:
    """Compares inputs.json of a resumed run with this start, and writes it and options.json."""
    folder = Path(config.output_dir)
    with clear_errors():
        inputs = check_inputs(config.output_dir, order.num_images, accelerator.num_processes, model)
    accelerator.wait_for_everyone()  # before the files change that all processes check
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "options.json", asdict(config))
        write_json(folder / "inputs.json", inputs)


def train(run: Run) -> None:
    """Trains to the end with evaluations and checkpoints in between. Writes `best`, `last` and results.json."""
    config, accelerator, progress, task = run.config, run.accelerator, run.progress, run.task
    trained = run.model if run.ema is None else run.ema.module
    results: dict = {}
    # A position above 0 after the last step: the run was killed before the evaluation that follows it.
    while progress.step < progress.total_steps or progress.position > 0:
        train_epoch(run)
        if progress.epoch % config.eval_epochs == 0 or progress.step >= progress.total_steps:
            # Each process has the BatchNorm statistics of its own batches. All evaluate with those of the main
            # process, because those are saved.
            broadcast(list(trained.buffers()))
            results = task.evaluate(trained)
            log(run, {"epoch": progress.epoch, **results})
            run.bar.write(f"epoch {progress.epoch}: {task.metric_name} {100 * results[task.metric]:.2f} %")
            if results[task.metric] > progress.best:
                progress.best = results[task.metric]
                save(run, "best", trained, results)
        if config.checkpointing_steps == "epoch" or progress.step >= progress.total_steps:
            save_checkpoint(accelerator, run.folder / "checkpoints", progress.step, config.checkpoints_total_limit)
    run.bar.close()

    results = results or task.evaluate(trained)
    save(run, "last", trained, results)
    if accelerator.is_main_process:
        results |= {f"best_{task.metric}": progress.best, "steps": progress.step, "epochs": progress.epoch}
        results |= {"train_seconds": round(sum(progress.seconds.values()), 1), "train_samples": run.order.num_images}
        results |= {"parameters": rednet.count_parameters(trained), "threads": torch.get_num_threads()}
        results |= {"device": str(accelerator.device), "torch": torch.__version__}
        write_json(run.folder / "results.json", results)
        print(
            f"{task.metric_name} {100 * results[task.metric]:.2f} % on {results['eval_samples']} images -> "
            f"{run.folder}/last"
        )


class Stopwatch:
    """Adds the seconds of training to `progress`."""

    def __init__(self, progress: Progress, hardware: str) -> None:
        self.progress, self.hardware = progress, hardware
        self.start()

    def start(self) -> None:
        self.started = time.perf_counter()

    def lap(self) -> float:
        """Adds the seconds since the start or the last lap, and returns them."""
        seconds = time.perf_counter() - self.started
        self.start()
        self.progress.add_seconds(self.hardware, seconds)
        return seconds


def train_epoch(run: Run) -> None:
    """Trains from the current position to the end of the epoch or of the run.

    Raises:
        FloatingPointError: a loss, a weight or a statistic is not finite.
    """
    config, accelerator, progress, total = run.config, run.accelerator, run.progress, run.progress.total_steps
    run.model.train()
    for module in run.task.frozen:
        module.eval()
    run.order.begin(progress.epoch, progress.position)
    batches = iter(run.loader)
    hardware = describe_hardware(accelerator.device, accelerator.num_processes)
    stopwatch, seconds, images = Stopwatch(progress, hardware), 0.0, 0
    unread: list[torch.Tensor] = []
    while progress.step < total and (left := len(run.order) - progress.position // run.order.global_batch):
        count = min(config.gradient_accumulation_steps, left)
        loss, grad_norm = train_step(
            accelerator,
            run.model,
            run.optimizer,
            islice(batches, count),
            count,
            config,
            run.task.loss,
            progress.step,
            run.task.count_items,
        )
        run.scheduler.step()
        if run.ema is not None:
            run.ema.update_parameters(accelerator.unwrap_model(run.model))
        unread.append(loss)
        seen = count * run.order.global_batch
        images += seen
        progress.position += seen
        progress.step += 1
        run.bar.update()

        if progress.step % config.logging_steps == 0 or progress.step == total:
            read_losses(run, unread)
            seconds += stopwatch.lap()
            values = {"loss": math.fsum(progress.losses) / len(progress.losses)}
            values |= {"learning_rate": float(run.scheduler.get_last_lr()[0]), "images_per_second": images / seconds}
            if grad_norm is not None:
                values["grad_norm"] = float(grad_norm)
            log(run, values)
            run.bar.set_postfix(loss=f"{values['loss']:.3f}", images_per_s=f"{images / seconds:.0f}")
            progress.losses.clear()
            seconds, images = 0.0, 0
        if config.checkpointing_steps != "epoch" and progress.step % int(config.checkpointing_steps) == 0:
            read_losses(run, unread)
            check_weights(run)
            seconds += stopwatch.lap()
            save_checkpoint(accelerator, run.folder / "checkpoints", progress.step, config.checkpoints_total_limit)
            stopwatch.start()
    read_losses(run, unread)
    check_weights(run)
    stopwatch.lap()
    progress.epoch, progress.position = progress.epoch + 1, 0


def read_losses(run: Run, unread: list[torch.Tensor]) -> None:
    """Moves the losses of the last steps, averaged over the processes, to `progress`.

    This waits for the GPU, so it happens every few steps only, and before anything is written.

    Raises:
        FloatingPointError: a loss is not finite. The message names its step and the last good checkpoint.
    """
    if unread:
        means = run.accelerator.reduce(torch.stack(unread), "mean").tolist()
        unread.clear()
        for step, mean in enumerate(means, run.progress.step - len(means) + 1):
            if not math.isfinite(mean):
                stop(run, f"the loss is {mean} at step {step}")
        run.progress.losses += means


def check_weights(run: Run) -> None:
    """Raises FloatingPointError if a weight or a statistic is not finite. The loss would show it one step later."""
    tensors = [t.detach() for t in (*run.model.parameters(), *run.model.buffers()) if t.is_floating_point()]
    tensors = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]  # the shards of FSDP
    wrong = torch.stack([~t.isfinite().all() for t in tensors]).any().float()
    if run.accelerator.reduce(wrong, "sum"):
        stop(run, f"weights are not finite after step {run.progress.step}")


def stop(run: Run, problem: str) -> None:
    saved = checkpoints(run.folder / "checkpoints")
    raise FloatingPointError(
        f"{problem}. The last checkpoint before it is {saved[-1] if saved else 'none'}; nothing was written since. "
        "Use a lower learning rate or --max_grad_norm 1, and another --output_dir"
    )


def log(run: Run, values: dict) -> None:
    """Appends a line to log.jsonl and sends its values to the trackers."""
    run.progress.log_lines += 1
    run.accelerator.log(values, step=run.progress.step)
    if run.accelerator.is_main_process:
        append_log(run.folder / "log.jsonl", {"step": run.progress.step, **values})


def save(run: Run, name: str, model: torch.nn.Module, results: dict) -> None:
    """Saves the model as the folder `name` of the run."""
    run.accelerator.wait_for_everyone()
    plain = run.accelerator.unwrap_model(model)
    if run.accelerator.distributed_type == DistributedType.FSDP:
        weights = run.accelerator.get_state_dict(model)  # collected from all processes, whole on the main process
        plain = getattr(rednet, type(plain).__name__.removeprefix("FSDP"))(plain.config)
        plain.load_state_dict(weights, strict=run.accelerator.is_main_process)
    if run.accelerator.is_main_process:
        run.task.save(run.folder / name, plain, results | {"seconds_by_hardware": run.progress.seconds})
