"""Requests to a DICOMweb server, and the errors where it does not answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.session_utils import create_session, create_session_from_user_pass
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable

CONNECT_SECONDS = 3
# Any transfer syntax: without it a server must unpack compressed scans, and not all can.
AS_STORED = (("application/dicom", "*"),)
# Of the whole server, not of what it was asked for: refused, overloaded, or something before it
# that does not reach it.
OF_SERVER = (401, 403, 407, 408, 429, 502, 503, 504)


class DicomServerError(InputError):
    """The DICOM server does not answer, refuses, or breaks off: the same may work later."""


class DicomServer:
    """A DICOMweb server whose errors are one message each, and come soon.

    All methods raise `DicomServerError` where the server does not answer, and `InputError` where it
    has not, or cannot send, what it was asked for.

    Args:
        client: of dicomweb-client.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def check(self) -> None:
        """Ask for anything."""
        with self._asked():
            self.client.search_for_series(limit=1)

    def search(self, **filters: Any) -> list[dict[str, Any]]:
        """All series that match, as DICOM JSON, each once."""
        found: dict[str, dict[str, Any]] = {}
        with self._asked():
            while True:
                # Servers send as many as they like, such as 100, at a time; some know no offset.
                page = self.client.search_for_series(
                    search_filters=dict(filters), offset=len(found) or None
                )
                new = {
                    uid: one
                    for one in page
                    if (uid := first(one, "SeriesInstanceUID")) and uid not in found
                }
                if not new:
                    return list(found.values())
                found |= new

    def find(self, series: str) -> dict[str, Any]:
        """A series as DICOM JSON, {} where there is none; some servers know no filters."""
        found = self.search(SeriesInstanceUID=series)
        return next((one for one in found if first(one, "SeriesInstanceUID") == series), {})

    def metadata(self, study: str, series: str) -> list[dict[str, Any]]:
        """The headers of all instances of a series, as DICOM JSON."""
        with self._asked(f"series {series}"):
            return self.client.retrieve_series_metadata(study, series)

    def series_of(self, study: str, instance: str) -> str:
        """The series that an instance belongs to; "" where it is not on the server."""
        with self._asked():
            found = self.client.search_for_instances(
                study, search_filters={"SOPInstanceUID": instance}
            )
        there = [one for one in found if first(one, "SOPInstanceUID") == instance]
        return str(first(there[0], "SeriesInstanceUID")) if there else ""

    def instance(self, study: str, series: str, instance: str) -> Dataset:
        """One instance."""
        with self._asked(f"instance {instance}"):
            return self.client.retrieve_instance(study, series, instance, media_types=AS_STORED)

    def download(self, series: str, folder: Path) -> dict[str, Any]:
        """Save the files of a series as they are; returns its DICOM JSON, {} if there is none."""
        found = self.find(series)
        if not found:
            return found
        with self._asked(f"series {series}"):
            instances = self.client.retrieve_series(
                first(found, "StudyInstanceUID"), series, media_types=AS_STORED
            )
        expected = first(found, "NumberOfSeriesRelatedInstances")
        # A connection that is cut may look like the end.
        if expected is not None and len(instances) < int(expected):
            raise DicomServerError(
                f"series {series}: found {len(instances)} instances in the DICOM server's answer, "
                f"expected the {expected} that it lists: ask again."
            )
        check_writable(folder)
        for number, instance in enumerate(instances):
            with atomic_write(folder / f"{number:05}.dcm") as file:
                instance.save_as(file)
        return found

    def store(self, dataset: Dataset) -> None:
        """Send an instance."""
        with self._asked(f"instance {dataset.SOPInstanceUID}"):
            answer = self.client.store_instances([dataset])
        # A server may answer 200 and keep nothing.
        if "FailedSOPSequence" in answer and answer.FailedSOPSequence:
            reason = answer.FailedSOPSequence[0].get("FailureReason", "no reason")
            raise InputError(
                f"instance {dataset.SOPInstanceUID}: found that the DICOM server refuses it "
                f"({reason}), expected it to keep it: see the server's log."
            )

    @contextmanager
    def _asked(self, what: str = "") -> Iterator[None]:
        """Say what went wrong; where `what` is given, it may be the fault of that alone."""
        url = self.client.base_url
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if what and status not in OF_SERVER:
                raise InputError(
                    f"{what}: found the answer {status} of the DICOM server, expected it: look at "
                    "it there."
                ) from error
            hint = "see its log, and ask again later"
            if status in (401, 403):
                names = "MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD"
                hint = f"set {names}, and start anew"
            elif status == 404:
                hint = "fix the address, or MONAI_LABEL_QIDO_PREFIX and MONAI_LABEL_WADO_PREFIX"
            raise DicomServerError(
                f"studies: found the answer {status} of the DICOM server at {url}, expected what "
                f"was asked for: {hint}."
            ) from error
        # pydicom raises whatever it likes for what is no DICOM.
        except Exception as error:
            kind = type(error).__name__
            if isinstance(error, requests.RequestException) and not isinstance(
                error, requests.JSONDecodeError
            ):
                raise DicomServerError(
                    f"studies: found no DICOMweb server at {url} ({kind}), expected one: start "
                    "it, or fix the address or the network, and ask again; scans and labels that "
                    "were copied before can be used meanwhile."
                ) from error
            if what:
                raise InputError(
                    f"{what}: found an answer of the DICOM server that is no DICOM ({kind}), "
                    "expected some: look at it there."
                ) from error
            raise DicomServerError(
                f"studies: found a server at {url} that does not answer in DICOMweb ({kind}), "
                "expected one that does: fix the address."
            ) from error


def connect_client(url: str) -> DICOMwebClientX:
    """A client with MONAI Label's settings that waits for no answer longer than they say."""
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    session = (
        create_session_from_user_pass(user, password) if user and password else create_session()
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Timeouts())
    client = DICOMwebClientX(
        url=url.rstrip("/"),
        session=session,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    # Five attempts take half a minute, in which the client knows nothing.
    client.set_http_retry_params(retry=False)
    return client


def first(entry: Mapping[str, Any], keyword: str) -> Any:
    """The first value of an attribute in DICOM JSON; None without one."""
    values = sequence(entry, keyword)
    return values[0] if values else None


def sequence(entry: Mapping[str, Any], keyword: str) -> list[Any]:
    """All values, or items, of an attribute in DICOM JSON."""
    values = entry.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value") or []
    return [value for value in values if value is not None]


class _Timeouts(HTTPAdapter):
    """Lists come within seconds or not at all; scans and headers take longer to be gathered."""

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        accepted, path = request.headers.get("Accept", ""), (request.url or "").partition("?")[0]
        lists = request.method == "GET" and "json" in accepted and not path.endswith("/metadata")
        kwargs["timeout"] = (
            CONNECT_SECONDS,
            settings.MONAI_LABEL_DICOMWEB_READ_TIMEOUT
            if lists
            else settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT,
        )
        return super().send(request, *args, **kwargs)
