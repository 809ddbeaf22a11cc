"""Pushes a Hub folder, as the training scripts and the converter write it, in one commit.

    python training/push_to_hub.py outputs/demo/last my-name/rednet-fashion-mnist

Needs a token: `hf auth login`, or HF_TOKEN. After a failure the same command goes on where it was.
"""

import argparse
import sys
from pathlib import Path

from rednet.hub import push_hub_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what is pushed")
    parser.add_argument("repo", help="where to: name/repository, or a repository of the account that is logged in")
    parser.add_argument("--private", action="store_true", default=None, help="create it as a private repository")
    parser.add_argument("--commit_message")
    options = parser.parse_args()
    try:
        commit = push_hub_folder(options.folder, options.repo, options.private, options.commit_message)
    except Exception as error:  # what a broken connection raises is another class in every release of huggingface_hub
        sys.exit(f"error: {type(error).__name__}: {error}\n{options.folder} is whole; the same command tries again.")
    print(commit.repo_url)


if __name__ == "__main__":
    main()
