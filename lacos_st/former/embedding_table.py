"""Is `lacos_st.decoder.embedding_table` now."""

from lacos_st.decoder.embedding_table import LacosEmbedding8bit as LacosEmbedding8bit
