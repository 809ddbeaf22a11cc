"""What the processes of a run do together."""

import os
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list


def is_main_process() -> bool:
    """Whether this is the main process, by the environment of torchrun and `accelerate launch`.

    It works before Accelerate has initialized the process group, and without it.
    """
    return os.environ.get("RANK", "0") == "0"


def check_on_main_process(state: Accelerator | PartialState, check: Callable[..., Any], *arguments: Any) -> None:
    """Calls `check(*arguments)` on the main process while the others wait. If it fails, all processes end.

    Raises:
        Exception: the error of `check`, on the main process.
        SystemExit: on the other processes if `check` failed. Only the main process prints the message.
    """
    failure = None
    if state.is_main_process:
        try:
            check(*arguments)
        except Exception as error:
            failure = error
    failed = [failure is not None]
    broadcast_object_list(failed)
    if failure is not None:
        raise failure
    if failed[0]:
        raise SystemExit(1)


def on_main_process(state: Accelerator | PartialState, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, called on the main process, on all processes. If it fails, all processes end, as in
    `check_on_main_process`."""
    results: list[Any] = []
    check_on_main_process(state, lambda: results.append(function(*arguments)))
    results = results or [None]
    broadcast_object_list(results)
    return results[0]
