"""Use bfloat16 where the hardware computes it faster than float32, on CPU and GPU alike."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer


def bf16_autocast(device: torch.device | str, amp: bool = True) -> torch.autocast:
    """Return a context for bfloat16, if `amp` and the device computes it natively.

    CPUs without AVX512-BF16 or AMX, or whose AVX512 is off by ATEN_CPU_CAPABILITY, emulate bfloat16
    more slowly than float32; there, and on GPUs before Ampere, everything stays in float32.
    bfloat16 has float32's range, so training needs no loss scaling.
    """
    device = torch.device(device)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        allowed = torch.backends.cpu.get_cpu_capability() == "AVX512"
        native = allowed and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=amp and native)


class AutocastInferer(Inferer):
    """Call the network under `bf16_autocast`; logits are float32, for a loss in full precision.

    MONAI's trainer can autocast on CUDA only.

    Args:
        amp: allow bfloat16.
        options: keyword arguments for the network's forward.
    """

    def __init__(self, amp: bool = True, **options: Any) -> None:
        self.amp = amp
        self.options = options

    def __call__(
        self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor | list[torch.Tensor]:
        """Return logits of `network(inputs)`, (B, num_classes, H, W[, D]), float32.

        Of a network that returns a list or tuple, for MONAI's `DeepSupervisionLoss`, a list of
        them. On a CPU, 3-D patches of a training with fewer than 64 voxels along the first axis
        stay in float32.
        """
        # Where the first axis has come down to 2, oneDNN's bfloat16 weight gradient of a 3-D
        # convolution reads memory that nothing has written: garbage, or NaN. 64 is more than any of
        # these networks divides by.
        small = (
            inputs.device.type == "cpu"
            and inputs.ndim == 5
            and inputs.shape[2] < 64
            and torch.is_grad_enabled()
        )
        with bf16_autocast(inputs.device, self.amp and not small):
            logits = network(inputs, *args, **self.options, **kwargs)
        if isinstance(logits, (list, tuple)):
            return [level.float() for level in logits]
        return logits.float()
