"""The studies on a DICOMweb server."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from lib.store.dicom_server import DicomServer, DicomServerError, connect_client, first
from lib.store.local import LockedDatastore
from lib.store.segmentation_index import SegmentationIndex
from lib.store.segmentation_voxels import write_label
from lib.store.segmentation_writing import named_segments, write_segmentation
from lib.store.segmentations import Segmentation, current
from lib.store.volumes import read_label, values_in
from liverseg.errors import InputError
from liverseg.files import NotSavedError
from liverseg.io.nifti import write_nifti
from liverseg.io.paths import stem_of
from liverseg.io.volumes import save_as_nifti

logger = logging.getLogger(__name__)

FINAL = DefaultLabelTag.FINAL
# These say nothing of a scan or a label: the same may work later.
NOT_ITS_OWN = (DicomServerError, NotSavedError)
# Of a series, to clients: OHIF opens it by them.
SHOWN = (
    *("SeriesInstanceUID", "StudyInstanceUID", "StudyDate", "StudyTime"),
    *("Modality", "RetrieveURL", "PatientID"),
)


def connect(url: str) -> DicomwebDatastore:
    """The datastore of a DICOMweb server, with MONAI Label's settings.

    Raises:
        InputError: if no server answers there, or the tool is missing that writes DICOM SEG.
    """
    # Installed beside this Python, and MONAI Label would download it otherwise.
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    if shutil.which("itkimage2segimage") is None:
        raise InputError(
            "found no itkimage2segimage, expected it for DICOM SEG: pip install dcmqi."
        )
    client = connect_client(url)
    DicomServer(client).check()
    return DicomwebDatastore(
        client=client,
        search_filter=settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER,
        cache_path=settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or None,
    )


class DicomwebDatastore(DICOMWebDatastore, LockedDatastore):
    """MONAI Label's, for several threads and processes, with labels that are found again and named.

    A scan is a series, its id the series' UID; its final label is what the DICOM SEGs that belong
    to it say together, see `current`. Scans and labels are read from copies as NIfTI in a folder of
    this machine. MONAI Label's own shows for two hours what was there when it was first asked,
    takes a series for complete that is still being downloaded, knows nothing of a scan before that,
    asks the server to unpack compressed scans, downloads the scan for its label, names the segments
    of a label by their order, and does not put a DICOM SEG of other programs on the scan's grid.

    A scan or a label that cannot be read is named in the status; it is neither labelled, so that it
    does not train, nor unlabelled, so that no annotator draws it anew.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server = DicomServer(self._client)
        self.segmentations = SegmentationIndex(self.server)
        # Messages, by scan and by scan with what its label would be made of.
        self._bad_scans: dict[str, str] = {}
        self._bad_labels: dict[str, tuple[list[Segmentation], str]] = {}

    def list_images(self) -> list[str]:
        """The series that `MONAI_LABEL_DICOMWEB_SEARCH_FILTER` finds now."""
        return [
            str(first(series, "SeriesInstanceUID"))
            for series in self.server.search(**self._search_filter)
        ]

    def get_labeled_images(self, *_: Any) -> list[str]:
        """Those with a label that can be read; each is copied if its copy is not the newest.

        Raises:
            DicomServerError: where the server does not answer.
            NotSavedError: where the disk has no space for a copy.
        """
        segmentations, found = self.segmentations.read(), []
        for image in self.list_images():
            if (
                image not in segmentations
                or self._bad_labels.get(image, ([],))[0] == segmentations[image]
            ):
                continue
            try:
                self._copy_label(image, segmentations[image])
                found.append(image)
            except NOT_ITS_OWN:
                raise
            except InputError as error:
                logger.warning("%s", error)
        return found

    def get_unlabeled_images(self, *_: Any) -> list[str]:
        """Those of them without a DICOM SEG, except scans that could not be read."""
        segmentations = self.segmentations.read()
        return [
            image
            for image in self.list_images()
            if image not in segmentations and image not in self._bad_scans
        ]

    def status(self) -> dict[str, Any]:
        """How many scans there are and have a label, and what is unreadable."""
        copies = LockedDatastore.json(self)["objects"]
        found: dict[str, Any] = {
            "label_tags": Counter(tag for copy in copies.values() for tag in copy["labels"])
        }
        try:
            images, segmentations = self.list_images(), self.segmentations.read()
        except DicomServerError as error:
            images, segmentations = list(copies), self.segmentations.last
            found["error"] = str(error)
        bad_labels = {
            image: message
            for image, (_, message) in self._bad_labels.items()
            if image in segmentations
        }
        return {
            "total": len(images),
            "completed": len(set(images) & segmentations.keys() - bad_labels.keys()),
            **found,
            "unreadable_scans": {
                image: message for image, message in self._bad_scans.items() if image in images
            },
            "unreadable_labels": {**bad_labels, **self.segmentations.bad},
        }

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Scan and label of those with a label that can be read."""
        labelled = self.get_labeled_images()
        return [
            item
            for item in LockedDatastore.datalist(self, full_path)
            if stem_of(item["image"]) in labelled
        ]

    def get_image_uri(self, image_id: str) -> str:
        """The scan as NIfTI, downloaded at the first call; "" for one that is not on the server.

        Raises:
            DicomServerError: where it has to be downloaded and the server does not send it.
            InputError: for a series that is no volume.
            NotSavedError: where the disk has no space for it.
        """
        if not re.fullmatch(r"\d[\d.]*", image_id):
            return ""
        file = Path(self._datastore.image_path()) / f"{image_id}.nii.gz"
        if not file.is_file():
            try:
                with self._lock(image_id):
                    if not file.is_file() and not self._copy_scan(image_id, file):
                        return ""
            except InputError as error:
                if not isinstance(error, NOT_ITS_OWN):
                    self._bad_scans[image_id] = str(error)
                raise
        self._bad_scans.pop(image_id, None)
        return str(file)

    def series_info(self, image_id: str) -> dict[str, Any]:
        """What the server says of a series, downloaded or not."""
        return _shown(self.server.find(image_id))

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """As MONAI Label's, also for a scan that was not downloaded before."""
        self.get_image_uri(image_id)
        super().update_image_info(image_id, info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse it.

        Raises:
            InputError: always.
        """
        raise InputError(
            "file: found an upload, expected a series of the DICOM server: send it there as DICOM."
        )

    def remove_image(self, image_id: str) -> None:
        """Refuse it, as it would come back.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"image {image_id}: found a series of the DICOM server, expected to delete it there."
        )

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label that is on this machine alone.

        Raises:
            InputError: for the final label, which would come back.
        """
        if label_tag in (FINAL, "*"):
            raise InputError(
                f"label of {label_id}: found one of the DICOM server, expected to delete it there."
            )
        super().remove_label(label_id, label_tag)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The label of a scan as NIfTI on its grid; "" without one.

        The final one is that of the DICOM SEGs, copied if there is a newer one.

        Raises:
            DicomServerError: where the server does not answer, and what it last listed was not
                copied.
            InputError: for a label that cannot be read.
        """
        if label_tag == FINAL:
            try:
                segmentations = self.segmentations.read()
            except DicomServerError as error:
                if label_id not in self.segmentations.last:
                    raise
                logger.warning("label of %s: there may be a newer one: %s", label_id, error)
                segmentations = self.segmentations.last
            if label_id not in segmentations:
                return ""
            self._copy_label(label_id, segmentations[label_id])
        return LockedDatastore.get_label_uri(self, label_id, label_tag)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Save a label of a scan, a final one on the server, as DICOM SEG.

        Raises:
            DicomServerError: where the server does not answer.
            ImageNotFoundException: if there is no such scan.
            InputError: for a final label without any segment, or that cannot be written or stored
                as DICOM SEG.
        """
        scan = self.get_image_uri(image_id)
        if not scan:
            raise ImageNotFoundException(f"Image {image_id} not found")
        if label_tag == FINAL:
            label = read_label(label_filename)
            values = set(values_in(label))
            if not values:
                raise InputError(
                    f"label of {image_id}: found no segment, expected one to save: draw or "
                    "segment first."
                )
            label_info = {**label_info, "label_info": named_segments(label_info, values)}
            before = [one.made for one in self.segmentations.read().get(image_id, []) if one.made]
            with tempfile.TemporaryDirectory() as folder:
                # MONAI Label cuts off what is behind the point: 0.9999999 would become the
                # background.
                whole = Path(folder) / "label.nii.gz"
                write_nifti(whole, label[0].numpy(), label.affine.numpy())
                segmentation = write_segmentation(
                    Path(scan).with_name(image_id), str(whole), label_info["label_info"]
                )
            # The tool says seconds only, and another program's clock may be fast.
            made = max(
                [datetime.now().astimezone(), *(one + timedelta(milliseconds=1) for one in before)]
            ).astimezone()
            segmentation.InstanceCreationDate = made.strftime("%Y%m%d")
            segmentation.InstanceCreationTime = made.strftime("%H%M%S.%f")
            self.server.store(segmentation)
            label_info["SeriesInstanceUID"] = str(segmentation.SeriesInstanceUID)
            label_info["segmentations"] = [str(segmentation.SOPInstanceUID)]
        return LockedDatastore.save_label(self, image_id, label_filename, label_tag, label_info)

    def _lock(self, name: str) -> FileLock:
        """Whatever is copied is copied once, and keeps nothing else waiting."""
        return FileLock(Path(self._datastore_path) / f".lock_of_{name}")

    def _copy_scan(self, image_id: str, file: Path) -> bool:
        # What is there without the file is of a download that was cut short.
        folder = file.with_name(image_id)
        shutil.rmtree(folder, ignore_errors=True)
        series = self.server.download(image_id, folder)
        if not series:
            return False
        info = _shown(series)
        with tempfile.TemporaryDirectory() as converted:
            scan = Path(converted, file.name)
            try:
                info["warnings"] = list(save_as_nifti(str(folder), scan))
            except InputError as error:
                raise type(error)(str(error).replace(str(folder), f"image {image_id}")) from error
            LockedDatastore.add_image(self, image_id, str(scan), info)
        return True

    def _copy_label(self, image: str, segmentations: list[Segmentation]) -> None:
        """Have what the DICOM SEGs of a scan say as its final label on this machine."""
        try:
            chosen = current(segmentations)
            instances = [one.instance for one in chosen]

            def is_copied() -> bool:
                return self.get_label_info(image, FINAL).get("segmentations") == instances

            if not is_copied():
                scan = self.get_image_uri(image)
                if not scan:
                    raise InputError(
                        "found no scan, expected one: it was deleted on the DICOM server."
                    )
                with self._lock(f"label_of_{image}"), tempfile.TemporaryDirectory() as folder:
                    # Someone may have done it meanwhile.
                    if not is_copied():
                        file = Path(folder) / "label.nii.gz"
                        datasets = [
                            self.server.instance(one.study, one.series, one.instance)
                            for one in chosen
                        ]
                        segments = write_label(datasets, Path(scan), file)
                        info = {"segmentations": instances, "label_info": segments}
                        LockedDatastore.save_label(self, image, str(file), FINAL, info)
        except NOT_ITS_OWN:
            raise
        except InputError as error:
            message = f"label of {image}: {error}"
            self._bad_labels[image] = segmentations, message
            raise InputError(message) from error
        self._bad_labels.pop(image, None)


def _shown(series: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) for key in SHOWN if (value := first(series, key)) is not None}
