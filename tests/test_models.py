"""Loading, caching and unloading; what is refused; greedy completions."""

import copy
import math
import re
import shutil
import sys
from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
)

import families
import reference
from debug import causal_tracing, models, tracking
from debug.causal_experiment_runner import CausalExperimentRunner
from present import present

# Models with random weights answer nothing: their pairs are used all the same.
run_causal_tracing_experiment = partial(causal_tracing.run_causal_tracing_experiment, require_correct=False)


@pytest.fixture(autouse=True)
def empty_cache():
    models.unload_all()
    yield
    models.unload_all()


def test_a_model_is_loaded_once_listed_and_unloaded():
    first = models.load("tiny")
    assert models.load("tiny") is first
    assert models.loaded() == ["tiny"]
    assert models.load("tiny", dtype="bfloat16").dtype == "bfloat16"
    assert models.loaded() == ["tiny"]
    models.unload("tiny")
    assert models.loaded() == []
    models.unload("tiny")


def test_a_folder_is_a_model_id(tmp_path):
    folder = shutil.copytree(models.CHECKPOINTS / "tiny", tmp_path / "mine")
    model = models.load(str(folder))
    assert (model.path, model.n_layers, model.dtype, model.device) == (str(folder), 6, "float32", "cpu")


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("./nowhere", "looks like a folder, and there is none"),
        ("/no/such/folder", "looks like a folder, and there is none"),
        ("someone/no-such-model-as-this", "looked in the hub and its cache"),
        ("not a model id at all", "looked in the hub and its cache"),
    ],
)
def test_a_model_that_is_not_there_says_where_was_looked(model_id, message):
    with pytest.raises(models.ModelNotFound, match=message) as refused:
        models.load(model_id)
    assert "'tiny'" in str(refused.value) or "folder" in str(refused.value)


def test_a_folder_without_weights_names_the_folder(tmp_path):
    with pytest.raises(models.ModelNotFound, match=str(tmp_path)):
        models.load(str(tmp_path))


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="float32, bfloat16"):
        models.load("tiny", dtype="float8")


