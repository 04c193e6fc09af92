"""Segment scans with a bundle: one or a cohort, on one machine or several."""
