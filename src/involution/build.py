"""Compiles the operator ahead of time, for images and clusters: `python -m involution.build [FOR ...]`.

Without arguments, it builds for the CPU, and also for CUDA if there is a GPU or `TORCH_CUDA_ARCH_LIST` is set. For
the runtimes onnxruntime and openvino, it builds on request. Libraries for the CPU run on this machine and on others
whose CPUs have the same instructions. If a build fails, the command prints the reason and exits with status 1.
"""

import argparse
import logging
import os
import sys

import torch

from . import extension, hosts


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
            print(f"{device_type}: {extension.build(device_type)}")
        except (ModuleNotFoundError, RuntimeError) as error:
            failed = True
            print(f"{device_type}: {error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
