"""`train.main` under FSDP on the CPU, which torch and Accelerate support, although Accelerate selects FSDP only on GPUs."""

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from rednet.training import train
from rednet.training.engine import launch, loop
from rednet.training.options.optimization import LoopOptions


def main(arguments: list[str]) -> None:
    loop.make_accelerator = make_accelerator
    train.main(arguments)


def make_accelerator(config: LoopOptions) -> Accelerator:
    accelerator = launch.make_accelerator(config)
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    # The settings of configs/accelerate/fsdp_8_gpus.yaml
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=False,
        state_dict_type="FULL_STATE_DICT",
    )
    return accelerator
