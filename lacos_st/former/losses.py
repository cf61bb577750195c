"""Is `lacos_st.training.losses` now."""

from lacos_st.training.losses import (
    CachedMaskedMultipleNegativesRankingLoss as CachedMaskedMultipleNegativesRankingLoss,
)
from lacos_st.training.losses import (
    MaskedMultipleNegativesRankingLoss as MaskedMultipleNegativesRankingLoss,
)
