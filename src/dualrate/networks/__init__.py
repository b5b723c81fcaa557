"""Networks: U-ViT, DiT and DiS, alone, in pairs, given a condition; adapters of them."""
