"""Why a layer is not in a result, where several operations say the same."""

from __future__ import annotations

RANK_ZERO = "rank 0 by the rule"
STRENGTH_ZERO = "strength 0"
