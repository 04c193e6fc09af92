"""Localise a target with a first network: where it is, and a prior for a second network."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.data import MetaTensor, affine_to_spacing
from torch import Tensor, nn

from liverseg.bundle import choose
from liverseg.errors import InputError
from liverseg.inferers.utils import as_tensor
from liverseg.networks.blocks import crop, pad_to_multiple
from liverseg.networks.weights import load_weights
from liverseg.transforms.localise import MASK_KEY
from liverseg.transforms.morphology import Box, bounding_box

logger = logging.getLogger(__name__)

PRIORS = ("box", "gradcam", "none")

# Threads that cache a data set share the network, on which Grad-CAM hangs a hook while it runs.
_ONE_AT_A_TIME = threading.Lock()


class Localisation(NamedTuple):
    """The result of `Localiser`.

    Args:
        mask: of the target, uint8, (1, H, W, D), on the grid of the volume.
        region: the crop around the mask, or the whole volume.
        prior: float32 from 0 to 1, (1, h, w, d), in the region.
        found: whether there is anything in the mask.
    """

    mask: MetaTensor
    region: Box
    prior: Tensor
    found: bool


class Localiser:
    """Find a target in volumes with a localisation network, and a prior of where in the crop it is.

    The first stage of the cascade of IJIES 2022 (sections 3.3, 3.4 and 3.9): its network's mask,
    postprocessed, gives the region of interest; a box or Grad-CAM is the prior of the tuning
    network. The prior "box" is 1 inside the box around the mask, widened by `box_margin_mm`;
    "gradcam" is Grad-CAM; "none" is 1 everywhere.

    Where nothing is found, a warning is logged and the region is the whole volume, with "box" as
    prior 1 everywhere. In a volume that is not cropped, as for lesions in a liver that has none,
    there is no warning.

    Grad-CAM (Selvaraju et al., ICCV 2017) is of the sum of the foreground's logits over a slice:
    the maps of `target_layer`, weighted with the mean gradient of that sum, summed over the
    channels and cut off below 0; then divided by the largest value of the volume. It comes from the
    same forward pass as the mask.

    In a process that a data loader forks no GPU can be used: cache `LocalisePriord`, or run the
    network on the CPU.

    Args:
        network: maps slices (N, C, h, w) to logits (N, 2, h, w) of background and target, or (N, 1,
            h, w) of the target. It is set to eval mode and its parameters are frozen at the first
            call.
        inferer: called with an image (1, 1, H, W, D) and the network, returns the mask, of the same
            shape, as `VolumeSliceInferer` does: each slice along the last axis goes through the
            network once, in order.
        weights: path of the network's weights, read at the first call; None leaves the network as
            it is.
        prior: "box", "gradcam" or "none".
        box_margin_mm: of the prior "box" around the mask.
        crop_margin_mm: of the crop around the mask; more than `box_margin_mm`, or that prior is 1
            everywhere. None keeps the whole volume.
        postprocessing: a dictionary transform of "localised", the mask, that may read the image,
            such as `DenseCRFd(keys="localised", image_key="image")`.
        target_layer: name of the layer that Grad-CAM looks at; the default is the end of the bridge
            of `UNet`.
        image_key: of the image for `postprocessing`.

    Raises:
        InputError: for an unknown prior or layer; in a call for an image without affine or of
            another shape, weights that do not fit, or an inferer that does not give each slice to
            the network.
    """

    def __init__(
        self,
        network: nn.Module,
        inferer: Callable[[Tensor, nn.Module], Tensor],
        weights: str | os.PathLike[str] | None = None,
        prior: str = "gradcam",
        box_margin_mm: float = 5,
        crop_margin_mm: float | None = 20,
        postprocessing: Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]] | None = None,
        target_layer: str = "encoder.features.23",
        image_key: str = "image",
    ) -> None:
        choose("prior", prior, dict.fromkeys(PRIORS))
        if prior == "gradcam" and target_layer not in dict(network.named_modules()):
            layers = [
                name for name, module in network.named_modules() if isinstance(module, nn.ReLU)
            ]
            raise InputError(
                f"target_layer: found {target_layer!r}, expected the name of a layer of "
                f"{type(network).__name__}: choose one such as "
                f"{', '.join(layers[-3:]) or 'its last convolution'}."
            )
        self.network, self.inferer, self.weights = network, inferer, weights
        self.prior, self.postprocessing, self.target_layer = prior, postprocessing, target_layer
        self.box_margin_mm, self.crop_margin_mm = box_margin_mm, crop_margin_mm
        self.image_key = image_key
        self.ready = False

    def __call__(self, image: MetaTensor) -> Localisation:
        """Localise the target in an image (1, H, W, D); see the class."""
        if not isinstance(image, MetaTensor) or image.ndim != 4 or image.shape[0] != 1:
            raise InputError(
                f"{self.image_key}: found a {type(image).__name__} of shape {tuple(image.shape)}, "
                "expected a MetaTensor (1, H, W, D): load it with LoadVolumed."
            )
        mask, cam = self._infer(image)
        if self.postprocessing is not None:
            mask = self.postprocessing({self.image_key: image, MASK_KEY: mask})[MASK_KEY]
        region = self._box(mask, self.crop_margin_mm or 0)
        found = region is not None
        if not found and self.crop_margin_mm is not None:
            name = image.meta.get("filename_or_obj", self.image_key)
            logger.warning("%s: the localisation network found nothing.", name)
        if region is None or self.crop_margin_mm is None:
            region = tuple(slice(0, length) for length in image.shape[1:])
        shape = image.shape[1:]
        prior = self._box_or_ones(mask, region) if cam is None else cam.volume(shape, region)
        return Localisation(mask, region, prior[None].to(image.device), found)

    def _infer(self, image: MetaTensor) -> tuple[MetaTensor, _GradCAM | None]:
        with _ONE_AT_A_TIME:
            if not self.ready:
                if self.weights is not None:
                    load_weights(self.network, self.weights)
                self.network.eval().requires_grad_(False)
                self.ready = True
            cam = _GradCAM(self.network, self.target_layer) if self.prior == "gradcam" else None
            mask = self.inferer(image[None], self.network if cam is None else cam)[0]
        return MetaTensor(mask.as_subclass(Tensor).to(torch.uint8)).copy_meta_from(image), cam

    def _box(self, mask: MetaTensor, margin_mm: float) -> Box | None:
        spacing = affine_to_spacing(mask.affine, r=3).tolist()
        margin = [math.ceil(margin_mm / mm) for mm in spacing]
        return bounding_box(as_tensor(mask[0]).cpu().numpy() > 0, margin)

    def _box_or_ones(self, mask: MetaTensor, region: Box) -> Tensor:
        size = [s.stop - s.start for s in region]
        box = self._box(mask, self.box_margin_mm) if self.prior == "box" else None
        if box is None:
            return torch.ones(size)
        values = torch.zeros(size)
        inside = [
            slice(max(b.start - r.start, 0), max(b.stop - r.start, 0))
            for b, r in zip(box, region, strict=True)
        ]
        values[tuple(inside)] = 1
        return values


class _GradCAM(nn.Module):
    """A network that keeps Grad-CAM of every slice that goes through it.

    MONAI's `GradCAM` gives the same maps, to the bit, but takes 1.6 times as long with the second
    forward pass that the mask needs, computes gradients of all weights, and leaves its hooks on the
    network.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network = network
        self.layer = layer
        self.maps: list[Tensor] = []
        self.size, self.padded = [0, 0], [0, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of slices (N, C, h, w)."""
        activation = []

        def start_graph(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            activation.append(output.detach().requires_grad_())
            return activation[0].clone()  # the next layer may work in place

        self.size = list(x.shape[2:])
        # As the networks do it themselves; so the maps are known to end where the padded slice
        # does.
        x = pad_to_multiple(x, 16)
        self.padded = list(x.shape[2:])
        handle = self.network.get_submodule(self.layer).register_forward_hook(start_graph)
        try:
            with torch.enable_grad():
                logits = self.network(x)
                score = logits[:, -1].sum()
        finally:
            handle.remove()
        gradient = torch.autograd.grad(score, activation)[0].float()
        weighted = gradient.mean((2, 3), keepdim=True) * activation[0].detach().float()
        self.maps.append(F.relu(weighted.sum(1, keepdim=True)))
        return crop(logits.detach(), self.size[0], self.size[1])

    def volume(self, shape: Sequence[int], region: Box) -> Tensor:
        """Return the maps, from 0 to 1, in a region of a volume of this shape."""
        maps = torch.cat(self.maps)
        if len(maps) != shape[2]:
            raise InputError(
                f"the localisation's inferer gave the network {len(maps)} slices of {shape[2]}, "
                "expected each once: use VolumeSliceInferer."
            )
        maps = maps / maps.max().clamp(min=torch.finfo(maps.dtype).tiny)
        rows, columns, slices = region
        volume = torch.empty([s.stop - s.start for s in region])
        for start in range(slices.start, slices.stop, 16):
            part = maps[start : min(start + 16, slices.stop)]
            part = F.interpolate(part, size=self.padded, mode="bilinear", align_corners=False)
            part = part[:, :, : self.size[0], : self.size[1]]
            part = F.interpolate(part, size=list(shape[:2]), mode="bilinear", align_corners=False)[
                :, 0, rows, columns
            ]
            volume[..., start - slices.start : start - slices.start + len(part)] = part.permute(
                1, 2, 0
            )
        return volume
