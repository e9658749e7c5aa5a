"""Depthwise, grouped, separable and deformable convolution for PyTorch: C++ custom operators, torch.ops.torch_ext."""

from torch_ext import _loader
from torch_ext._version import __version__

_loader.load()

from torch_ext import functional, nn, tf  # noqa: E402  (they call the ops)
from torch_ext.convert import convert, revert  # noqa: E402
from torch_ext.functional import *  # noqa: E402, F403
from torch_ext.keras import from_keras  # noqa: E402
from torch_ext.kernels import which_kernel  # noqa: E402

__all__ = [
    "__version__",
    "convert",
    "from_keras",
    "functional",
    "nn",
    "revert",
    "tf",
    "which_kernel",
    *functional.__all__,
]
