"""Downloads a checkpoint, as a program that `processes.Training` runs."""

import huggingface_hub.constants
from rednet.checkpoints.download import download


def main(arguments: list[str]) -> None:
    huggingface_hub.constants.HF_HUB_OFFLINE = False
    (url,) = arguments
    download(url)
