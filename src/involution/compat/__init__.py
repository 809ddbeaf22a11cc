"""The layers and functions of other involution code, under their old names, computed by this package.

Replace an old file by an import. A module here has the name of the old file, or of the owner of the old package:

- `involution_cuda`: `involution_cuda.py`, `involution_naive.py` and `involution.py` of the authors' code
- `idynamic`: `idynamic.py` of DemystifyLocalViT
- `idynamicdwconv_util`: `idynamicdwconv_util.py`, of DLGSANet and other restoration networks
- `involution_pytorch`: the package `involution-pytorch` of PyPI
- `christoph_reich`: the package `involution` of Christoph Reich
- `tasaki_lab`: the package `involution` of Tasaki Lab (Involution-PyTorch, involution-cupy)

Layers have the parameter names of the original, so that its checkpoints load, and compute what it computes. The names
that exist once are also in `involution.compat` itself. docs/migrate.md lists the differences.
"""

from .involution_cuda import _idynamic_cuda, _involution_cuda, involution
from .involution_pytorch import Inv2d


__all__ = ["Inv2d", "_idynamic_cuda", "_involution_cuda", "involution"]
