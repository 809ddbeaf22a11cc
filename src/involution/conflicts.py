"""Other packages that have the import name of this one.

Several projects of 2021 are installed as `involution` too. pip lets the files of several distributions lie in one
folder: the last one that is installed replaces `involution/__init__.py`, and removing one of them removes it.
"""

import sys
from importlib.metadata import packages_distributions


_CURE = "run `pip uninstall {names}`, and then install rednet again with `pip install --force-reinstall --no-deps`"


def problems() -> list[str]:
    """What is wrong with the installation of the package `involution`, with the cures. It takes a second or two."""
    package = sys.modules[__package__]
    others = sorted(set(packages_distributions().get("involution", [])) - {"rednet"})
    is_intact = hasattr(package, "show_config")  # a name of our `__init__.py`
    if others:
        state = "its files are mixed with those of rednet" if is_intact else "it replaced `involution/__init__.py`"
        cure = _CURE.format(names=" ".join(others))
        return [
            f"the package `involution` also belongs to {' and '.join(others)}: {state}. Please {cure}. "
            "`involution.compat` has the layers of that package"
        ]
    if not is_intact:
        where = (
            getattr(package, "__file__", None) or f"in {' and '.join(package.__path__)}, which has no `__init__.py`"
        )
        return [f"the package `involution` ({where}) is not that of rednet: please {_CURE.format(names='rednet')}"]
    return []
