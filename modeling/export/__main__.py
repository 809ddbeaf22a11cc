"""Exports a RedNet to ONNX, to OpenVINO, to a program of torch.export, or to a package of AOTInductor.

    python -m rednet.export FOLDER_OR_ID rednet-50.onnx --format onnx
    python -m rednet.export FOLDER_OR_ID rednet-50.onnx --format onnx --involution custom
    python -m rednet.export FOLDER_OR_ID rednet-50.xml --format openvino --dtype int8 --calibration_data pictures
    python -m rednet.export FOLDER_OR_ID rednet-50.pt2 --format aoti

FOLDER_OR_ID is a folder or a Hub repository with a RedNet of any class. The exported model takes pictures of any batch
size, height and width. The command compares the outputs of the exported model with those of the RedNet before it
writes the file.
"""

import argparse
import sys
from pathlib import Path

from rednet.export import FORMATS, check_output, export_model
from rednet.export.calibration import calibration_batches
from rednet.export.variants import DTYPES, INVOLUTIONS
from rednet.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rednet.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="FOLDER_OR_ID", help="folder or Hub repository of a RedNet")
    parser.add_argument("output", type=Path, help="file to write, with the suffix .onnx, .xml or .pt2")
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument(
        "--device", default="cpu", help="of torch_export and aoti: the device that the file is for (default: cpu)"
    )
    parser.add_argument(
        "--involution",
        default="standard",
        choices=INVOLUTIONS,
        help="nodes of ONNX and OpenVINO: standard ones, which run everywhere, or one custom node for each involution, "
        "which is faster and needs the library of involution.runtimes (default: standard)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="of ONNX and OpenVINO: float16 halves the file, int8 quantizes the convolutions (default: float32)",
    )
    parser.add_argument(
        "--calibration_data",
        metavar="FOLDER_OR_DATASET",
        help="for int8, pictures like those that the model will see: a folder with pictures, a folder that the library "
        "datasets saved, or a data set of the Hub",
    )
    options = parser.parse_args()
    variant = {"involution": options.involution, "dtype": options.dtype}
    try:
        check_output(
            options.output, options.format, options.device, **variant, has_calibration=bool(options.calibration_data)
        )
        model = load_model(options.model)
        batches = calibration_batches(options.calibration_data, options.model) if options.calibration_data else ()
        difference, largest = export_model(
            model, options.output, options.format, options.device, **variant, calibration=batches
        )
    except (OSError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")
    files = [options.output.with_suffix(suffix) for suffix in FORMATS[options.format].suffixes]
    size = sum(file.stat().st_size for file in files) / 2**20
    print(
        f"{options.output}: {size:.1f} MiB, largest difference from PyTorch {difference:.1e} (largest output {largest:.1e})"
    )


if __name__ == "__main__":
    main()
