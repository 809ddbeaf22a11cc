"""Recipes, studies and architectures that the package `rednet.configs` contains, by name."""

from importlib.resources import files
from pathlib import Path


CONFIGS = Path(str(files("rednet.configs")))


def find_recipe(name: str) -> Path:
    """The path of a recipe.

    Args:
        name: a file, or else the name of a packaged recipe (`imagenet_rednet50`) or study (`ablations/fashion_mnist`).
    """
    path = Path(name)
    if not path.is_file():
        for folder in (CONFIGS / "training", CONFIGS):
            if (packaged := folder / f"{name}.yaml").is_file():
                return packaged
    return path


def recipe_names() -> list[str]:
    """The names of all packaged recipes and studies."""
    recipes, studies = ((CONFIGS / folder).glob("*.yaml") for folder in ("training", "ablations"))
    return sorted(path.stem for path in recipes) + sorted(f"ablations/{path.stem}" for path in studies)


def find_architecture(name: str) -> str:
    """The path of the packaged architecture `name` (`rednet-50`), otherwise `name` itself: a path or a Hub id."""
    packaged = CONFIGS / "models" / f"{name}.json"
    return str(packaged) if packaged.is_file() else name
