"""Is `lacos_st.model.transformer` now."""

from lacos_st.model.transformer import LacosTransformer as LacosTransformer
