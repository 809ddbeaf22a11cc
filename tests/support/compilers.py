"""Compilers that tests hand to the build of the operator."""

from pathlib import Path


def quick_compiler(path: Path, optimization: str = "-O1", target: str | None = None) -> str:
    """The compiler of this machine, asked for less optimization, and for a kind of processor where one is given."""
    lines = ["#!/bin/bash", f'set -- "${{@/#-O3/{optimization}}}"']
    if target is not None:
        lines.append(f'set -- "${{@/#-march=native/-march={target}}}"')
    path.write_text("\n".join([*lines, 'exec c++ "$@"', ""]))
    path.chmod(0o755)
    return str(path)
