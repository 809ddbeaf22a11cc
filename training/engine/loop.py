"""The loop that the training scripts share: steps, schedule, evaluations, checkpoints, log, and what is left."""

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import psutil
import rednet
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType, broadcast, get_int_from_env, send_to_device
from rednet.training.engine.checkpoints import checkpoints, load_newest, save_checkpoint
from rednet.training.engine.run_folder import append_log, shorten_log
from rednet.training.options.groups import ComputeOptions, LoopOptions, OptimizationOptions
from rednet.training.utils.cpus import available_cpus
from rednet.training.utils.files import write_json
from rednet.training.utils.randomness import seeded
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm


@dataclass
class Task:
    """What a script trains for."""

    loss: Callable[[torch.nn.Module, dict], torch.Tensor]  # of a batch of the training loader, on the device
    evaluate: Callable[[torch.nn.Module], dict]  # the results on all images to evaluate on, on all processes
    save: Callable[[Path, torch.nn.Module, dict], None]  # puts the model, with its results, into a folder
    metric: str  # of the results, from 0 to 1: the model with the highest becomes `best`
    metric_name: str  # as people call it
    # Of a batch, how many things `loss` is the mean of, where batches have different numbers of them.
    weigh: Callable[[dict], torch.Tensor] | None = None


class Progress:
    """What of a run Accelerate does not save by itself: where it is, and what it has seen."""

    def __init__(self) -> None:
        self.epoch = 0
        self.position = 0  # images of the epoch, of all processes together
        self.step = 0  # optimizer steps
        self.losses = []  # of the steps since the last line of the log, means over all processes
        self.log_lines = 0
        self.best = -1.0  # of the task's metric
        self.seconds = 0.0

    def state_dict(self) -> dict:
        return vars(self).copy()

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


@dataclass
class Run:
    """All that the functions below work on."""

    config: LoopOptions
    accelerator: Accelerator
    model: torch.nn.Module
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    task: Task
    progress: Progress
    total_steps: int
    bar: tqdm

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)


def make_accelerator(config: LoopOptions) -> Accelerator:
    """Without accumulation of its own: it divides by the number of batches even where an epoch ends with fewer."""
    check_trackers(config.report_to)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=config.report_to.split(",") if config.report_to else None,
        project_dir=config.output_dir,
    )
    check_processes(accelerator.num_processes)
    if accelerator.gradient_accumulation_steps != 1:
        raise SystemExit("error: give --gradient_accumulation_steps to the script, not to accelerate launch")
    check_precision(config)
    if config.sync_batch_norm and accelerator.device.type == "cpu":
        raise SystemExit("error: --sync_batch_norm: torch has it for GPUs only, this process runs on the CPU")
    if config.ema_decay is not None and accelerator.distributed_type == DistributedType.FSDP:
        raise SystemExit("error: --ema_decay needs whole weights on every process: not with FSDP")
    set_threads(accelerator.device)
    return accelerator


@torch.no_grad()
def check_batch_norm(model: torch.nn.Module, batch_size: int, size: tuple[int, int]) -> None:
    """
    Args:
        model: a RedNet with a task, before training.
        size: height and width of the images.

    Raises:
        ValueError: BatchNorm would see a single value of each channel, of which there are no statistics.
    """
    if batch_size == 1 and is_one_pixel(model, size):
        raise ValueError(
            f"the model's last map has 1 x 1 pixels where images have {size[0]} x {size[1]}: BatchNorm cannot train on a "
            "batch of one image. Give a --per_device_train_batch_size of at least 2, or larger images"
        )


@torch.no_grad()
def is_one_pixel(model: torch.nn.Module, size: tuple[int, int]) -> bool:
    """Whether the last map of a RedNet with a task has 1 x 1 pixels for images of this size."""
    parameter = next(model.parameters())
    training = model.training
    last = model.eval().rednet(parameter.new_zeros(1, 3, *size)).last_hidden_state
    model.train(training)
    return tuple(last.shape[2:]) == (1, 1)


def check_trackers(report_to: str | None) -> None:
    """Accelerate would leave out trackers that are not installed without a word."""
    known = [str(name) for name in LoggerType]
    installed = ["all", *(str(name) for name in get_available_trackers())]
    for name in report_to.split(",") if report_to else []:
        if name not in known:
            raise SystemExit(
                f"error: --report_to names {name!r}, expected names of {', '.join(known)}, separated by commas"
            )
        if name not in installed:
            raise SystemExit(f"error: --report_to names {name!r}, which is not installed: install its package")


