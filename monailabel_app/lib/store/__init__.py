"""The studies: scans and labels, on this machine's disk or on a DICOMweb server."""
