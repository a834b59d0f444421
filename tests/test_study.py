"""Study files: what is read, what is refused, and that a study which was stopped goes on where it was."""

import json

import pytest

from debug import ExperimentRunner, models, tracking
from debug.study_file import StudyError, read_study

STUDY = """
name: two_prompts
defaults: {hops: [1, any], seq_lens: [3, 5], num_seqs: 8}
experiments:
  - {models: [tiny]}
  - {models: [tiny], few_shot: 2}
  - {models: ["heuristic:any-number"]}
"""


def write(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text, "utf-8")
    return path


def test_a_study_is_read_from_yaml_and_from_json(tmp_path):
    name, configs, _ = read_study(write(tmp_path, STUDY))
    assert name == "two_prompts"
    assert [(c.models, c.few_shot, c.hops, c.prompt[0]) for c in configs] == [
        (("tiny",), 0, (1, None), "VARIABLE_BINDING"),
        (("tiny",), 2, (1, None), "VARIABLE_BINDING"),
        (("heuristic:any-number",), 0, (1, None), "VARIABLE_BINDING"),
    ]
    as_json = {"name": "s", "experiments": [{"models": ["tiny"], "program_generator": "boolean"}]}
    _, [config], _ = read_study(write(tmp_path, json.dumps(as_json)))
    assert (config.prompt[0], config.parser[0], config.num_seqs) == ("BOOLEAN_LOGIC", "boolean", 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is neither YAML nor JSON"),
        ("a text", "has 'a text'; expected name"),
        ("{name: x, experiment: []}", "has the keys"),
        ("{name: x, experiments: []}", "experiments is"),
        ("{name: x, experiments: [3]}", "experiment 1 is 3"),
        ("{name: x, experiments: [{models: [tiny]}, {modles: [tiny]}]}", "experiment 2 has modles"),
        ("{name: x, experiments: [{models: [tiny], num_seqs: many}]}", "experiment 1: num_seqs is 'many'"),
        ("{name: x, experiments: [{models: [tiny], program_generator: lops}]}", "experiment 1: unknown generator"),
        ("!!python/object/apply:os.system ['true']", "is neither YAML nor JSON"),
    ],
)
def test_a_file_that_is_no_study_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(StudyError, match=message):
        read_study(write(tmp_path, text))
    with pytest.raises(StudyError, match="cannot be read"):
        read_study(tmp_path / "nowhere.yaml")


def test_a_study_that_was_stopped_goes_on_with_the_cells_that_are_missing(tmp_path, uri, monkeypatch):
    name, configs, _ = read_study(write(tmp_path, STUDY))
    asked, answer = [], models.LoadedModel._generate

    def stopping(self, prompts, max_new_tokens, batch_size, done):
        asked.append(len(prompts))
        if len(asked) == 6:
            raise KeyboardInterrupt
        return answer(self, prompts, max_new_tokens, batch_size, done)

    monkeypatch.setattr(models.LoadedModel, "_generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        ExperimentRunner(uri).run_study(name, configs)
    runs = tracking.find_runs(tracking_uri=uri, role="study")
    assert runs["status"].to_list() == ["KILLED"]

    result = ExperimentRunner(uri).run_study(name, configs)
    assert len(asked) == 6 + 3  # the five finished cells of the bundled model are not asked again
    assert result.run_id == runs["run_id"][0]
    logged = tracking.load_run(result.run_id, uri)
    assert logged.status == "FINISHED"
    assert "debug.error" not in logged.tags
    assert [cell.status for cell in logged.children].count("FINISHED") == 12
    assert len(result.summary["cells"]) == 12
    assert result.samples.height == 12 * 8
    whole = ExperimentRunner(uri).run_study(name, configs)  # finished: it starts anew
    assert whole.run_id != result.run_id
    for name in ("accuracy", "correct", "label", "hops", "seq_len"):
        assert [cell[name] for cell in whole.summary["cells"]] == [cell[name] for cell in result.summary["cells"]]
    compared = result.summary["comparisons"]
    assert compared == whole.summary["comparisons"]
    assert len(compared) == 3 * 4  # pairs of series x cells
    labels = [cell["label"] for cell in result.summary["cells"]]
    assert list(dict.fromkeys(labels)) == [
        "tiny, VARIABLE_BINDING",
        "tiny, VARIABLE_BINDING 2-shot",
        "heuristic:any-number",
    ]
    assert {"accuracy.png", "comparisons.html", "comparisons.png"} <= set(logged.artifacts())


def test_several_tasks_are_charted_each_and_not_compared_with_one_another(tmp_path, uri):
    text = "{name: tasks, defaults: {num_seqs: 5, models: [tiny, 'heuristic:any-number'], prompt_template: MINIMAL}, "
    name, configs, _ = read_study(
        write(
            tmp_path,
            text + "experiments: [{program_generator: variable_binding}, {program_generator: entity_tracking}]}",
        )
    )
    result = ExperimentRunner(uri).run_study(name, configs)
    assert [c["generator"] for c in result.summary["comparisons"]] == ["variable_binding", "entity_tracking"]
    artifacts = tracking.load_run(result.run_id, uri).artifacts()
    assert {"accuracy_variable_binding.png", "accuracy_entity_tracking.png", "comparisons_entity_tracking.html"} <= set(
        artifacts
    )
    assert "entity_tracking" in str(result)
