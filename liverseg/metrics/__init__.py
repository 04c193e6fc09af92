from liverseg.metrics.boundary import bf_scores, mean_bf_score
from liverseg.metrics.case import case_metrics
from liverseg.metrics.confusion import confusion_matrix, pooled_metrics

__all__ = ["bf_scores", "case_metrics", "confusion_matrix", "mean_bf_score", "pooled_metrics"]
