"""Options, conditions, reports and steps of the benchmarks."""

import argparse
import datetime
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rednet.training.utils.cpus import available_cpus
from rednet.training.utils.files import write_csv, write_text
from torch import nn

from involution.timing import device_name, keep_freed_memory, keeps_freed_memory
from tables import table


def arguments(
    description: str, add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
) -> argparse.Namespace:
    """Parses the options. To measure on the CPU, restarts the script so that freed memory is kept."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=min(torch.get_num_threads(), available_cpus()))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch_size", type=int, help="size of the large batch; default: 16 on a CPU, 256 on a GPU")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.csv and OUTPUT.md")
    add_options(parser)
    parsed = parser.parse_args()
    if parsed.device == "cpu":
        keep_freed_memory()
    parsed.batch_size = parsed.batch_size or (16 if parsed.device == "cpu" else 256)
    torch.set_num_threads(parsed.threads)
    torch.manual_seed(0)
    return parsed


def describe_conditions(options: argparse.Namespace, more_packages: Sequence[str] = ()) -> str:
    """Date, machine, versions and method."""
    packages = ("torch", "transformers", "rednet", *more_packages)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    allocator = ", glibc keeps freed memory" if keeps_freed_memory() else ""
    return (
        f"{datetime.date.today()}, {device_name(options.device)}, {versions}; median of {options.repeats} repeats, "
        f"the functions take turns{allocator}."
    )


def report(title: str, rows: list[dict], options: argparse.Namespace, more_packages: Sequence[str] = ()) -> None:
    """Prints a table. With --output, writes it as Markdown and as CSV."""
    conditions = describe_conditions(options, more_packages)
    print(f"\n{document(title, rows, conditions)}")
    if options.output:
        write(title, rows, options, conditions)


def write(title: str, rows: list[dict], options: argparse.Namespace, conditions: str) -> None:
    """Writes OUTPUT.md and OUTPUT.csv."""
    options.output.parent.mkdir(parents=True, exist_ok=True)
    # Not `with_suffix`, which would cut off what follows the point in a name such as network-torch-2.15.
    write_text(Path(f"{options.output}.md"), document(title, rows, conditions))
    write_csv(Path(f"{options.output}.csv"), [{**row, "conditions": conditions} for row in rows])


def document(title: str, rows: list[dict], conditions: str) -> str:
    return f"# {title}\n\n{conditions}\n\n{table(rows)}\n"


def infer(model: Callable, images: torch.Tensor):
    def run():
        with torch.no_grad():
            model(images)

    return run


def train(model: nn.Module, images: torch.Tensor, network: Callable | None = None):
    """A training step of a model. `network` is what is called in its place, such as a compiled form of it."""
    network = model if network is None else network  # a compiled one may have no truth value
    labels = torch.randint(0, 1000, (len(images),), device=images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def run():
        output = network(images)
        F.cross_entropy(getattr(output, "logits", output), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run