def test_an_architecture_that_is_not_listed_says_how_to_add_it():
    tokenizer = AutoTokenizer.from_pretrained(models.CHECKPOINTS / "tiny")
    bert = BertLMHeadModel(BertConfig(vocab_size=41, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(models.UnsupportedArchitecture, match=r"'bert'.*ARCHITECTURES"):
        models.wrap(bert, tokenizer, model_id="bert")


def test_a_listed_architecture_whose_parts_are_elsewhere_says_what_was_looked_for(monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, "llama", models.Architecture(mlp="feed_forward"))
    with pytest.raises(models.UnsupportedArchitecture, match="feed_forward"):
        families.family("llama")


def test_a_prompt_outside_the_vocabulary_names_the_characters():
    with pytest.raises(ValueError, match="no token for part of this prompt"):
        models.load("tiny").check_vocabulary("A = 1\n#A: ")
    models.load("tiny").check_vocabulary("a = 1\n#a: ")


def test_a_prompt_and_what_follows_it_may_fill_the_window_and_no_more():
    model = models.load("tiny")
    prompt = "a = 1\n" * 127 + "#a: "
    length, window = len(model.encode(prompt)), model.window
    assert window is not None
    assert len(model.encode(prompt, room=window - length)) == length
    with pytest.raises(models.PromptTooLong, match=f"{length} tokens, {window - length + 1} are to follow"):
        model.encode(prompt, room=window - length + 1)
    answers = dict(model.generate([prompt], max_new_tokens=window - length))
    assert answers[0].error is None


def test_completions_do_not_depend_on_the_batch():
    model = models.load("tiny")
    prompts = [
        f"a = {digit}\n{'b = a' if digit % 2 else 'c = 5'}\n#{'b' if digit % 2 else 'a'}: " for digit in range(10)
    ]
    together, alone = (
        dict(model.generate([*prompts, "z = 3\n#z: "], max_new_tokens=3, batch_size=size)) for size in (11, 1)
    )
    assert together == alone
    assert sorted(together) == list(range(11))
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(model.generate(prompts, max_new_tokens=3, batch_size=0))


def test_packed_rows_see_only_what_a_sliding_window_lets_them():
    model = families.family("qwen3_sliding")
    distance = torch.tensor([[[0, 6, 7, 3]]])
    masks = model.attention_mask(torch.tensor([[[True, True, True, False]]]), distance)
    assert isinstance(masks, dict)
    assert (masks["full_attention"] == 0).flatten().tolist() == [True, True, True, False]
    assert (masks["sliding_attention"] == 0).flatten().tolist() == [True, True, False, False]


def test_a_digest_names_the_weights_and_not_where_they_lie(tmp_path):
    tiny = models.load("tiny")
    folder = tmp_path / "copy"
    shutil.copytree(tiny.path, folder)
    assert models.load(str(folder)).weights_digest == tiny.weights_digest
    models.unload(str(folder))
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("{", "{ ", 1))
    assert models.load(str(folder)).weights_digest != tiny.weights_digest
    models.unload(str(folder))


def test_a_model_without_files_is_told_by_its_parameters():
    tiny = models.load("tiny")
    one, same = (models.wrap(tiny.hf, tiny.tokenizer, model_id="x") for _ in range(2))
    assert one.weights_digest == same.weights_digest
    changed = copy.deepcopy(tiny.hf)
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 1
    assert models.wrap(changed, tiny.tokenizer, model_id="x").weights_digest != one.weights_digest


def test_the_tokenizers_digest_is_that_of_what_it_does_and_not_of_what_it_did():
    tiny = models.load("tiny")
    before = tiny.tokenizer_digest
    tiny.tokenizer(["a = 1", "b"], padding=True)
    del tiny.__dict__["tokenizer_digest"]
    assert tiny.tokenizer_digest == before


# --- End of text ---

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = [f"{name} = {digit}\n#{name}: " for digit, name in enumerate("abcdefghij")]


@pytest.fixture(scope="module")
def chatty() -> models.LoadedModel:
    """The bundled model, but that it ends its answers with <|im_end|>, which its generation configuration does not
    name; and with a tokenizer that appends <|endoftext|> to a text."""
    hf = AutoModelForCausalLM.from_pretrained(models.CHECKPOINTS / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(models.CHECKPOINTS / "tiny")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ("<|im_end|>", "<|im_start|>")])
    tokenizer.chat_template = CHATML
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    hf.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():  # twice the logit of the end that it learnt
        embedding = hf.get_parameter("model.embed_tokens.weight")
        embedding[41] = 2 * embedding[0]
    return models.wrap(hf, tokenizer, model_id="chatty")


def test_a_text_ends_where_the_configuration_the_tokenizer_or_the_chat_template_ends_it(chatty):
    expected = dict(models.load("tiny").generate(QUESTIONS, max_new_tokens=6))
    assert [completion.text for completion in expected.values()] == [str(digit) for digit in range(10)]
    assert chatty.hf.generation_config.eos_token_id == 0
    assert chatty.end_tokens == {0, 41}
    assert dict(chatty.generate(QUESTIONS, max_new_tokens=6)) == expected
    chatty.tokenizer.chat_template = None
    try:  # nothing tells that <|im_end|> is an end: the model runs on
        assert not any(completion.ended for _, completion in chatty.generate(QUESTIONS, max_new_tokens=6))
    finally:
        chatty.tokenizer.chat_template = CHATML


