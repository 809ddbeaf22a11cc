"""The notebook of a model, made from the template in `hub_cards`: the Hub opens it in Google Colab and Kaggle.

The template is a Markdown page: its fenced `python` blocks become cells of code, the text between them cells of text. The
metadata of a notebook have the repository that it loads, so that a push can replace it.
"""

import json
import re

from jinja2 import Template
from rednet.configuration_rednet import RedNetConfig
from rednet.hub.cards import EXAMPLE_PICTURE, FOLDER, task_of


NOTEBOOK = "notebook.ipynb"
# Data for fine-tuning: a small data set of the Hub, and the number of its pictures that the model is trained on.
DATASET, PICTURES = "AI-Lab-Makerere/beans", 120


def make_notebook(config: RedNetConfig, name: str, repository: str) -> str:
    """
    Returns the content of `notebook.ipynb` (nbformat 4.5): classify or segment a picture, look at the kernels, fine-tune.

    Args:
        config: the configuration of the model.
        name: the title.
        repository: the repository that the notebook loads, see `make_card`.
    """
    template = Template((FOLDER / "notebook.md").read_text(), keep_trailing_newline=True)
    page = template.render(
        name=name,
        repository=repository,
        picture=EXAMPLE_PICTURE,
        dataset=DATASET,
        pictures=PICTURES,
        task=task_of(config),
        convolution=config.operator_type == "convolution",
    )
    # Parts with odd numbers are the contents of the blocks.
    parts = re.split(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    cells = [_cell(number, text.strip("\n"), number % 2 == 1) for number, text in enumerate(parts) if text.strip()]
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "rednet": {"repository": repository},
    }
    return _to_json({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def set_notebook_repository(content: str, repository: str) -> str:
    """
    Lets a notebook that `make_notebook` made load `repository`, an id `owner/name`. Everything else in it stays.

    Args:
        content: of `notebook.ipynb`.

    Returns:
        The new content. A notebook of somebody else is returned as it is.
    """
    try:
        notebook = json.loads(content)
        loaded = notebook["metadata"]["rednet"]["repository"]
    except (ValueError, KeyError, TypeError):
        return content
    notebook["metadata"]["rednet"]["repository"] = repository
    for cell in notebook["cells"]:
        # Jupyter saves a source as a list of lines, other programs as a string.
        lines = cell["source"] if isinstance(cell["source"], list) else cell["source"].splitlines(True)
        cell["source"] = [_replace(line, loaded, repository) for line in lines]
    return _to_json(notebook)


def _replace(line: str, loaded: str, repository: str) -> str:
    """Replaces a repository where the template has it: in the code, and in the link of the text."""
    link = "[{0}](https://huggingface.co/{0})"
    return line.replace(f'"{loaded}"', f'"{repository}"').replace(link.format(loaded), link.format(repository))


def _cell(number: int, source: str, is_code: bool) -> dict:
    cell = {"id": f"cell-{number}", "metadata": {}, "source": source.splitlines(True)}
    if is_code:
        return {"cell_type": "code", "execution_count": None, "outputs": [], **cell}
    return {"cell_type": "markdown", **cell}


def _to_json(notebook: dict) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
