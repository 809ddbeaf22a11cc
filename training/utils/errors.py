"""Errors as users read them."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from datasets.exceptions import DatasetGenerationError, DatasetsError
from huggingface_hub.errors import StrictDataclassError


@contextmanager
def clear_errors() -> Iterator[None]:
    """Ends the script without a traceback if data, model or options are at fault: the message alone says what is
    wrong."""
    try:
        yield
    except DatasetGenerationError as error:  # "An error occurred while generating the dataset": the cause says which
        raise SystemExit(f"error: {error}: {error.__cause__ or 'without a reason'}") from error
    except (OSError, ValueError, ImportError, DatasetsError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from error


def nearest(name: str, choices: Iterable[str]) -> str:
    """ " (did you mean ...?)" with the choice most similar to `name`, or "" if none is similar."""
    similar = difflib.get_close_matches(name, choices, 1)
    return f" (did you mean {similar[0]}?)" if similar else ""