def test_no_token_behind_the_end_is_read_as_text(monkeypatch):
    """Whether it is marked as special or not; rows of a batch that end early are filled up with padding."""
    tiny = models.load("tiny")
    [three, seven, newline] = tiny.tokenizer.convert_tokens_to_ids(["3", "7", "\n"])
    monkeypatch.setattr(models.LoadedModel, "end_tokens", {0, newline})
    made = [(0, [three, newline, seven, 0]), (1, [three, 0, seven, seven]), (2, [three, seven])]
    monkeypatch.setattr(models.LoadedModel, "_generate", lambda *_: iter(made))
    texts = dict(tiny.generate(QUESTIONS[:3], max_new_tokens=4))
    assert [(text.text, text.ended) for text in texts.values()] == [("3", True), ("3", True), ("37", False)]


def test_an_end_token_that_the_tokenizer_appends_is_dropped_said_and_recorded(chatty, caplog):
    tiny = models.load("tiny")
    assert chatty.tokenizer(QUESTIONS[0])["input_ids"][-1] == 0
    assert chatty.encode(QUESTIONS[0]) == tiny.encode(QUESTIONS[0])
    assert chatty.answer_forms(QUESTIONS[0], ["1", "2"]) == tiny.answer_forms(QUESTIONS[0], ["1", "2"])
    assert chatty.answer_forms(QUESTIONS[0] + "<|endoftext|>", ["1", "2"]) == tiny.answer_forms(
        QUESTIONS[0], ["1", "2"]
    )
    probable = dict(chatty.score(QUESTIONS, [str(digit) for digit in range(10)]))
    assert [np.argmax(probable[n].log_probabilities) for n in range(10)] == list(range(10))
    assert chatty.provenance()["debug.prompt_end_dropped"] == "<|endoftext|>"
    assert caplog.text.count("puts <|endoftext|> behind every prompt, which ends a text; it is left out") == 1
    assert "debug.prompt_end_dropped" not in tiny.provenance()


def test_a_causal_run_reads_prompts_as_an_accuracy_run_does(chatty):
    program = "b = 1\na = b\n#a: "
    [one, other] = [
        run_causal_tracing_experiment(model, [program], positions="targets").maps[0]
        for model in (chatty, models.load("tiny"))
    ]
    np.testing.assert_allclose(one.z_patched, other.z_patched, atol=1e-5)
    assert one.tokens == other.tokens


class Recording:
    """In vLLM's place: what it was asked, and answers that are given."""

    llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=256))

    def __init__(self, log_probability: float = -1.0) -> None:
        self.log_probability, self.asked = log_probability, []

    def generate(self, prompts, sampling, use_tqdm):
        self.asked += zip([prompt["prompt_token_ids"] for prompt in prompts], sampling, strict=True)
        said = SimpleNamespace(logprob=self.log_probability)
        output = SimpleNamespace(token_ids=[31, 41], cumulative_logprob=self.log_probability)
        output.logprobs = [defaultdict(lambda: said)]
        return [SimpleNamespace(outputs=[output]) for _ in prompts]


def engine(of: models.LoadedModel, llm: Recording, monkeypatch) -> models.VllmModel:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **options: options))
    return models.VllmModel(of.id, of.path, of.dtype, of.device, llm, of.tokenizer, of.end_tokens)


def test_vllm_is_given_the_same_tokens_and_ends_on_the_same(chatty, monkeypatch):
    llm = Recording()
    completions = dict(engine(chatty, llm, monkeypatch).generate(QUESTIONS, max_new_tokens=6))
    assert completions == {n: models.Completion("4", ended=True) for n in range(10)}
    assert [ids for ids, _ in llm.asked] == [chatty.encode(question) for question in QUESTIONS]
    assert all(sampling["stop_token_ids"] == sorted(chatty.end_tokens) == [0, 41] for _, sampling in llm.asked)


# --- Logits that are not finite ---

DIGITS = [str(digit) for digit in range(10)]


