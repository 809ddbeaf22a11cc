"""Checks how a script was launched, and creates its Accelerator: processes, threads, precision, trackers."""

import os

import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType, ProjectConfiguration, get_int_from_env
from rednet.training.options.groups import ComputeOptions
from rednet.training.options.optimization import LoopOptions
from rednet.training.utils.cpus import available_cpus


def make_accelerator(config: LoopOptions) -> Accelerator:
    """
    The Accelerator of a training script.

    `train_step` accumulates gradients itself: Accelerate divides by the number of accumulation steps even if an epoch
    ends with fewer batches.

    Raises:
        SystemExit: the options contradict those of `accelerate launch`, or this machine does not support them.
    """
    check_trackers(config.report_to)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=config.report_to.split(",") if config.report_to else None,
        # Trainer writes its logs to a folder of the same name.
        project_config=ProjectConfiguration(config.output_dir, logging_dir=os.path.join(config.output_dir, "runs")),
    )
    check_processes(accelerator.num_processes)
    if accelerator.gradient_accumulation_steps != 1:
        raise SystemExit("error: pass --gradient_accumulation_steps to the script, not to accelerate launch")
    check_precision(config)
    if config.sync_batch_norm and accelerator.device.type == "cpu":
        raise SystemExit("error: --sync_batch_norm requires GPUs, but this process runs on the CPU")
    if accelerator.distributed_type == DistributedType.FSDP:
        check_sharding(config)
    set_threads(accelerator.device)
    if config.tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    return accelerator


def check_gpus(count: int) -> None:
    """Raises SystemExit if a process of Trainer has several GPUs: it would train with DataParallel, which multiplies the
    batch by their number."""
    if count > 1:
        raise SystemExit(
            f"error: this process sees {count} GPUs: start one process for each with accelerate launch, or choose one with "
            "CUDA_VISIBLE_DEVICES=0"
        )


def check_sharding(config: LoopOptions) -> None:
    """Raises SystemExit if an option needs whole weights, which FSDP shards."""
    whole = {"--ema_decay": config.ema_decay is not None, "--clip_mode agc": config.clip_mode == "agc"}
    whole[f"--optimizer {config.optimizer}"] = config.optimizer in ("lamb", "muon")
    for option, is_given in whole.items():
        if is_given:
            raise SystemExit(f"error: {option} requires whole weights on every process; FSDP shards them")


def check_trackers(report_to: str | None) -> None:
    """Raises SystemExit if a tracker is unknown or not installed. Accelerate would silently leave it out."""
    supported = [str(name) for name in LoggerType]
    installed = ["all", *(str(name) for name in get_available_trackers())]
    for name in report_to.split(",") if report_to else []:
        if name not in supported:
            raise SystemExit(
                f"error: --report_to names {name!r}, expected names of {', '.join(supported)}, separated by commas"
            )
        if name not in installed:
            raise SystemExit(f"error: --report_to names {name!r}, which is not installed: install its package")


def check_precision(config: ComputeOptions) -> None:
    """Raises SystemExit if `accelerate launch` asks for another precision. The script would silently overrule it."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", config.mixed_precision):
        raise SystemExit(f"error: pass --mixed_precision {launched} to the script, not to accelerate launch")


def check_processes(num_processes: int) -> None:
    """
    Raises SystemExit if several processes were started as one run but are not connected. Each of them would do the
    whole run, and they would overwrite each other's files.

    Args:
        num_processes: the number of processes that Accelerate has connected.
    """
    solution = "On a CPU: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N"
    names = ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE"]  # as Accelerate reads them
    world_size = get_int_from_env(names, 1)
    if world_size > num_processes:
        name = next(name for name in names if name in os.environ)
        if torch.distributed.is_initialized():  # an early exit would break connections that other processes still make
            torch.distributed.barrier()
        raise SystemExit(
            f"error: {name} is {world_size}, but each of these processes would run alone, because Accelerate connects "
            f"processes only on GPUs. {solution}. To start one process, unset {name}"
        )
    # `accelerate launch` sets the address of the main process if it is asked for several, even if it starts only one.
    if num_processes == 1 and "WORLD_SIZE" not in os.environ and set_by_launcher("MASTER_PORT"):
        raise SystemExit(
            "error: accelerate launch was asked to start several processes and started one, as it does without "
            f"several GPUs. {solution}. For one process: --num_processes 1"
        )


def set_threads(device: torch.device) -> None:
    """
    Divides the CPUs of this machine among its processes, if they compute on the CPU. OMP_NUM_THREADS takes precedence
    if the user set it.

    Launchers set OMP_NUM_THREADS too, to 1 by default.
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
    """Whether `accelerate launch` or torchrun set this environment variable, and not the user.

    Then its value differs from that in the environment of the launcher, which is the parent of this process.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    if not launched or name not in os.environ:
        return False
    try:
        parent = psutil.Process().parent()
        return parent is not None and parent.environ().get(name) != os.environ[name]
    except psutil.Error:  # the parent has ended, or belongs to another user
        return False
