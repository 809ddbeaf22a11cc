"""Writes and pushes the operator as a repository for the Kernel Hub.

    python -m involution.kernel_hub write outputs/kernel your-name/involution
    python -m involution.kernel_hub push outputs/kernel

A push needs a token: run `hf auth login`, or set HF_TOKEN. If it fails, the same command can be repeated.
"""

import argparse
import logging
import sys
from pathlib import Path

from .write import write


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m involution.kernel_hub",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="{write,push}")
    writing = commands.add_parser("write", help="write a repository, with builds for this machine")
    writing.add_argument("output", type=Path, metavar="OUTPUT", help="a new or an empty folder")
    writing.add_argument("repo_id", metavar="REPO", help="OWNER/NAME, the repository of the Hub that it is for")
    writing.set_defaults(run=run_write)

    pushing = commands.add_parser("push", help="push a folder that `write` wrote to its repository")
    pushing.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that `write` wrote")
    pushing.add_argument(
        "--revision",
        metavar="BRANCH",
        help="push everything to this branch (default: the builds to v1, the branch of version 1, the rest to main)",
    )
    pushing.add_argument("--create_pr", action="store_true", help="open pull requests instead of changing branches")
    pushing.add_argument("--private", action="store_true", default=None, help="create a private repository")
    pushing.set_defaults(run=run_push)

    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    options.run(options)


def run_write(options: argparse.Namespace) -> None:
    try:
        for folder in write(options.output, options.repo_id):
            print(folder)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")


def run_push(options: argparse.Namespace) -> None:
    from .push import push  # imports huggingface_hub

    try:
        commits = push(options.folder, options.revision, options.create_pr, options.private)
    except (PermissionError, ValueError) as error:  # raised by a check
        sys.exit(f"error: {error}")
    except Exception as error:  # the class for a broken connection differs between releases of huggingface_hub
        sys.exit(
            f"error: {type(error).__name__}: {error}\n{options.folder} is complete: repeat the command to try again"
        )
    for commit in commits:
        print(commit.pr_url or commit.commit_url)


if __name__ == "__main__":
    main()
