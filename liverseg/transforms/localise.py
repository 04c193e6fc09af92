"""Localise a target with a first network: crop to it, and say where it is with a prior for a second network."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor, affine_to_spacing
from monai.transforms import Crop, InvertibleTransform, MapTransform
from torch import Tensor, nn

from liverseg.errors import InputError
from liverseg.networks.blocks import crop, pad_to_multiple
from liverseg.networks.weights import load_weights
from liverseg.transforms.morphology import Box, bounding_box

logger = logging.getLogger(__name__)

PRIORS = ("box", "gradcam", "none")

# Threads that cache a data set share the network, on which Grad-CAM hangs a hook while it runs.
_ONE_AT_A_TIME = threading.Lock()


class LocalisePriord(MapTransform, InvertibleTransform):
    """Crop volumes to where a localisation network finds the target, and add a prior of where in the crop it is.

    The first stage of the cascade on LiTS (sections 3.3, 3.4 and 3.9): its network's mask, post-processed, gives the
    region of interest; a box or Grad-CAM is the prior of the tuning network. All items stay on one grid, with the
    affine of the crop, and `Invertd` undoes the crop.

    Added to the dictionary, both (1, h, w, d) on the cropped grid:

    - `prior_key`, float32 from 0 to 1: of "box", 1 inside the box around the mask of the volume, widened by
      `box_margin_mm`; of "gradcam", Grad-CAM; of "none", 1 everywhere;
    - `mask_key`, uint8: the mask; and under `<mask_key>_empty` whether nothing was found.

    Where nothing is found, a warning is logged and the whole volume is kept, with "box" as prior 1 everywhere: training
    goes on, and whoever infers reads `<mask_key>_empty` and gives an empty mask. In a volume that is not cropped, as
    for lesions in a liver that has none, nothing is a finding like any other and there is no warning.

    Grad-CAM (Selvaraju et al., ICCV 2017) is of the sum of the foreground's logits over a slice: the maps of
    `target_layer`, weighted with the mean gradient of that sum, summed over the channels and cut off below 0; then
    divided by the largest value of the volume. It comes from the same forward pass as the mask.

    In a process that a data loader forks no GPU can be used: cache this transform, or run the network on the CPU.

    Args:
        keys: the image, (1, H, W, D) with an affine, then what else is cropped with it, such as the label.
        network: maps slices (N, C, h, w) to logits (N, 2, h, w) of background and target, or (N, 1, h, w) of the
            target. It is set to eval mode and its parameters are frozen at the first call.
        inferer: called with an image (1, 1, H, W, D) and the network, returns the mask, of the same shape, as
            `VolumeSliceInferer` does: each slice along the last axis goes through the network once, in order.
        weights: path of the network's weights, read at the first call; None leaves the network as it is.
        prior: "box", "gradcam" or "none".
        box_margin_mm: of the prior "box" around the mask.
        crop_margin_mm: of the crop around the mask; more than `box_margin_mm`, or that prior is 1 everywhere. None
            keeps the whole volume.
        postprocessing: a dictionary transform of `mask_key` that may read the image, such as
            `DenseCRFd(keys="localised", image_key="image")`.
        target_layer: name of the layer that Grad-CAM looks at; the default is the end of the bridge of `UNet`.
        prior_key: see above.
        mask_key: see above.
        allow_missing_keys: skip keys that an item lacks, such as the label.

    Raises:
        InputError: for an unknown prior or layer; in a call for an image without affine or of another shape, a key on
            another grid, weights that do not fit, or an inferer that does not give each slice to the network.
    """

    def __init__(
        self,
        keys: KeysCollection,
        network: nn.Module,
        inferer: Callable[[Tensor, nn.Module], Tensor],
        weights: str | Path | None = None,
        prior: str = "gradcam",
        box_margin_mm: float = 5,
        crop_margin_mm: float | None = 20,
        postprocessing: Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]] | None = None,
        target_layer: str = "encoder.features.23",
        prior_key: str = "prior",
        mask_key: str = "localised",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if prior not in PRIORS:
            raise InputError(
                f"prior: found {prior!r}, expected one of {', '.join(PRIORS)}: set it to one of these."
            )
        if prior == "gradcam" and target_layer not in dict(network.named_modules()):
            layers = [
                name for name, module in network.named_modules() if isinstance(module, nn.ReLU)
            ]
            raise InputError(
                f"target_layer: found {target_layer!r}, expected the name of a layer of {type(network).__name__}: "
                f"choose one such as {', '.join(layers[-3:]) or 'its last convolution'}."
            )
        self.image_key = self.keys[0]
        self.network, self.inferer, self.weights = network, inferer, weights
        self.prior, self.postprocessing, self.target_layer = prior, postprocessing, target_layer
        self.box_margin_mm, self.crop_margin_mm = box_margin_mm, crop_margin_mm
        self.prior_key, self.mask_key = prior_key, mask_key
        self.cropper = Crop()
        self.ready = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data`, cropped, with the prior and the mask; see the class."""
        d = dict(data)
        image = d[self.image_key]
        if not isinstance(image, MetaTensor) or image.ndim != 4 or image.shape[0] != 1:
            raise InputError(
                f"{self.image_key}: found a {type(image).__name__} of shape {tuple(image.shape)}, expected a "
                "MetaTensor (1, H, W, D): load it with LoadVolumed."
            )
        mask, cam = self._infer(image)
        if self.postprocessing is not None:
            mask = self.postprocessing({self.image_key: image, self.mask_key: mask})[self.mask_key]
        d[self.mask_key] = mask

        region = self._box(mask, self.crop_margin_mm or 0)
        d[f"{self.mask_key}_empty"] = region is None
        if region is None and self.crop_margin_mm is not None:
            name = image.meta.get("filename_or_obj", self.image_key)
            logger.warning("%s: the localisation network found nothing.", name)
        if region is None or self.crop_margin_mm is None:
            region = tuple(slice(0, length) for length in image.shape[1:])
        values = (
            cam.volume(image.shape[1:], region)
            if cam is not None
            else self._box_or_ones(mask, region)
        )

        for key in (*self.key_iterator(d), self.mask_key):
            if d[key].shape[1:] != image.shape[1:]:
                raise InputError(
                    f"{key}: found shape {tuple(d[key].shape)}, expected the grid of {self.image_key}, "
                    f"{tuple(image.shape)}: resample both to one grid first."
                )
            # A copy, for a view would keep the whole volume in memory.
            d[key] = self.cropper(d[key], region).clone()
        d[self.prior_key] = MetaTensor(values[None].to(image.device)).copy_meta_from(
            d[self.image_key]
        )
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the items of the cropped grid back on the volume's own, 0 outside the crop."""
        d = dict(data)
        added = [key for key in (self.prior_key, self.mask_key) if key in d]
        for key in (*self.key_iterator(d), *added):
            d[key] = self.cropper.inverse(d[key])
        return d

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
        foreground = mask[0].as_subclass(Tensor).cpu().numpy() > 0
        return bounding_box(foreground, [math.ceil(margin_mm / mm) for mm in spacing])

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

    MONAI's `GradCAM` gives the same maps, but with gradients of all weights and a second forward pass for the mask.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network = network
        self.layer = layer
        self.maps: list[Tensor] = []
        self.size, self.padded = [0, 0], [0, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of slices (N, C, h, w)."""
        kept = []

        def start_graph(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            kept.append(output.detach().requires_grad_())
            return kept[0].clone()  # the next layer may work in place

        self.size = list(x.shape[2:])
        # As the networks do it themselves; so the maps are known to end where the padded slice does.
        x = pad_to_multiple(x, 16)
        self.padded = list(x.shape[2:])
        handle = self.network.get_submodule(self.layer).register_forward_hook(start_graph)
        try:
            with torch.enable_grad():
                logits = self.network(x)
                score = logits[:, -1].sum()
        finally:
            handle.remove()
        gradient = torch.autograd.grad(score, kept)[0].float()
        weighted = gradient.mean((2, 3), keepdim=True) * kept[0].detach().float()
        self.maps.append(F.relu(weighted.sum(1, keepdim=True)))
        return crop(logits.detach(), self.size[0], self.size[1])

    def volume(self, shape: Sequence[int], region: Box) -> Tensor:
        """The maps, divided by the largest value of them all, on the grid of a volume of this shape, in the region."""
        maps = torch.cat(self.maps)
        if len(maps) != shape[2]:
            raise InputError(
                f"the localisation's inferer gave the network {len(maps)} slices of {shape[2]}, expected each once: "
                "use VolumeSliceInferer."
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
