from liverseg.metrics.accuracy import VoxelAccuracy
from liverseg.metrics.boundary import bf_scores, mean_bf_score
from liverseg.metrics.case import case_metrics
from liverseg.metrics.confusion import confusion_matrix, pooled_metrics
from liverseg.metrics.lesions import lesion_burden, lesion_metrics, pooled_lesion_metrics
from liverseg.metrics.roc import count_probabilities, roc_curve

__all__ = [
    "VoxelAccuracy",
    "bf_scores",
    "case_metrics",
    "confusion_matrix",
    "count_probabilities",
    "lesion_burden",
    "lesion_metrics",
    "mean_bf_score",
    "pooled_lesion_metrics",
    "pooled_metrics",
    "roc_curve",
]
