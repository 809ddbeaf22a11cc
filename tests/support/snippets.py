"""The fenced code blocks of Markdown pages, and the commands in those of the shell."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    language: str  # "" if the fence names none
    slow: bool
    text: str
    line: int  # of its first line in the page, from 1


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text()
    blocks = []
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        language, *words = match[1].split() or [""]
        assert words in ([], ["slow"]), f"{page}: unknown words after the language of a fence: {match[1]}"
        blocks.append(Block(language, bool(words), match[2], text[: match.start(2)].count("\n") + 1))
    return blocks


def read_commands(text: str) -> list[list[str]]:
    """The words of each command, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
