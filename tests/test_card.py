"""What the LACoS part of a model card says."""

from lacos_st.card import section
from lacos_st.model import LacosSentenceTransformer


def test_the_card_says_that_stock_classes_give_fewer_dimensions(tiny_model):
    sketched = section(LacosSentenceTransformer("lacos-bloom"), "m")
    assert 'SentenceTransformer("m")  # 512 dimensions, see below' in sketched
    assert "in the example under Usage too, gives the first 512" in sketched
    assert "below" not in section(tiny_model, "m")
