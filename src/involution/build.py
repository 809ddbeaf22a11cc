"""Compiles the operator ahead of time, for images and clusters: `python -m involution.build [FOR ...]`.

Without arguments, it builds for the CPU, and also for CUDA if there is a GPU or `TORCH_CUDA_ARCH_LIST` is set. For
the runtimes onnxruntime and openvino, it builds on request. Libraries for the CPU run on this machine and on others
whose CPUs have the same instructions. Kernels for CUDA are compared with the definition on the GPUs of this machine.
If a build fails or its kernels cannot be used, the command prints the reason and exits with status 1.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

import torch

from . import extension, families, hosts, verification


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m involution.build", description=__doc__.splitlines()[0])
    known = ("cpu", "cuda", *hosts.RUNTIMES)
    help = f"any of {', '.join(known)} (default: cpu, and cuda if there is a GPU)"
    parser.add_argument("devices", nargs="*", metavar="FOR", help=help)
    devices = parser.parse_args().devices
    if unknown := set(devices) - set(known):
        parser.error(f"FOR is {', '.join(sorted(unknown))}, expected any of {', '.join(known)}")
    if not devices:
        with_cuda = torch.cuda.is_available() or os.environ.get("TORCH_CUDA_ARCH_LIST")
        devices = ["cpu", "cuda"] if with_cuda else ["cpu"]

    logging.basicConfig(format="%(message)s")
    failed = False
    for device_type in devices:
        try:
            library = extension.build(device_type)
            print(f"{device_type}: {library}")
            if device_type == "cuda" and torch.cuda.is_available():
                failed |= not _verify(library)
        except (ModuleNotFoundError, RuntimeError) as error:
            failed = True
            print(f"{device_type}: {error}", file=sys.stderr)
    return int(failed)


def _verify(library: Path) -> bool:
    """Prints what the check of a CUDA library finds on each model of GPU. Returns whether its kernels can be used."""
    records = verification.records(library)
    for record in records:
        print("\n".join(f"  {line}" for line in verification.summary(record)))
    return all(refusal["family"] != families.GENERAL for refusal in verification.refused(records))


if __name__ == "__main__":
    sys.exit(main())
