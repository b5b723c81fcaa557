"""Networks: U-ViT, and the pair of a context encoder and a light network."""
