"""Row statistics of a similarity matrix that is never stored: the one primitive behind every contrastive loss."""

from contrastive_core.similarity.backend import active_backend, use_backend
from contrastive_core.similarity.primitive import Among, row_lse, self_lse

__all__ = ["Among", "active_backend", "row_lse", "self_lse", "use_backend"]
