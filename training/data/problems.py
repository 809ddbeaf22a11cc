"""Reports all problems of a data set at once, before the first step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm.auto import tqdm


MAX_LISTED = 20  # problems in one error message
NUM_THREADS = 16  # that read files; on a network disk they mostly wait


def raise_problems(problems: Iterable[str], source: str) -> None:
    """Raises ValueError with a list of `problems` if there are any.

    Args:
        problems: each names the file or the annotation, what was given and what was expected.
        source: the data set, for the message.
    """
    problems = list(problems)
    if problems:
        lines = [f"- {problem}" for problem in problems[:MAX_LISTED]]
        if len(problems) > MAX_LISTED:
            lines.append(f"- and {len(problems) - MAX_LISTED} more")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ValueError("\n".join([f"{source} has {count}:", *lines]))


def name_problem(path: str) -> str | None:
    """The problem of a file whose path is not UTF-8, or None. A data set stores no other paths."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"{path!a} has a name that is not UTF-8: rename it"
    return None


def read_each(function: Callable[[Any], Any], items: Sequence, description: str) -> Iterator:
    """Yields `function(item)` for each of `items` in order, computed in threads, with a progress bar."""
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        yield from tqdm(threads.map(function, items), total=len(items), desc=description, leave=False, delay=1)


def first_of(names: Sequence, count: int = 5) -> str:
    """The first names, separated by commas, and "..." if there are more."""
    return ", ".join(str(name) for name in names[:count]) + (" ..." if len(names) > count else "")