def check_precision(config: ComputeOptions) -> None:
    """What `accelerate launch` was told would be overruled without a word."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", config.mixed_precision):
        raise SystemExit(f"error: give --mixed_precision {launched} to the script, not to accelerate launch")


def check_processes(num_processes: int) -> None:
    """Stops processes that were started as one run, but would each do all of it and overwrite each other's files.

    `num_processes` is how many Accelerate has joined.
    """
    cure = "On a CPU: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N"
    names = ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE"]  # as Accelerate reads them
    started = get_int_from_env(names, 1)
    if started > num_processes:
        name = next(name for name in names if name in os.environ)
        if torch.distributed.is_initialized():  # who exits now would break the connections that others still make
            torch.distributed.barrier()
        raise SystemExit(
            f"error: {name} is {started}, but each of these processes would run alone, because Accelerate has no GPUs "
            f"to join them by. {cure}. To start one process, unset {name}"
        )
    # `accelerate launch` gives the address to meet at to more than one process, also where it then starts only one.
    if num_processes == 1 and "WORLD_SIZE" not in os.environ and set_by_launcher("MASTER_PORT"):
        raise SystemExit(
            "error: accelerate launch was told to start several processes, and started one, as it does without "
            f"several GPUs. {cure}. For one process: --num_processes 1"
        )


def set_threads(device: torch.device) -> None:
    """Shares the CPUs among the processes of this machine that have no GPU, unless the user set OMP_NUM_THREADS.

    Launchers set it as well, to 1 where they do not know better.
    """
    name = "OMP_NUM_THREADS"
    launched = set_by_launcher(name)
    if device.type != "cpu" or name in os.environ and not launched:
        return
    threads = available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not launched or os.environ[name] != "1":
        threads = min(threads, torch.get_num_threads())
    torch.set_num_threads(max(threads, 1))


def set_by_launcher(name: str) -> bool:
    """Whether `accelerate launch` or torchrun, and not the user, set this environment variable.

    Then it differs from the one that the launcher itself, the parent of this process, was started with.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    if not launched or name not in os.environ:
        return False
    try:
        return psutil.Process().parent().environ().get(name) != os.environ[name]
    except (psutil.Error, AttributeError):  # no parent any more, or one of another user
        return False


def prepare(
    config: LoopOptions, accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, task: Task
) -> Run:
    """Everything that is trained, on its device, and as far as the newest checkpoint says."""
    folder = Path(config.output_dir)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "options.json", asdict(config))
    if config.sync_batch_norm:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(accelerator.device)
    if accelerator.distributed_type == DistributedType.FSDP:  # takes contiguous weights only
        model.get_input_embeddings = lambda: None  # Accelerate asks; Transformers' answer is an error
    else:
        model.to(memory_format=torch.channels_last)
    ema = None
    if config.ema_decay is not None:
        # Statistics of BatchNorm are averaged as well: those of other weights would not fit.
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
        accelerator.register_for_checkpointing(ema)
    if config.torch_compile:
        model.compile()
    groups = parameter_groups(model, config)
    nesterov = config.nesterov and config.momentum > 0
    optimizer = torch.optim.SGD(groups, config.learning_rate, config.momentum, nesterov=nesterov)
    model, optimizer = accelerator.prepare(model, optimizer)

    steps_per_epoch = math.ceil(len(loader.batch_sampler) / config.gradient_accumulation_steps)
    total_steps = config.max_train_steps or config.num_train_epochs * steps_per_epoch
    # Not prepared: Accelerate would step it once for every process.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, total_steps, config))
    progress = Progress()
    accelerator.register_for_checkpointing(scheduler, progress)
    if newest := load_newest(accelerator, folder / "checkpoints"):
        accelerator.print(f"Going on from step {progress.step}, epoch {progress.epoch} ({newest})")
    if accelerator.is_main_process:
        shorten_log(folder / "log.jsonl", progress.log_lines)
    # Trackers know numbers and strings, no lists.
    accelerator.init_trackers("rednet", {name: str(value) for name, value in asdict(config).items()})
    bar = tqdm(total=total_steps, initial=progress.step, unit="step", disable=not accelerator.is_local_main_process)
    return Run(config, accelerator, model, ema, optimizer, scheduler, task, progress, total_steps, bar)


