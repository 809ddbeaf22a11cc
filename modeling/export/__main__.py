"""Exports a RedNet: to ONNX, to a program of torch.export, or to a package of AOTInductor.

    python -m rednet.export FOLDER_OR_ID rednet-50.onnx --format onnx
    python -m rednet.export FOLDER_OR_ID rednet-50.pt2 --format aoti

FOLDER_OR_ID is a folder, or a repository of the Hub, with a model of any of the classes of `rednet`. Batch size, height
and width stay free. The file takes its place after it has been run beside the model, on a picture of another size than
it was traced with.
"""

import argparse
import sys
from pathlib import Path

from rednet.export import FORMATS, check_output, export_model, load_model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rednet.export", description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="FOLDER_OR_ID", help="a folder of a RedNet, or a repository of the Hub")
    parser.add_argument("output", type=Path, help="the file to write: .onnx, or .pt2")
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("--device", default="cpu", help="of a program or package, by default cpu")
    options = parser.parse_args()
    try:
        check_output(options.output, options.format, options.device)
        model = load_model(options.model)
        difference, largest = export_model(model, options.output, options.format, options.device)
    except (OSError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")
    size = options.output.stat().st_size / 2**20
    print(f"{options.output}: {size:.1f} MiB, at most {difference:.1e} from PyTorch where values reach {largest:.1e}")


if __name__ == "__main__":
    main()
