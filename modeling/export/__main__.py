"""Exports a RedNet to ONNX, to a program of torch.export, or to a package of AOTInductor.

    python -m rednet.export FOLDER_OR_ID rednet-50.onnx --format onnx
    python -m rednet.export FOLDER_OR_ID rednet-50.pt2 --format aoti

FOLDER_OR_ID is a folder or a Hub repository with a RedNet of any class. The exported model takes pictures of any batch
size, height and width. The command compares the outputs of the exported model with those of the RedNet before it
writes the file.
"""

import argparse
import sys
from pathlib import Path

from rednet.export import FORMATS, check_output, export_model
from rednet.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rednet.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="FOLDER_OR_ID", help="folder or Hub repository of a RedNet")
    parser.add_argument("output", type=Path, help="file to write, with the suffix .onnx or .pt2")
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("--device", default="cpu", help="device of a program or package (default: cpu)")
    options = parser.parse_args()
    try:
        check_output(options.output, options.format, options.device)
        model = load_model(options.model)
        difference, largest = export_model(model, options.output, options.format, options.device)
    except (OSError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")
    size = options.output.stat().st_size / 2**20
    print(
        f"{options.output}: {size:.1f} MiB, largest difference from PyTorch {difference:.1e} (largest output {largest:.1e})"
    )


if __name__ == "__main__":
    main()
