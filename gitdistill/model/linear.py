"""The linear layer of this package's attention and of GIT: torch's own, through the faster library when only read."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# oneDNN's product of row-major float32 matrices, which torch itself only uses in compiled graphs.
_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)


class Linear(nn.Linear):
    """`nn.Linear` that multiplies through oneDNN on a CPU, in float32, where no gradient is recorded.

    There torch calls its BLAS, which was the slower one for large matrices (AMD Zen 4, MKL). Same numbers up to
    rounding.
    """

    # Fewer multiplications than this are left to the BLAS: a call to oneDNN has its own price.
    LARGE = 2**21

    # This few rows times a matrix that is not wider than high: the BLAS is the faster one, with both swapped.
    FEW_ROWS = range(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() * self.out_features < self.LARGE or not self._only_read(x):
            return F.linear(x, self.weight, self.bias)
        rows = x.numel() // self.in_features
        if rows in self.FEW_ROWS and self.in_features <= self.out_features:
            y = F.linear(self.weight, x.reshape(rows, -1)).t().contiguous()
            y = y if self.bias is None else y.add_(self.bias)
            return y.view(*x.shape[:-1], -1)
        return _ONEDNN(x, self.weight, self.bias, "none", [], "")

    def _only_read(self, x: Tensor) -> bool:
        return (
            _ONEDNN is not None
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )
