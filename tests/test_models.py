"""Loading, caching and unloading; what is refused; greedy completions."""

import copy
import shutil

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertLMHeadModel

import families
from debug import models


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
