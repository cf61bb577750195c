"""Is `lacos_st.model.pooling` now."""

from lacos_st.model.pooling import LacosPooling as LacosPooling
