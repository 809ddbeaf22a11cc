"""Runs every family of CUDA kernels on small inputs, for compute-sanitizer, and compares the results.

    compute-sanitizer --tool memcheck python benchmarks/sanitize.py

Each operator, family and dtype runs in one geometry, or in all of the self-check (`--all`).
"""

import argparse
import os
import sys

import torch

from involution import extension, operators, self_check, verification


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="runs all geometries and memory formats of the self-check")
    everything = parser.parse_args().all
    os.environ["INVOLUTION_TENSOR_CORES"] = "1"  # read at the first call
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU")
    library = extension.find_or_build("cuda")
    torch.ops.load_library(library)
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # as in the self-check
    seen, failures = set(), 0
    for check in self_check.checks(verification.supported_families(library, "cuda:0")):
        kind = (check.operator, check.family, check.dtype)
        if kind in seen and not everything:
            continue
        seen.add(kind)
        try:
            self_check.run(operators, library, check, "cuda:0")
        except ValueError as error:
            failures += 1
            print(f"{check.operator}, {check.family}, {check}: {error}")
    print(f"{len(seen)} kinds of kernels ran, {failures} results disagree")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