def with_broken(token: int) -> models.LoadedModel:
    """A random model that overflows where it reads this token."""
    model = families.family("qwen2")
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[token] = torch.inf
    return model


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_only_a_prompt_whose_logits_are_not_finite_has_an_error(batch_size):
    model = with_broken(10)  # j
    expected = families.family("qwen2")
    for ask in ("generate", "score"):
        options = {"max_new_tokens": 1} if ask == "generate" else {"answers": DIGITS}
        one, other = (dict(getattr(m, ask)(QUESTIONS, batch_size=batch_size, **options)) for m in (model, expected))
        assert one.pop(9).error == "logits of model 'qwen2' (float32) are not finite; its weights may be broken"
        assert {n: answer.error for n, answer in one.items()} == dict.fromkeys(range(9))
        assert other.pop(9).error is None
        if ask == "generate":
            assert one == other


def test_a_text_counts_up_to_its_end_and_not_beyond():
    """Logits that follow a token: of one that is read within the text they matter, of the padding behind it not."""
    plain = families.family("qwen2")
    first = {
        n: present(ids)[0] for n, ids in plain._generate([(n, plain.encode(q)) for n, q in enumerate(QUESTIONS)], 1, 32)
    }
    written = next(token for token in first.values() if token not in plain.encode("".join(QUESTIONS)) and token)
    texts = dict(with_broken(written).generate(QUESTIONS, max_new_tokens=2))
    assert {n for n, text in texts.items() if text.error} == {n for n, token in first.items() if token == written}
    texts = dict(with_broken(written).generate(QUESTIONS, max_new_tokens=1))
    assert not any(text.error for text in texts.values())
    tiny = models.load("tiny")
    hf = copy.deepcopy(tiny.hf)
    with torch.no_grad():
        head = hf.lm_head.weight.detach().clone()
        hf.get_input_embeddings().weight = torch.nn.Parameter(head.clone())
        hf.lm_head.weight = torch.nn.Parameter(head)
        hf.get_input_embeddings().weight[0] = torch.inf  # the end and the padding
    broken = models.wrap(hf, tiny.tokenizer, model_id="tiny")
    assert dict(broken.generate(QUESTIONS, max_new_tokens=6)) == dict(tiny.generate(QUESTIONS, max_new_tokens=6))
    broken.tokenizer.eos_token = None
    broken.hf.generation_config.eos_token_id = None
    try:
        assert all(text.error for _, text in broken.generate(QUESTIONS, max_new_tokens=6))
    finally:
        broken.tokenizer.eos_token = "<|endoftext|>"


def overflowing() -> models.LoadedModel:
    """The bundled model in float16, where it has no room: in float32 and bfloat16 it answers."""
    tiny = models.load("tiny")
    hf = copy.deepcopy(tiny.hf)
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight.mul_(3e4)
    return models.wrap(hf.half(), tiny.tokenizer, model_id="half", dtype="float16")


def test_float16_that_overflows_names_the_dtype_and_what_to_do():
    half = overflowing()
    message = (
        r"'half' \(float16\) are not finite; numbers above 65,504 overflow in float16, so that bfloat16 or float32"
    )
    errors = [text.error for _, text in half.generate(QUESTIONS, max_new_tokens=3)]
    errors += [scores.error for _, scores in half.score(QUESTIONS, DIGITS)]
    assert len(errors) == 20
    assert all(re.search(message, present(error)) for error in errors)


@pytest.mark.parametrize("log_probability", [math.nan, math.inf, -math.inf])
def test_vllms_logits_that_are_not_finite_are_errors_too(chatty, monkeypatch, log_probability):
    backend = engine(chatty, Recording(log_probability), monkeypatch)
    for answers in (backend.generate(QUESTIONS, max_new_tokens=3), backend.score(QUESTIONS, DIGITS)):
        assert {answer.error for _, answer in answers} == {backend.not_finite}


# --- Configurations of known families that are not the usual one ---


def longrope(switch: int, **more) -> Phi3Config:
    factors: families.Settings = {"short_factor": [1.0] * 6, "long_factor": [4.0 + n for n in range(6)]}
    rope = {"rope_type": "longrope", **factors}
    scaled: families.Settings = {"original_max_position_embeddings": switch, "rope_scaling": rope}
    return Phi3Config(**families._GATED, **scaled, **more)


