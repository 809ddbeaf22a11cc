"""Registers, spills, shared memory and theoretical occupancy of the CUDA kernels, from the compiler. It needs no GPU.

    python benchmarks/cuda_resources.py --output benchmarks/results/cuda-resources-NAME-DATE

Compiles the source for sm_80 and sm_90 with the command that builds the extension and `-Xptxas -v`. Occupancy
is the formula of NVIDIA's occupancy calculator (Nsight Compute) with the limits of the CUDA C++ Programming Guide,
"Technical Specifications per Compute Capability". It limits how much latency an SM can hide, and does not measure speed.
"""

import argparse
import datetime
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
from rednet.training.utils.files import write_csv, write_text
from torch.utils import cpp_extension

from involution import extension


REGISTERS_PER_SM = 65536
REGISTER_UNIT = 256  # registers are allocated to a warp in units of this
SCHEDULERS = 4  # of an SM, each with a quarter of the registers
WARPS_PER_SM = 64
BLOCKS_PER_SM = 32
SHARED_MEMORY_PER_SM = {"sm_80": 164 * 1024, "sm_90": 228 * 1024}
SHARED_MEMORY_UNIT = 128
SHARED_MEMORY_RESERVED = 1024  # of every block, by the system
WARP = 32
GENERAL_THREADS = 256  # kThreads in cuda/common.cuh: the general kernels have no launch bounds
COLUMNS = [
    "kernel", "architecture", "threads", "registers", "spill_stores", "spill_loads", "stack",
    "shared_memory", "blocks_per_sm", "warps_per_sm", "occupancy", "bound_by",
]  # fmt: skip


def round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def occupancy(architecture: str, threads: int, registers: int, shared_memory: int) -> dict:
    """Blocks and warps that fit on an SM at a time, and what keeps more from it."""
    warps = round_up(threads, WARP) // WARP
    warps_of_registers = SCHEDULERS * (REGISTERS_PER_SM // SCHEDULERS // round_up(registers * WARP, REGISTER_UNIT))
    shared_memory_of_block = round_up(shared_memory, SHARED_MEMORY_UNIT) + SHARED_MEMORY_RESERVED
    blocks = {
        "registers": warps_of_registers // warps,
        "shared memory": SHARED_MEMORY_PER_SM[architecture] // shared_memory_of_block,
        "warps": WARPS_PER_SM // warps,
        "blocks": BLOCKS_PER_SM,
    }
    bound_by = min(blocks, key=blocks.get)
    resident = blocks[bound_by]
    return {
        "blocks_per_sm": resident,
        "warps_per_sm": resident * warps,
        "occupancy": round(resident * warps / WARPS_PER_SM, 3),
        "bound_by": bound_by,
    }


def compile_verbosely(folder: Path) -> str:
    """The compiler's report; its PTX stays in `folder`."""
    os.environ["TORCH_CUDA_ARCH_LIST"] = "8.0;9.0"
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    library = extension.build("cuda")
    commands = subprocess.run(
        ["ninja", "-t", "commands"], cwd=library.parent, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    command = next(shlex.split(line) for line in commands if "nvcc" in line)
    command[command.index("-o") + 1] = os.devnull
    command += ["-Xptxas", "-v", "--keep", "--keep-dir", str(folder)]
    result = subprocess.run(command, cwd=library.parent, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    return result.stdout + result.stderr


def threads_per_block(folder: Path) -> dict[str, int]:
    """The launch bounds of the kernels that have them."""
    pattern = re.compile(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)")
    return {name: int(threads) for file in folder.glob("*.ptx") for name, threads in pattern.findall(file.read_text())}


def demangled(names: list[str]) -> dict[str, str]:
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = [
        re.sub(r"\(.*", "", line).replace("void involution::", "").replace("c10::", "") for line in text.split("\n")
    ]
    return dict(zip(names, short))


def parse(report: str, threads: dict[str, int]) -> list[dict]:
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    kernels = pattern.findall(report)
    names = demangled(sorted({kernel[0] for kernel in kernels}))
    rows = []
    for name, architecture, stack, stores, loads, registers, rest in kernels:
        shared_memory = re.search(r"(\d+) bytes smem", rest)
        row = {
            "kernel": names[name],
            "architecture": architecture,
            "threads": threads.get(name, GENERAL_THREADS),
            "registers": int(registers),
            "spill_stores": int(stores),
            "spill_loads": int(loads),
            "stack": int(stack),
            "shared_memory": int(shared_memory.group(1)) if shared_memory else 0,
        }
        row |= occupancy(architecture, row["threads"], row["registers"], row["shared_memory"])
        rows.append(row)
    return sorted(rows, key=lambda row: (row["architecture"], row["kernel"]))


def markdown(rows: list[dict], versions: dict) -> str:
    lines = [
        "# Resources of the CUDA kernels, sm_80 and sm_90",
        "",
        f"{datetime.date.today().isoformat()}, {', '.join(f'{k} {v}' for k, v in versions.items())}. From "
        "`nvcc -Xptxas -v`: nothing ran on a GPU.",
        "",
        "Occupancy is resident warps of 64 on an SM by the occupancy calculator's formula: 65536 registers, 256 at a time "
        "to a warp, in four quarters; 164 KB (sm_80) or 228 KB (sm_90) of shared memory, in units of 128 bytes and with "
        "1 KB reserved of each block; 32 blocks (CUDA C++ Programming Guide, technical specifications).",
        "",
        "The template arguments of tiled kernels are type, K and stride, of general ones K (0: any), type and index type.",
    ]
    for architecture in sorted({row["architecture"] for row in rows}):
        lines += ["", f"## {architecture}", ""]
        lines.append(
            "| kernel | threads | registers | spilled bytes | shared memory | blocks | warps | occupancy | bound by |"
        )
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for row in rows:
            if row["architecture"] == architecture:
                spilled = row["spill_stores"] + row["spill_loads"]
                lines.append(
                    f"| {row['kernel']} | {row['threads']} | {row['registers']} | {spilled} | {row['shared_memory']} | "
                    f"{row['blocks_per_sm']} | {row['warps_per_sm']} | {row['occupancy']:.0%} | {row['bound_by']} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="writes OUTPUT.csv and OUTPUT.md")
    output = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = parse(compile_verbosely(Path(folder)), threads_per_block(Path(folder)))
    program = Path(cpp_extension.CUDA_HOME, "bin/nvcc")
    nvcc = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    versions = {"nvcc": re.search(r"V([\d.]+)", nvcc).group(1), "torch": torch.__version__}
    write_csv(Path(f"{output}.csv"), [{column: row[column] for column in COLUMNS} for row in rows])
    write_text(Path(f"{output}.md"), markdown(rows, versions))
    spilling = [
        f"{row['kernel']} ({row['architecture']})" for row in rows if row["spill_stores"] or row["spill_loads"]
    ]
    print(f"{len(rows)} kernels; spilling: {', '.join(spilling) or 'none'}")


if __name__ == "__main__":
    main()
