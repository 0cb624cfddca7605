"""Cross-entropy on the labels as they are: the baseline."""

from torch import Tensor
from torch.nn import functional as F

from noisebench.method import Batch, Classifier
from noisebench.training import Run


class CrossEntropy(Classifier):
    """Cross-entropy on the noisy labels, the baseline."""

    name = "ce"
    paper = "baseline"

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """-log p_y, mean over the batch."""
        return F.cross_entropy(self(batch.x), batch.y)
