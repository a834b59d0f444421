"""Try it: a program or a pair of texts of one's own, patched in a model here and now, and kept as a run.

The page starts `debug trace` on a file that it writes; what is typed is text, and never executed.
"""

from __future__ import annotations

import json
import shlex

import streamlit as st
from jobs import jobs
from running import TRIED, bundled_models, buttons, ended, failure, follow, layer_numbers
from store import load, options
from view import choice, draw, exports_of, literally, one_in_url, part, problem, prose, text

from debug.causal_map import title_of
from debug.causal_visualization import visible
from debug.causal_visualization.notebook import picture
from debug.errors import DebugError, InputError
from debug.plan import INTERVENTION_TYPES
from debug.provenance import without_passwords
from debug.tracking import store_uri

LONGEST = 20_000  # characters of a text
KINDS = {"program": "A program", "pair": "Two texts"}
PROGRAM = "a = 4\nb = a\nc = 7\nd = b\n#d: "
PAIR = {
    "original": "a = 4\nb = a\n#b: ",
    "expected_original": "4",
    "counterfactual": "a = 9\nb = a\n#b: ",
    "expected_counterfactual": "9",
}


def page() -> None:
    st.title("Try it")
    uri = store_uri(options().tracking_uri)
    kind = choice("kind", "What to patch", list(KINDS), KINDS.__getitem__, width=200)
    left, right = st.columns(2)
    with left:
        given = a_program() if kind == "program" else a_pair()
    with right:
        try:
            arguments, pairs = asked(kind)
        except DebugError as error:
            problem("These settings are not valid.", error)
            buttons("tryit", "trace", "", 0, None, uri)
            return
    file = jobs().file_of(given, "program.py" if kind == "program" else "pair.jsonl")
    arguments += ["--program" if kind == "program" else "--pairs", str(file)]
    buttons("tryit", "trace", "", pairs, arguments, uri)
    with st.expander("Command line for this run"):
        name = "program.py" if kind == "program" else "pair.jsonl"
        literally(given)
        prose(f"in a file {name}, and:")
        literally(shlex.join(["debug", "trace", f"--tracking-uri={without_passwords(uri)}", *arguments[:-1], name]))
    progress = st.container()
    job = jobs().last
    over = ended(job)
    failure(job, "")
    part(result)
    if over:  # and everything is drawn: a page that is cut short before this line is run again by follow()
        st.session_state.pop("following", None)
    with progress:
        follow()


def a_program() -> str:
    st.caption(
        "Assignments in a subset of Python that is interpreted, never executed. The last line asks: #d:  or print(d). "
        "Its counterfactuals each have another value somewhere, so that the answer is another."
    )
    return st.text_area("Program", PROGRAM, height=170, max_chars=LONGEST, key="program")


def a_pair() -> str:
    st.caption("Two texts of equally many tokens, and the answer to each. Any text will do.")
    fields = {}
    for side in ("original", "counterfactual"):
        name = f"expected_{side}"
        fields[side] = st.text_area(side.capitalize(), PAIR[side], height=120, max_chars=LONGEST, key=side)
        fields[name] = st.text_input(f"Answer to the {side}", PAIR[name], max_chars=100, key=name)
    return json.dumps(fields) + "\n"


def asked(kind: str) -> tuple[list[str], int]:
    """Arguments of `debug trace`, without what is patched, and the number of pairs.

    Raises InputError for layers that are none, and for a model that would be read as an option.
    """
    with st.container(horizontal=True, vertical_alignment="bottom"):
        model = choice("model", "Model", [*bundled_models(), OTHER], lambda m: m or "another …", width=150)
        model = model or text("other", "Folder or name of the model", width=260)
        component = choice("component", "Component", list(INTERVENTION_TYPES), lambda c: c.replace("_", " "), width=200)
        positions = choice("positions", "Positions", ["all", "targets"], width=130)
        layers = text("layers", "Layers", placeholder="all; or 0-3, 5", width=150)
        many = choice("many", "Pairs", ["1", "5", "20"], width=90) if kind == "program" else "1"
    if not model or model.startswith("-"):
        raise InputError("name a model: a bundled one, a folder, or a name on the Hugging Face Hub")
    arguments = [f"--name={TRIED}", f"--models={model}", f"--intervention-type={component}", f"--num-seqs={many}"]
    arguments.append("--no-require-correct")  # here to look, whatever the model answers
    if component != INTERVENTION_TYPES[-1]:
        arguments.append(f"--positions={positions}")
    if layers.strip():
        arguments += ["--layers", *map(str, layer_numbers(layers))]
    return arguments, int(many)


OTHER = ""


def result() -> None:
    new = one_in_url("new")
    if new is None:
        return
    run = load(new)
    exports_of(run)
    st.subheader("What the patches do")
    if not len(run.maps):
        st.info("The run has no causal map: its pairs were skipped.")
        for reason in (run.summary.get("skipped") or {}) if "summary.json" in run.artifacts() else ():
            literally(reason)
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        shown = choice("shown", "Pair", [str(n) for n in range(len(run.maps))], width=120)
        causal_map = run.maps[int(shown)]
        metric = choice("metric", "Metric", list(causal_map.metrics), lambda m: title_of(m, causal_map), width=260)
        st.page_link(
            "causal_map.py",
            label="Open on the Causal map page",
            icon=":material/grid_on:",
            query_params={"run": new, "pair": shown},
            width="content",
        )
    pair = run.pairs[causal_map.pair]
    for name, program in (("original", pair.original), ("counterfactual", pair.counterfactual)):
        prose(f"{name}: {program.text.strip().replace(chr(10), ' ⏎ ')} → {program.answer}")
    tops = [visible(causal_map.vocabulary.get(token, str(token))) for token in causal_map.top_tokens]
    prose("top token of the clean forward pass: {}, of the counterfactual one: {}".format(*tops))
    draw(picture(causal_map, metric), f"tried {shown}")


page()
