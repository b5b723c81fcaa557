"""Networks: U-ViT, DiT, DiS and transformers of tokens, alone, in pairs, given a condition; adapters of them."""
