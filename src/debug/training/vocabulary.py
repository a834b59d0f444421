"""The bundled model's vocabulary and tokenizer."""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = (END_OF_TEXT, *string.ascii_lowercase, *string.digits, " = ", "\n", "#", ": ")
LETTER, DIGIT = VOCABULARY.index("a"), VOCABULARY.index("0")
END, EQUALS, NEWLINE, HASH, COLON = (VOCABULARY.index(word) for word in (END_OF_TEXT, " = ", "\n", "#", ": "))

MAX_POSITIONS = 512
RHS_OF_LINE, NEWLINE_OF_LINE = 2, 3  # tokens of a line: letter, equals, what it reads, newline


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of the 41 words; offsets are exact and decoding gives the text back.

    There is no unknown word: a text with any other character is refused ("Missing [UNK] token from the vocabulary"),
    it does not vanish.
    """
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" = |: |[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )
