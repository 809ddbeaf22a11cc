"""Reports everything that is wrong with a data set at once, before the first step."""

from collections.abc import Iterable


MOST = 20  # that an error lists; the rest is counted


def raise_problems(problems: Iterable[str], source: str) -> None:
    """
    Raises:
        ValueError: there are problems. Each names the file or annotation, what was given and what was expected.
    """
    problems = list(problems)
    if problems:
        lines = [f"- {problem}" for problem in problems[:MOST]]
        if len(problems) > MOST:
            lines.append(f"- and {len(problems) - MOST} more")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ValueError("\n".join([f"{source} has {count}:", *lines]))
