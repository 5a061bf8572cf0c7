"""Tokenizers that differ in what their offsets tell: bytes, fallbacks, prefixes, special tokens."""

from __future__ import annotations

import functools
import json

from demo import make_models
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [  # for a vocabulary: any will do, since all bytes are in it
    "Answer the following question.\n\nQuestion: Janet’s ducks lay 16 eggs per day. How many in 2 days?",
    "Answer: Janet has 16*2 = 32 eggs.  She sells 9 of them for $2 each, 18 in all. So the answer is 18.",
    "René paid 4.50 € for the café’s crème brûlée – and 3 × 2 for the rest. So the answer is 10.",
]


@functools.cache
def byte_level(*, bos: bool = False, trim: bool = False) -> PreTrainedTokenizerFast:
    """GPT-2's kind: every byte is a token, so that é is two; digits one by one, so that a space stands alone."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    steps = [processors.ByteLevel(trim_offsets=trim)]
    if bos:
        steps.append(processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)]))
    backend.post_processor = processors.Sequence(steps)
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


@functools.cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama 2's kind: spaces are ▁, one is put before the text and after special tokens; unknown letters are bytes."""
    special = ["<unk>", "<s>", "</s>"]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "removed"), pre_tokenizers.Split("▁", "merged_with_next")]
    )
    words = [text.encode("ascii", "ignore").decode() for text in TEXTS]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special + bytes_, show_progress=False)
    backend.train_from_iterator(words, trainer)
    made = json.loads(backend.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] in special]
    backend = Tokenizer.from_str(json.dumps(made | {"pre_tokenizer": None}))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


TOKENIZERS = {
    "demo": make_models.tokenizer,
    "byte-level": byte_level,
    "byte-level, bos": functools.partial(byte_level, bos=True),
    "byte-level, trimmed offsets": functools.partial(byte_level, trim=True),  # ByteLevel's default
    "byte-fallback, bos": byte_fallback,
}


def chat_tokenizer(template: str, *, bos: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = byte_level.__wrapped__(bos=bos)  # one of its own, since the template is set on it
    tokenizer.chat_template = template
    return tokenizer
