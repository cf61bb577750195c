"""Is `lacos_st.model.frozen` now."""

from lacos_st.model.frozen import _TrainedPart as _TrainedPart