PARTIAL: families.Settings = {"partial_rotary_factor": 0.5}  # keywords that transformers takes without declaring them
LLAMA_ROPE: families.Settings = {
    "rope_scaling": present(longrope(24).rope_parameters) | {"factor": 8.0, "rope_type": "longrope"}
}
UNUSUAL = {
    "phi3_long": longrope(24),
    "phi3_long_sliding": longrope(24, sliding_window=9),
    "llama_long": LlamaConfig(**families._GATED, **LLAMA_ROPE),
    "phi3_partial": Phi3Config(**families._GATED, **PARTIAL, sliding_window=9),
    "gpt_neox_sequential": GPTNeoXConfig(
        **families._SIZES, intermediate_size=96, use_parallel_residual=False, attention_bias=False
    ),
    "gpt2_upcast": GPT2Config(
        **{"vocab_size": 41, "n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 256, "bos_token_id": None},
        **{"eos_token_id": 0, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ),
    "opt_projected": OPTConfig(**families._SIZES, ffn_dim=96, word_embed_proj_dim=32, layerdrop=0.5),
    "opt_post_norm": OPTConfig(**families._SIZES, ffn_dim=96, word_embed_proj_dim=32, do_layer_norm_before=False),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_configurations_are_asked_as_transformers_alone_asks_them(name):
    """Of longrope: prompts below the change of frequencies, ones that cross it while they are continued, and beyond."""
    model = families.of(UNUSUAL[name], name)
    made = [f"a = 1\n{f'b = a{chr(10)}' * n}#b: " for n in (1, 2, 3, 3, 4, 5, 6)]
    prompts = [*made, *(prompt.replace("1", "7") for prompt in made)]
    texts = dict(model.generate(prompts, max_new_tokens=8, batch_size=4))
    scores = dict(model.score(prompts, DIGITS, batch_size=4))
    digits = model.tokenizer.convert_tokens_to_ids(DIGITS)
    lengths = []
    for n, prompt in enumerate(prompts):
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        lengths.append(ids.shape[1])
        with torch.no_grad():
            asked = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
            alone = model.hf.generate(ids, max_new_tokens=8, **asked)[0, ids.shape[1] :]
            expected = model.hf(ids, use_cache=False).logits[0, -1, digits].log_softmax(-1)
        assert texts[n].text == model.tokenizer.decode(alone, skip_special_tokens=True), ids.shape
        torch.testing.assert_close(torch.tensor(scores[n].log_probabilities), expected, atol=1e-3, rtol=1e-3)
    assert min(lengths) + 8 - 1 < 24 < max(lengths)
    assert any(length <= 24 < length + 8 - 1 for length in lengths)


@pytest.mark.parametrize("switch", [12, 14, 15, 40])
def test_causal_runs_cross_the_change_of_frequencies_as_the_plain_model_does(switch):
    """Packed cells begin at positions before and behind it, and all end at the same."""
    model = families.of(longrope(switch), "phi3")
    given = reference.strongest(model, 1)
    passes = reference.passes_of(model, given)
    assert passes.length == 15
    with torch.no_grad():
        plain = model.hf(passes.token_ids, use_cache=False).logits[:, -1]
    torch.testing.assert_close(passes.logits, plain, atol=1e-4, rtol=0)
    assert reference.whole_effects(passes, given).item() > 1
    for component in ("residual_stream", "attention_heads"):
        interventions = reference.grid(model, component, passes.length, 0, 1)[3::29]
        difference = reference.fast(model, passes, interventions) - reference.slow(model, passes, interventions)
        assert difference.abs().max() < 2e-4


def test_opt_with_norms_behind_its_layers_is_for_accuracy_runs_alone(uri):
    model = families.of(UNUSUAL["opt_post_norm"], "opt-350m")
    message = "'opt-350m' of type 'opt' is unsupported in causal runs: looked for model.decoder.final_layer_norm"
    with pytest.raises(models.UnsupportedArchitecture, match=message):
        run_causal_tracing_experiment(model, ["b = 1\na = b\n#a: "])
    with pytest.raises(models.UnsupportedArchitecture, match=message):
        CausalExperimentRunner(uri).run_intervention_experiment(model, ["b = 1\na = b\n#a: "])
    assert tracking.find_runs(tracking_uri=uri).is_empty()


def test_attention_to_later_tokens_is_no_causal_run():
    config = copy.deepcopy(families.CONFIGS["gemma3_text"])
    config.use_bidirectional_attention = True
    with pytest.raises(models.UnsupportedArchitecture, match="looked for attention to earlier tokens alone"):
        run_causal_tracing_experiment(families.of(config, "embeds"), ["b = 1\na = b\n#a: "])


def test_soft_caps_are_not_left_out_of_a_model_that_is_handed_over():
    """PyTorch's own attention, which a Gemma 2 has unless it is loaded with another, has none."""
    capped = families.family("gemma2")
    capped.hf.set_attn_implementation("sdpa")
    again = models.wrap(capped.hf, capped.tokenizer, model_id="gemma2")
    assert dict(again.score(QUESTIONS, DIGITS)) == dict(families.family("gemma2").score(QUESTIONS, DIGITS))


# --- A model in the middle of training ---


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_a_model_left_in_training_mode_answers_as_in_evaluation_and_stays_in_training(name):
    config = copy.deepcopy(families.CONFIGS[name])
    for field_name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout"):
        if hasattr(config, field_name):
            setattr(config, field_name, 0.5)
    model = families.of(config, name)
    model.hf.config.use_cache = True

    def answers():
        texts = dict(model.generate(QUESTIONS, max_new_tokens=6))
        scores = [scores.log_probabilities for _, scores in sorted(model.score(QUESTIONS, DIGITS))]
        program = "b = 1\na = b\n#a: "
        maps = [
            run_causal_tracing_experiment(model, [program], positions="targets", method=method).maps[0].z_patched
            for method in ("patching", "attribution")
        ]
        return texts, np.array(scores), maps

    expected = answers()
    model.hf.train()
    next(model.hf.children()).eval()
    flags = {name: module.training for name, module in model.hf.named_modules()}
    assert any(flags.values())
    model.hf.train()
    flags = {name: module.training for name, module in model.hf.named_modules()}
    for texts, scores, maps in (answers(), answers()):
        assert texts == expected[0]
        np.testing.assert_array_equal(scores, expected[1])
        for one, other in zip(maps, expected[2], strict=True):
            np.testing.assert_array_equal(one, other)
    assert {name: module.training for name, module in model.hf.named_modules()} == flags


# --- Memory ---

CPU_ERROR = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        torch.OutOfMemoryError("HIP out of memory."),
        RuntimeError(CPU_ERROR),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to ..."
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB, other allocations: 7.92 GB)."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        MemoryError("Unable to allocate 8.00 EiB for an array"),
    ],
)
def test_memory_that_ran_out(error):
    assert models.out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("could not create a memory object"),
        RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned (pin_memory)"),
        RuntimeError("unsupported operation: some elements of the input tensor and the written-to tensor refer to a "
                     "single memory location"),
        RuntimeError("view size is not compatible with input tensor's size and stride (memory format)"),
        RuntimeError("CUDA error: out of bounds"),
        ValueError("CUDA out of memory"),
        KeyboardInterrupt("out of memory"),
    ],
)  # fmt: skip
def test_what_only_speaks_of_memory(error):
    assert not models.out_of_memory(error)


def test_the_allocators_own_words():
    for allocate in (lambda: torch.empty(2**60), lambda: np.empty(2**57)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert models.out_of_memory(caught.value)
