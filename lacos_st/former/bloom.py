"""Is `lacos_st.decoder.bloom` now."""

from lacos_st.decoder.bloom import LacosBloomBlock as LacosBloomBlock
from lacos_st.decoder.bloom import LacosBloomModel as LacosBloomModel
