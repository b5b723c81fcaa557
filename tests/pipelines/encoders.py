"""Text encoders and tokenizers of transformers, tiny, with random weights and vocabularies of letters."""

from __future__ import annotations

import string
from typing import Any

import pytest
import torch

START, END = "<|startoftext|>", "<|endoftext|>"
ENDED = [f"{letter}</w>" for letter in string.ascii_lowercase]
WORDS = ["re", "red</w>", "ci", "cir"]
MERGES = ["r e", "re d</w>", "c i", "ci r"]


def transformers() -> Any:
    return pytest.importorskip("transformers")


def clip_tokenizer() -> Any:
    vocabulary = {word: i for i, word in enumerate([*string.ascii_lowercase, *ENDED, *WORDS, START, END])}
    merges = [tuple(merge.split()) for merge in MERGES]
    return transformers().CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def clip_sizes(width: int, projected: int) -> dict[str, Any]:
    tokenizer = clip_tokenizer()
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    return sizes | ends | {"vocab_size": len(tokenizer), "projection_dim": projected}


def clip_texts(width: int, projected: int = 0) -> Any:
    """projected: numbers of a text's pooled embedding, 0: of a CLIPTextModel"""
    made = transformers()
    config = made.CLIPTextConfig(**clip_sizes(width, projected or width))
    return seeded(lambda: (made.CLIPTextModelWithProjection if projected else made.CLIPTextModel)(config))


def t5_tokenizer() -> Any:
    pieces = ["▁", *string.ascii_lowercase, "▁red", "▁circle"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -float(len(piece))) for piece in pieces)]
    return transformers().T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def t5(width: int) -> Any:
    made = transformers()
    sizes = {"d_model": width, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    config = made.T5Config(**sizes, vocab_size=len(t5_tokenizer()), feed_forward_proj="gated-gelu")
    return seeded(lambda: made.T5EncoderModel(config))


def seeded(make: Any) -> Any:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(4)
        return make().eval()
