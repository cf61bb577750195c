"""Is `lacos_st.model.dense` now."""

from lacos_st.model.dense import LacosDense as LacosDense
from lacos_st.model.dense import LacosLayerNorm as LacosLayerNorm