def parameter_groups(model: torch.nn.Module, config: LoopOptions) -> list[dict]:
    """All parameters decay, as in the paper, or only those with more than one dimension: no BatchNorm, no biases."""
    free = [p for p in model.parameters() if p.ndim <= 1 and config.no_decay_on_norm_and_bias]
    decayed = [p for p in model.parameters() if p.ndim > 1 or not config.no_decay_on_norm_and_bias]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def schedule(step: int, total_steps: int, config: OptimizationOptions) -> float:
    """The learning rate as a part of the configured one, under a linear warm-up at the start."""
    part = min(step / total_steps, 1)
    if config.lr_scheduler_type == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * part))
    elif config.lr_scheduler_type == "polynomial":
        factor = (1 - part) ** config.lr_power
    else:
        factor = 0.1 ** sum(step * config.num_train_epochs >= epoch * total_steps for epoch in config.lr_steps)
    if step >= config.num_warmup_steps:
        return factor
    return factor * (config.warmup_start_factor + (1 - config.warmup_start_factor) * step / config.num_warmup_steps)


def train(run: Run, loader: DataLoader) -> None:
    """Trains to the end, evaluating now and then, and leaves `best`, `last` and results.json."""
    config, accelerator, progress, task, results = run.config, run.accelerator, run.progress, run.task, {}
    trained = run.model if run.ema is None else run.ema.module
    # A position in the epoch after the last step: the run was killed before its evaluation.
    while progress.step < run.total_steps or progress.position > 0:
        train_epoch(run, loader)
        if progress.epoch % config.eval_epochs == 0 or progress.step >= run.total_steps:
            # Each process has statistics of its own batches; those of the first are saved, so all evaluate with them.
            broadcast(list(trained.buffers()))
            results = task.evaluate(trained)
            log(run, {"epoch": progress.epoch, **results})
            run.bar.write(f"epoch {progress.epoch}: {task.metric_name} {100 * results[task.metric]:.2f} %")
            if results[task.metric] > progress.best:
                progress.best = results[task.metric]
                save(run, "best", trained, results)
        if config.checkpointing_steps == "epoch" or progress.step >= run.total_steps:
            save_checkpoint(accelerator, run.folder / "checkpoints", progress.step, config.checkpoints_total_limit)
    run.bar.close()

    results = results or task.evaluate(trained)
    save(run, "last", trained, results)
    if accelerator.is_main_process:
        results |= {f"best_{task.metric}": progress.best, "steps": progress.step, "epochs": progress.epoch}
        results |= {"train_seconds": round(progress.seconds, 1), "train_samples": loader.batch_sampler.num_images}
        results |= {"parameters": rednet.count_parameters(trained), "threads": torch.get_num_threads()}
        results |= {"device": str(accelerator.device), "torch": torch.__version__}
        write_json(run.folder / "results.json", results)
        print(
            f"{task.metric_name} {100 * results[task.metric]:.2f} % on {results['eval_samples']} images -> "
            f"{run.folder}/last"
        )


def train_epoch(run: Run, loader: DataLoader) -> None:
    """Trains to the end of the epoch, or of the run, from where `progress` is. Afterwards all is known to be finite."""
    config, accelerator, progress = run.config, run.accelerator, run.progress
    run.model.train()
    loader.batch_sampler.begin(progress.epoch, progress.position)
    batches = iter(loader)
    start, images, unread = time.perf_counter(), 0, []
    while progress.step < run.total_steps and (group := list(islice(batches, config.gradient_accumulation_steps))):
        loss, grad_norm = train_step(
            accelerator, run.model, run.optimizer, group, config, run.task.loss, progress.step, run.task.weigh
        )
        run.scheduler.step()
        if run.ema is not None:
            run.ema.update_parameters(accelerator.unwrap_model(run.model))
        unread.append(loss)
        seen = len(group) * loader.batch_sampler.global_batch
        images += seen
        progress.position += seen
        progress.step += 1
        run.bar.update()

        if progress.step % config.logging_steps == 0 or progress.step == run.total_steps:
            read_losses(run, unread)
            seconds = time.perf_counter() - start
            values = {"loss": math.fsum(progress.losses) / len(progress.losses)}
            values |= {"learning_rate": run.scheduler.get_last_lr()[0], "images_per_second": images / seconds}
            if grad_norm is not None:
                values["grad_norm"] = float(grad_norm)
            log(run, values)
            run.bar.set_postfix(loss=f"{values['loss']:.3f}", images_per_s=f"{images / seconds:.0f}")
            progress.losses.clear()
            progress.seconds += seconds
            start, images = time.perf_counter(), 0
        if config.checkpointing_steps != "epoch" and progress.step % int(config.checkpointing_steps) == 0:
            read_losses(run, unread)
            check_weights(run)
            save_checkpoint(accelerator, run.folder / "checkpoints", progress.step, config.checkpoints_total_limit)
    read_losses(run, unread)
    check_weights(run)
    progress.seconds += time.perf_counter() - start
    progress.epoch, progress.position = progress.epoch + 1, 0


