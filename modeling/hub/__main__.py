"""Pushes a Hub folder or the app to the Hub, and renders the model cards of the published depths.

    python -m rednet.hub push outputs/demo/last your-name/rednet-fashion-mnist
    python -m rednet.hub push outputs/demo/last somebody/rednet-fashion-mnist --create_pr
    python -m rednet.hub push app your-name/what-involution-sees --model your-name/rednet-fashion-mnist
    python -m rednet.hub cards rednet-50 --output_dir outputs/hub_cards

A push needs a token: run `hf auth login`, or set HF_TOKEN. It prints the page of the repository, branch or pull request.
If it fails, the same command can be repeated.
"""

import argparse
import shutil
import sys
from pathlib import Path

from rednet.configuration_rednet import RedNetConfig
from rednet.hub.cards import PICTURE, RELEASES, imagenet_card, is_card, known_checkpoints, repository_of
from rednet.hub.folder import check_writable, write_text
from rednet.hub.notebook import NOTEBOOK, make_notebook
from rednet.hub.push import push_hub_folder, push_space, pushed_url


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rednet.hub", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="{push,cards}")

    push = commands.add_parser("push", help="push a folder to a repository of the Hub, in one commit")
    push.add_argument("folder", type=Path, help="a folder with a saved RedNet, or with the app.py of a Space")
    push.add_argument("repo", help="OWNER/NAME, or a name in the account of the token")
    push.add_argument("--model", metavar="ID", help="only for a Space: the model on the Hub that it loads")
    push.add_argument(
        "--private",
        action="store_true",
        default=None,
        help="create the repository as a private one; a repository that exists stays as it is",
    )
    push.add_argument(
        "--revision",
        metavar="BRANCH",
        help="branch to push to (default: main), created if it does not exist, or refs/pr/N for pull request N",
    )
    push.add_argument(
        "--create_pr", action="store_true", help="open a pull request, for which access to read is enough"
    )
    push.add_argument(
        "--commit_message", help="default: `Upload` and the title of the card, or for a Space, `Show` and its model"
    )
    push.set_defaults(run=run_push, parser=push)

    names = ", ".join(known_checkpoints())
    cards = commands.add_parser("cards", help="render the model cards of the published depths, with their notebooks")
    cards.add_argument("names", nargs="*", metavar="NAME", help=f"any of {names} (default: all)")
    cards.add_argument("--output_dir", type=Path, default=Path("outputs/hub_cards"), help="default: %(default)s")
    cards.add_argument(
        "--weights",
        choices=RELEASES,
        default="paddleclas",
        help="the publisher whose results are shown (default: paddleclas)",
    )
    cards.add_argument("--namespace", help="the account in the examples: they load NAMESPACE/NAME")
    cards.set_defaults(run=run_cards, parser=cards)

    options = parser.parse_args(arguments)
    options.run(options)


def run_push(options: argparse.Namespace) -> None:
    is_space = (options.folder / "app.py").is_file()
    if is_space and options.model is None:
        options.parser.error(f"--model is missing: {options.folder} is a Space, expected the model that it loads")
    if not is_space and options.model is not None:
        options.parser.error(f"--model is only for a Space: {options.folder} has no app.py")
    how = (options.private, options.commit_message, options.revision, options.create_pr)
    try:
        if is_space:
            commit = push_space(options.folder, options.repo, options.model, *how)
        else:
            commit = push_hub_folder(options.folder, options.repo, *how)
    except (PermissionError, ValueError) as error:  # raised by a check, before the push
        sys.exit(f"error: {error}")
    except Exception as error:  # the class for a broken connection differs between releases of huggingface_hub
        sys.exit(
            f"error: {type(error).__name__}: {error}\n{options.folder} is complete: repeat the command to try again"
        )
    print(pushed_url(commit, options.revision))


def run_cards(options: argparse.Namespace) -> None:
    checkpoints = known_checkpoints()
    if unknown := [name for name in options.names if name not in checkpoints]:
        options.parser.error(f"unknown name {', '.join(unknown)}, expected any of {', '.join(checkpoints)}")
    try:
        check_writable(options.output_dir)
    except OSError as error:
        options.parser.error(str(error))
    names = options.names or list(checkpoints)
    cards = [options.output_dir / name / "README.md" for name in names]
    if foreign := [str(card) for card in cards if card.exists() and not is_card(card.read_text(encoding="utf-8"))]:
        options.parser.error(f"{', '.join(foreign)} is no model card of a RedNet: choose another --output_dir")
    for name in names:
        config = RedNetConfig(depths=checkpoints[name]["depths"], num_labels=1000)
        repository = f"{options.namespace}/{name}" if options.namespace else name
        folder = options.output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        card = imagenet_card(config, repository, options.weights)
        write_text(folder / "README.md", str(card))
        shutil.copy(PICTURE, folder)
        notebook = make_notebook(config, checkpoints[name]["name"], repository_of(card))
        write_text(folder / NOTEBOOK, notebook)
        print(folder / "README.md")


if __name__ == "__main__":
    main()
