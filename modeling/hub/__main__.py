"""Renders the model cards of the published depths.

python -m rednet.hub --output_dir outputs/hub_cards
"""

import argparse
import shutil
from pathlib import Path

from rednet.configuration_rednet import RedNetConfig

from .cards import PICTURE, SOURCES, imagenet_card, known_checkpoints


def main() -> None:
    known = known_checkpoints()
    parser = argparse.ArgumentParser(prog="python -m rednet.hub", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(known)}; all by default")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/hub_cards"))
    parser.add_argument("--weights", choices=SOURCES, default="authors", help="whose: their results are shown")
    parser.add_argument("--namespace", help="the Hub account in the examples, as in NAMESPACE/rednet-50")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"there is no card data for {', '.join(unknown)}: expected any of {', '.join(known)}")
    for name in options.names or known:
        config = RedNetConfig(depths=known[name]["depths"], num_labels=1000)
        repository = f"{options.namespace}/{name}" if options.namespace else name
        folder = options.output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        imagenet_card(config, repository, options.weights).save(folder / "README.md")
        shutil.copy(PICTURE, folder)
        print(folder / "README.md")


if __name__ == "__main__":
    main()
