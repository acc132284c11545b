"""Row-wise log-sum-exp of a similarity matrix that is never stored: the primitive behind the contrastive losses."""

from contrastive_core.similarity.api import Among, active_backend, row_lse, self_lse, use_backend

__all__ = ["Among", "active_backend", "row_lse", "self_lse", "use_backend"]
