"""Is `lacos_st.decoder.quantization` now."""

from lacos_st.decoder.quantization import LacosLinear8bit as LacosLinear8bit
