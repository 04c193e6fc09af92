"""How unsure networks are of a scan, measured while a bundle segments it."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn

from lib.bundle import Bundle
from lib.infer.segment import NO_MASK, Segmentation
from liverseg.errors import InputError
from liverseg.inferers import MirrorCheckInferer
from liverseg.inferers.utils import as_tensor
from liverseg.networks import LiverLesionNetworks
from liverseg.networks.blocks import centre, two_class_logits

DROPOUT = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
DROPOUT_PASSES = 4
# In the plane of the first two axes, beside the pass without: as far as every bundle's training
# turns its scans. Flips would be of no use, for networks know left from right.
DEGREES = (-10, 10)
# The share of the way from air to the brightest at which the body begins.
BODY_SHARE = 0.1


class EntropyMeter:
    """Mean entropy in the body of what networks say in several passes; 0 is sure, 1 no idea.

    The passes are those of Monte Carlo dropout (Gal and Ghahramani, ICML 2016) for a network with
    dropout, otherwise one as it is and one for each of `DEGREES`. Their mean softmax gives the
    entropy, divided by that of equal odds.

    The bundle's own inferer does the work: each batch of slices or windows that it gives to a
    network is measured there and forgotten, so that memory holds no volume for it, and any inferer
    will do. Where windows overlap, voxels count once for each. Voxels count on the network's grid,
    so neither the scan's size nor its voxels' weigh in.

    The body is what is brighter than a tenth of the way from the 1st to the 99th percentile of the
    scan as the networks see it: in CT that is above the lower end of the HU window, in MRI above
    the noise of air. A margin around the predicted organ would leave out what was missed, for which
    uncertainty is sought.

    Args:
        evaluator: of one scan, before it runs; its `network` is one network, or `CascadeNetworks`
            or `LiverLesionNetworks`, whose networks count alike, those that are not needed for a
            scan left out.
        image_key: of the scan in the batch.
    """

    def __init__(self, evaluator: SupervisedEvaluator, image_key: str) -> None:
        self.image_key = image_key
        # Its second look is at another scan.
        if isinstance(evaluator.inferer, MirrorCheckInferer):
            evaluator.inferer = evaluator.inferer.inferer
        self.body_level = 0.0
        self.entropies: dict[nn.Module, Tensor] = {}
        self.voxels: dict[nn.Module, Tensor] = {}
        # The first after the weights are loaded: handlers of one event run in the order in which
        # they were added.
        evaluator.add_event_handler(Events.STARTED, self._watch)
        evaluator.add_event_handler(Events.GET_BATCH_COMPLETED, self._find_body)

    def mean(self) -> float:
        """The mean entropy of the scan, 0 to 1.

        Raises:
            InputError: if nothing in it was brighter than air.
        """
        means = [
            float(self.entropies[part] / count) for part, count in self.voxels.items() if count
        ]
        if not means:
            raise InputError(
                "found nothing brighter than air in the scan, expected a body: look at the scan."
            )
        return float(np.mean(means))

    def _watch(self, evaluator: SupervisedEvaluator) -> None:
        network = evaluator.network
        parts = (
            network.children()
            if isinstance(network, nn.ModuleDict | LiverLesionNetworks)
            else [network]
        )
        for part in list(parts):
            # The passes go through a copy, so that others who watch the network, as Grad-CAM does,
            # see but their own.
            twin = copy.deepcopy(part).eval()
            for module in twin.modules():
                if isinstance(module, DROPOUT):
                    module.train()
            part.register_forward_hook(self._hook(part, twin), with_kwargs=True)

    def _find_body(self, evaluator: SupervisedEvaluator) -> None:
        # A voxel of eight tells as much.
        image = (
            as_tensor(evaluator.state.batch[self.image_key])[..., ::2, ::2, ::2]
            .float()
            .cpu()
            .numpy()
        )
        low, high = np.percentile(image, [1, 99])
        self.body_level = float(low + BODY_SHARE * (high - low))

    def _hook(self, part: nn.Module, twin: nn.Module) -> Any:
        random = any(isinstance(module, DROPOUT) and module.p > 0 for module in twin.modules())

        def measure(
            module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any], output: Tensor
        ) -> None:
            x = inputs[0]
            with torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
                if random:
                    torch.manual_seed(0)
                    passes = [_softmax(twin(x, **options)) for _ in range(DROPOUT_PASSES)]
                else:
                    turned = (
                        _turn(_softmax(twin(_turn(x, angle), **options)), -angle)
                        for angle in DEGREES
                    )
                    passes = [_softmax(output), *turned]
                mean = torch.stack(passes).mean(0)
                entropy = torch.special.entr(mean).sum(1) / math.log(mean.shape[1])
                # A network may say nothing of the border of what it sees.
                body = centre(x, output)[:, 0] > self.body_level
                self.entropies[part] = self.entropies.get(part, 0) + entropy[body].sum(
                    dtype=torch.float64
                )
                self.voxels[part] = self.voxels.get(part, 0) + body.sum()

        return measure


def _softmax(logits: Tensor) -> Tensor:
    return two_class_logits(logits.detach().float()).softmax(1)


def _turn(x: Tensor, degrees: float) -> Tensor:
    """Slices (N, C, H, W) or windows (N, C, H, W, D), turned about their centre, linear."""
    height, width = x.shape[2:4]
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    planes = x.reshape(*x.shape[:2], height, width, -1).movedim(-1, 1).flatten(0, 1)
    theta = x.new_tensor(
        [[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]],
        dtype=torch.float32,
    )
    grid = F.affine_grid(theta.expand(len(planes), 2, 3), list(planes.shape), align_corners=False)
    turned = F.grid_sample(planes.float(), grid, padding_mode="border", align_corners=False)
    return turned.unflatten(0, (x.shape[0], -1)).movedim(1, -1).reshape(x.shape).to(x.dtype)


def mean_entropy(bundle: Bundle, scan: str) -> float:
    """Mean entropy of a bundle's networks in the body of one scan, 0 to 1; see `EntropyMeter`.

    Args:
        bundle: with weights.
        scan: path of a NIfTI file or of a folder with a DICOM series.

    Raises:
        InputError: for a scan without anything brighter than air.
    """
    key = bundle.config.get("image_key", "image")
    meters: list[EntropyMeter] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = {"output_dir": folder, "dataset#data": [{key: Path(scan)}], **NO_MASK}
        Segmentation(bundle).run(
            settings, lambda evaluator: meters.append(EntropyMeter(evaluator, key))
        )
    return meters[0].mean()
