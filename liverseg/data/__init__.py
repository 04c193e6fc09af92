"""Datalists, scans, patches and class weights."""

from liverseg.data.datalist import load_datalist, split_by_patient, write_datalist
from liverseg.data.patches import cut_patches, find_patches
from liverseg.data.sampling import PatientSampler, class_ratios
from liverseg.data.scans import cache_num, find_scans
from liverseg.data.voxel_counts import count_voxels
from liverseg.data.weights import dice_weights, inverse_frequency_weights

__all__ = [
    "PatientSampler",
    "cache_num",
    "class_ratios",
    "count_voxels",
    "cut_patches",
    "dice_weights",
    "find_patches",
    "find_scans",
    "inverse_frequency_weights",
    "load_datalist",
    "split_by_patient",
    "write_datalist",
]
