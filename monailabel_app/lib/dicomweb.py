"""The studies on a DICOMweb server."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydicom
import pydicom_seg
import requests
import SimpleITK
from dicomweb_client.session_utils import create_session_from_user_pass
from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset

from lib.datastore import LockedDatastore
from lib.volumes import read_label, values_in
from liverseg.errors import InputError
from liverseg.io.nifti import write_nifti
from liverseg.io.volumes import save_as_nifti

FINAL = DefaultLabelTag.FINAL


def connect(url: str) -> DicomwebDatastore:
    """The datastore of a DICOMweb server, with MONAI Label's settings.

    Raises:
        InputError: if no server answers there, or the tool is missing that writes DICOM SEG.
    """
    # Installed beside this Python, and MONAI Label would download it otherwise.
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    if shutil.which("itkimage2segimage") is None:
        raise InputError('found no itkimage2segimage, expected it for DICOM SEG: pip install "liverseg[label]".')
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    client = DICOMwebClientX(
        url=url.rstrip("/"),
        session=create_session_from_user_pass(user, password) if user and password else None,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    # Once: five attempts take half a minute, in which nothing says that the address is wrong.
    client.set_http_retry_params(retry=False)
    try:
        client.search_for_series(limit=1)
    except (requests.RequestException, ValueError) as error:
        raise InputError(
            f"studies: found no DICOMweb server at {url} ({type(error).__name__}), expected one: start it, or mend the "
            "address."
        ) from error
    client.set_http_retry_params(retry=True)
    return DicomwebDatastore(
        client=client,
        search_filter=settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER,
        cache_path=settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or None,
    )


class DicomwebDatastore(DICOMWebDatastore, LockedDatastore):
    """MONAI Label's, for several threads and processes, with labels that are found again and the names of segments.

    A scan is a series, its id the series' UID; a final label is the newest DICOM SEG that refers to it. Scans and
    labels are read from copies as NIfTI in a folder of this machine. MONAI Label's own shows for two hours what was
    there when it was first asked, takes a series for complete that is still being downloaded, knows nothing of a scan
    before that, asks the server to unpack compressed scans, downloads the scan for its label, names the segments of a
    label by their order, and leaves a DICOM SEG of other programs on a grid of its own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.downloading = FileLock(Path(self._datastore_path) / ".lock_of_downloads")
        self._segmentations_seen: dict[str, tuple[str, str, str]] = {}

    def list_images(self) -> list[str]:
        """The series that `MONAI_LABEL_DICOMWEB_SEARCH_FILTER` finds now."""
        found = self._client.search_for_series(search_filters=self._search_filter)
        return [str(Dataset.from_json(series).SeriesInstanceUID) for series in found]

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Those of them with a DICOM SEG."""
        segmentations = self._segmentations()
        return [image for image in self.list_images() if image in segmentations]

    def get_image_uri(self, image_id: str) -> str:
        """The scan as NIfTI, downloaded at the first call; "" for a series that is not on the server.

        Raises:
            InputError: for a series that is no volume.
        """
        if not re.fullmatch(r"\d[\d.]*", image_id):
            return ""
        file = Path(self._datastore.image_path()) / f"{image_id}.nii.gz"
        with self.downloading:
            if not file.is_file():
                # What is there without the file is of a download that was cut short.
                folder = file.with_name(image_id)
                shutil.rmtree(folder, ignore_errors=True)
                if not self._download(image_id, folder):
                    return ""
                with tempfile.TemporaryDirectory() as converted:
                    scan = Path(converted, file.name)
                    try:
                        save_as_nifti(str(folder), scan)
                    except InputError as error:
                        raise InputError(str(error).replace(str(folder), f"image {image_id}")) from error
                    LockedDatastore.add_image(self, image_id, str(scan), self._dicom_info(image_id))
        return str(file)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """As MONAI Label's, also for a scan that was not downloaded before."""
        self.get_image_uri(image_id)
        super().update_image_info(image_id, info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse it.

        Raises:
            InputError: always.
        """
        raise InputError("file: found an upload, expected a series of the DICOM server: send it there as DICOM.")

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The label of a scan as NIfTI on the scan's grid, downloaded if it is newer than the copy; "" without one.

        Args:
            label_id: that of the scan.
            label_tag: `final` for the DICOM SEG.
            image_id: not looked at.

        Raises:
            InputError: for a DICOM SEG whose segments overlap.
        """
        series = self._segmentations().get(label_id) if label_tag == FINAL else None
        if series is not None and self.get_label_info(label_id, FINAL).get("SeriesInstanceUID") != series:
            with self.downloading, tempfile.TemporaryDirectory() as folder:
                self._download(series, Path(folder))
                (source,) = Path(folder).glob("*.dcm")
                file = Path(folder) / "label.nii.gz"
                segments = convert_segmentation(source, Path(self.get_image_uri(label_id)), file)
                info = {"SeriesInstanceUID": series, "label_info": segments}
                LockedDatastore.save_label(self, label_id, str(file), FINAL, info)
        return LockedDatastore.get_label_uri(self, label_id, label_tag)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """As MONAI Label's, which sends a final label to the server as DICOM SEG.

        Raises:
            InputError: for a final label without any segment.
        """
        if label_tag == FINAL:
            label = read_label(label_filename)
            values = set(values_in(label)) - {0}
            if not values:
                raise InputError(f"label of {image_id}: found no segment, expected one to save: draw or segment first.")
            label_info = {**label_info, "label_info": _named(label_info, values)}
            with tempfile.TemporaryDirectory() as folder:
                # MONAI Label cuts off what is behind the point: 0.9999999 would become the background.
                whole = Path(folder) / "label.nii.gz"
                write_nifti(whole, label[0].numpy(), label.affine.numpy())
                return super().save_label(image_id, str(whole), label_tag, label_info)
        return super().save_label(image_id, label_filename, label_tag, label_info)

    def _download(self, series: str, folder: Path) -> bool:
        """Save the files of a series as the server has them; False, if it has none."""
        found = self._client.search_for_series(search_filters={"SeriesInstanceUID": series})
        if not found:
            return False
        folder.mkdir(exist_ok=True)
        # Any transfer syntax: without it a server must unpack compressed scans, and not all can.
        study = str(Dataset.from_json(found[0]).StudyInstanceUID)
        for instance in self._client.retrieve_series(study, series, media_types=(("application/dicom", "*"),)):
            instance.save_as(folder / f"{instance.SOPInstanceUID}.dcm")
        return True

    def _segmentations(self) -> dict[str, str]:
        """The newest DICOM SEG by the series that it refers to."""
        there = []
        for entry in self._client.search_for_series(search_filters={"Modality": "SEG"}):
            found = Dataset.from_json(entry)
            series = str(found.SeriesInstanceUID)
            if series not in self._segmentations_seen:
                metadata = self._client.retrieve_series_metadata(str(found.StudyInstanceUID), series)
                one = Dataset.from_json(metadata[0])
                when = f"{one.get('SeriesDate') or one.get('ContentDate')} {one.get('SeriesTime') or ''}"
                refers = one.get("ReferencedSeriesSequence")
                image = str(refers[0].SeriesInstanceUID) if refers else ""
                self._segmentations_seen[series] = (when, series, image)
            there.append(self._segmentations_seen[series])
        return {image: series for _, series, image in sorted(there)}

    def _download_labeled_data(self) -> None:
        for image in self.get_labeled_images():
            self.get_label_uri(image, FINAL)


def convert_segmentation(source: Path, scan: Path, target: Path) -> list[dict[str, Any]]:
    """Write a DICOM SEG as NIfTI, uint8, on the grid of a scan.

    Args:
        source: the DICOM SEG.
        scan: NIfTI file.
        target: NIfTI file to write.

    Returns:
        `name` and value (`idx`) of each segment.

    Raises:
        InputError: for segments that overlap or are not binary.
    """
    try:
        label = pydicom_seg.MultiClassReader().read(pydicom.dcmread(source))
    except ValueError as error:
        raise InputError(
            f"DICOM SEG for {scan.name}: found one that is no label map ({error}), expected binary segments that do "
            "not overlap: export it anew."
        ) from error
    grid = SimpleITK.ReadImage(str(scan))
    nearest = SimpleITK.sitkNearestNeighbor
    SimpleITK.WriteImage(
        SimpleITK.Resample(label.image, grid, SimpleITK.Transform(), nearest, 0, SimpleITK.sitkUInt8), str(target)
    )
    return [{"name": str(segment.SegmentLabel), "idx": value} for value, segment in label.segment_infos.items()]


def _named(info: Mapping[str, Any], values: set[int]) -> list[dict[str, Any]]:
    """What is said of each value, in the order of the values, as MONAI Label goes by the order.

    Args:
        info: `label_info` is what 3D Slicer sends, `params` with `label_names` what a model gave.
        values: in the label.
    """
    names = info.get("params", {}).get("label_names") or {}
    said = {int(value): {"name": name} for name, value in names.items()}
    said |= {int(one.get("idx", number)): dict(one) for number, one in enumerate(info.get("label_info") or (), 1)}
    # The first one's `model_name` becomes the series' description.
    common = {"model_name": info.get("model", "Segmentation")}
    return [{"name": f"segment {value}", **common, **said.get(value, {}), "idx": value} for value in sorted(values)]
