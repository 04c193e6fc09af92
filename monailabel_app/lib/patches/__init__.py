"""What this app fixes of MONAI Label's server: a file for each fault, all put in place by `apply`.

For each, `tests/label/test_patches.py` shows the fault in MONAI Label as it is. Where such a test
fails, MONAI Label has fixed it: remove the file, its line in `apply` and the test.
"""
