"""Recipes, studies and architectures that the package `rednet.configs` contains, by name."""

from importlib.resources import files
from pathlib import Path


CONFIGS = Path(str(files("rednet.configs")))
RECIPE_FOLDERS = ("training", "ablations")


def find_recipe(name: str) -> Path:
    """The path of a recipe: the file `name` if it exists, otherwise the packaged recipe or study of that name."""
    path = Path(name)
    if not path.is_file():
        for folder in RECIPE_FOLDERS:
            if (packaged := CONFIGS / folder / f"{name}.yaml").is_file():
                return packaged
    return path


def recipe_names() -> list[str]:
    """The names of all packaged recipes and studies."""
    return sorted(path.stem for folder in RECIPE_FOLDERS for path in (CONFIGS / folder).glob("*.yaml"))


def find_architecture(name: str) -> str:
    """The path of the packaged architecture `name` (`rednet-50`), otherwise `name` itself: a path or a Hub id."""
    packaged = CONFIGS / "models" / f"{name}.json"
    return str(packaged) if packaged.is_file() else name
