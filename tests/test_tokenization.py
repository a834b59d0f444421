"""From a text to the tokens that a model reads: what tokenizers put around it, and what ends a text."""

import copy
import string
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, processors

import vocabularies
from debug.kinds import Tokenizer
from debug.programs import Program
from debug.prompts import tokenization
from debug.prompts.tokenization import appended, end_tokens, read, turn_end
from debug.token_analyzer import analyze

PROGRAM = Program.parse("b = 1\na = b\n#a: ")


@cache
def around(name: str, before: str = "", behind: str = "") -> Tokenizer:
    """A copy of a vocabulary whose tokenizer puts special tokens before and behind every text; the last is its end."""
    tokenizer = copy.deepcopy(vocabularies.tokenizer(name))
    tokenizer.add_special_tokens({"eos_token": behind or "</s>"})
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {before, behind} - {""}]
    single = " ".join(part for part in (before, "$A", behind) if part)
    template = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


@pytest.mark.parametrize(("name", "before"), [("tiny", ""), ("merged", "<s>"), ("numbers", "<s>"), ("merged", "</s>")])
@given(text=st.text(string.ascii_lowercase + string.digits + "\n#= :", min_size=1, max_size=30))
def test_an_appended_end_token_changes_nothing(name: str, before: str, text: str) -> None:
    """Not even where it is the one that comes first, too, as in OPT's vocabulary."""
    with_end, without = around(name, before, "</s>"), around(name, before)
    try:
        expected = without(text)["input_ids"]
    except Exception:  # a character that this vocabulary has no token for
        return
    assert with_end(text)["input_ids"] != expected
    assert read(with_end, text).token_ids == expected
    assert read(with_end, text) == read(without, text)


def test_what_a_tokenizer_appends_is_known_before_any_prompt() -> None:
    assert appended(around("tiny", behind="</s>")) == "</s>"
    assert appended(around("merged", "<s>", "</s>")) == "</s>"
    assert appended(around("merged", "<s>")) is None
    assert all(appended(vocabularies.tokenizer(name)) is None for name in vocabularies.ARTIFICIAL)


def test_a_prompt_that_closes_with_the_end_token_loses_it_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenization._say.cache_clear()
    tokenizer = around("merged", "<s>", "</s>")
    for _ in range(3):
        closed = read(tokenizer, "b = 1\n#b: </s></s>")
        assert closed == read(tokenizer, "b = 1\n#b: ")
    assert closed.text == "b = 1\n#b: "
    assert caplog.text.count("the prompt closes with '</s></s>', which ends a text; it is left out") == 1
    inside = read(tokenizer, "b = 1</s>\n#b: ")
    assert (inside.text, tokenizer.eos_token_id in inside.token_ids) == ("b = 1</s>\n#b: ", True)


def test_an_empty_text_has_no_tokens() -> None:
    assert read(around("merged", "<s>", "</s>"), "").token_ids == []


def test_a_first_token_that_the_text_has_already_comes_once() -> None:
    tokenizer = around("merged", "<s>")
    assert tokenizer("<s>b = 1")["input_ids"].count(tokenizer.convert_tokens_to_ids("<s>")) == 2
    assert read(tokenizer, "<s>b = 1").token_ids == read(tokenizer, "b = 1").token_ids
    assert read(tokenizer, "<s>b = 1").offsets[0] == (0, 3)


def test_what_a_chat_template_wrote_is_left_as_it_is() -> None:
    tokenizer = around("merged", "<s>", "</s>")
    text = "<s>b = 1</s>"
    assert read(tokenizer, text, rendered=True).token_ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("template", ["{code}", "{code}</s>", "<s>{code}"])
def test_causal_runs_see_the_program_in_the_same_tokens(template: str) -> None:
    tokenizer = around("merged", "<s>", "</s>")
    expected = analyze(around("merged", "<s>"), PROGRAM)
    given = analyze(tokenizer, PROGRAM, template)
    assert (given.token_ids, given.roles) == (expected.token_ids, expected.roles)
    assert given.roles["final"] == [len(given.token_ids) - 1]
    assert given.prompt == template.replace("{code}", PROGRAM.text).removesuffix("</s>")


# --- What ends a text ---

TEMPLATES = {
    "<|im_end|>": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "<end_of_turn>": "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}",
    "<|eot_id|>": "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|end|>": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}{{ eos_token }}",
    "</s>": "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
    " {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}",
    # The end of a turn is the beginning of the next, and the last turn has none, as in GLM.
    "<|user|>": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}",
}


def chatting(template: str | None, *tokens: str) -> Tokenizer:
    tokenizer = around.__wrapped__("merged", "<s>")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("end", TEMPLATES)
def test_the_end_of_a_turn_is_read_off_the_chat_template(end: str) -> None:
    tokens = ["<|im_start|>", "<start_of_turn>", "<|start_header_id|>", "<|assistant|>", "<|user|>", "<|e"]
    tokenizer = chatting(TEMPLATES[end], *dict.fromkeys([*tokens, end]))
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == end


@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}{{ m['content'] }}\n###\n{% endfor %}", "{{ messages[0]['content'] }}"]
)
def test_without_a_token_that_closes_turns_there_is_none(template: str | None) -> None:
    assert turn_end(chatting(template, "<|im_end|>")) is None


def test_a_template_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert turn_end(chatting("{{ raise_exception('no assistant here') }}")) is None
    assert "no assistant here" in caplog.text


def test_ends_are_those_of_the_configuration_the_tokenizer_and_the_template() -> None:
    tokenizer = chatting(TEMPLATES["<|im_end|>"], "<|im_end|>")
    own, turn = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    for configured, more in [(None, set()), (0, {0}), (own, set()), ([0, 1], {0, 1}), ([turn], set())]:
        assert end_tokens(tokenizer, configured) == {own, turn, *more}
    assert end_tokens(vocabularies.tokenizer("merged"), None) == set()
