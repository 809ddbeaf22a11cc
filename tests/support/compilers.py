"""Compilers that tests hand to the build of the operator."""

from pathlib import Path


def quick_compiler(path: Path, optimization: str = "-O0", target: str | None = None) -> str:
    """The compiler of this machine, with less optimization and, if given, for another kind of processor."""
    lines = ["#!/bin/bash", f'set -- "${{@/#-O3/{optimization}}}"']
    if target is not None:
        lines.append(f'set -- "${{@/#-march=native/-march={target}}}"')
    path.write_text("\n".join([*lines, 'exec c++ "$@"', ""]))
    path.chmod(0o755)
    return str(path)


def recording_compiler(path: Path, version: str, reply: str = "") -> str:
    """A compiler of this name and version, which writes a line into `<path>.calls` for each compilation.

    It runs `reply`, in Bash, before it compiles. The ids of processes that ask for its version are in `<path>.asked`.
    """
    lines = [
        "#!/bin/bash",
        f"if [[ $* == --version ]]; then echo $PPID >> {path}.asked; echo {version}; exit; fi",
        f'if [[ " $* " == *" -c "* ]]; then echo >> {path}.calls; {reply or ":"}; fi',
        'exec c++ "$@"',
        "",
    ]
    path.write_text("\n".join(lines))
    path.chmod(0o755)
    return str(path)


def compilations(compiler: str) -> int:
    """How often a recording compiler was called to compile."""
    calls = Path(f"{compiler}.calls")
    return len(calls.read_text().splitlines()) if calls.exists() else 0