def train_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[dict],
    config: LoopOptions,
    compute_loss: Callable[[torch.nn.Module, dict], torch.Tensor],
    step: int = 0,
    weigh: Callable[[dict], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One step with the gradient of the mean loss of `batches` on all processes: that of one batch with all their
    images, where the loss is a mean over the images, or over what `weigh` counts.

    Returns:
        The loss of this process, of which the mean over all processes is the mean loss, and the norm of the gradient
        if it is clipped.
    """
    losses, grad_norm = [], None
    shares = batch_shares(accelerator, batches, weigh)
    for number, (batch, share) in enumerate(zip(batches, shares)):
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        with nullcontext() if number == len(batches) - 1 else accelerator.no_sync(model):
            # What is random in the loss or the model is the same again after an interruption.
            with seeded(config.seed, step, accelerator.process_index, number):
                loss = compute_loss(model, batch)
            accelerator.backward(loss * share)
        losses.append(loss.detach() * share)
    if config.max_grad_norm is not None:
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return torch.stack(losses).sum(), grad_norm


def batch_shares(
    accelerator: Accelerator, batches: list[dict], weigh: Callable[[dict], torch.Tensor] | None
) -> list[float] | torch.Tensor:
    """The factors of the losses of `batches`, on this process, whose gradients are averaged over the processes."""
    if weigh is None:
        return [1 / len(batches)] * len(batches)
    weights = torch.stack([weigh(batch) for batch in batches]).to(accelerator.device)
    return weights * accelerator.num_processes / accelerator.reduce(weights.sum(), "sum").clamp(min=1)


def read_losses(run: Run, unread: list[torch.Tensor]) -> None:
    """Moves the losses of the last steps, averaged over the processes, to `progress`.

    Only now and then, because reading them waits for the GPU; and before anything is written.

    Raises:
        FloatingPointError: one is not finite. The message names its step and the last checkpoint from before.
    """
    if unread:
        means = run.accelerator.reduce(torch.stack(unread), "mean").tolist()
        unread.clear()
        for number, mean in enumerate(means, run.progress.step - len(means) + 1):
            if not math.isfinite(mean):
                stop(run, f"the loss is {mean} at step {number}")
        run.progress.losses += means


def check_weights(run: Run) -> None:
    """Raises FloatingPointError where a weight or statistic is not finite: the loss would tell only a step later."""
    tensors = [t.detach() for t in (*run.model.parameters(), *run.model.buffers()) if t.is_floating_point()]
    tensors = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]  # shares of FSDP
    wrong = torch.stack([~t.isfinite().all() for t in tensors]).any().float()
    if run.accelerator.reduce(wrong, "sum"):
        stop(run, f"weights are not finite after step {run.progress.step}")


def stop(run: Run, problem: str) -> None:
    found = checkpoints(run.folder / "checkpoints")
    raise FloatingPointError(
        f"{problem}; the last checkpoint from before is {found[-1] if found else 'none'}, nothing was written since. "
        "A lower learning rate, or --max_grad_norm 1, in another --output_dir helps"
    )


def log(run: Run, values: dict) -> None:
    """One line of log.jsonl, and the same to the trackers."""
    run.progress.log_lines += 1
    run.accelerator.log(values, step=run.progress.step)
    if run.accelerator.is_main_process:
        append_log(run.folder / "log.jsonl", {"step": run.progress.step, **values})


def save(run: Run, name: str, model: torch.nn.Module, results: dict) -> None:
    run.accelerator.wait_for_everyone()
    plain = run.accelerator.unwrap_model(model)
    if run.accelerator.distributed_type == DistributedType.FSDP:
        weights = run.accelerator.get_state_dict(model)  # from all processes, whole on the first
        plain = getattr(rednet, type(plain).__name__.removeprefix("FSDP"))(plain.config)
        plain.load_state_dict(weights, strict=run.accelerator.is_main_process)
    if run.accelerator.is_main_process:
        run.task.save(run.folder / name, plain, results)
