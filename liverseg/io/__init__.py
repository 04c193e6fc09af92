"""Read and write scans, labels and masks: paths, NIfTI, DICOM."""
