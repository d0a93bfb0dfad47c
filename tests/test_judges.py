"""Rules, reference labels, and the language-model judge against a real HTTP server that misbehaves."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lib.interpret import judges
from lib.interpret.chat_judge import ChatJudge, JudgeUnavailable, parse
from lib.interpret.judges import Example, RuleJudge, Score
from lib.workbook import reference


def feature(*lines, centre=1):
    return [
        Example(tuple(line.split("|")), (0.0,) * centre + (1.0,) + (0.0,) * (len(line.split("|")) - centre - 1), centre)
        for line in lines
    ]


ONE_TOKEN = feature(*(f"{word}| increase|s" for word in ("the", "an", "to", "any", "no")))
SPELLINGS = feature("the| URL|s", "a| url| of", "no| URLs|.", "to| Url|,", "an| urls|;")
PLACE = feature(*(f"{word}|:| A" for word in ("min", "max", "sum", "any", "all")))
NOTHING = feature("the| z|en", "(|do|it", "of| J| 4", "x|/|y", "q| St|yle", "5|hbar|*")


def test_rules_know_tokens_spellings_places_and_nothing():
    one, spellings, place, nothing = RuleJudge().score([ONE_TOKEN, SPELLINGS, PLACE, NOTHING])
    assert one == Score(1, 5) and spellings == Score(2, 5) and place.complexity == 3 and place.monosemanticity == 5
    assert nothing.complexity >= 4 and nothing.monosemanticity <= 2
    assert RuleJudge().score([[]]) == [Score(None, None)]


@pytest.mark.parametrize(
    ("token", "kind"),
    [(" 12", "number"), ("1.5", "number"), ("):", "sign"), ("\n", "sign"), (" Config", "capitals"), ("the", "word")],
)
def test_kinds(token, kind):
    assert judges.kind_of(token) == kind


@pytest.mark.parametrize("drawn", ["spread", "low"])
def test_the_stand_in_agrees_with_labels_that_it_has_not_seen(drawn):
    labels = reference.labels().query("drawn == @drawn")
    assert len(labels) == 60 and all(len(examples) == 10 for examples in labels["examples"])
    assert labels["complexity_again"].notna().all() == (drawn == "low")
    scores = RuleJudge().score(list(labels["examples"]))
    for aspect in judges.ASPECTS:
        found = judges.agreement([getattr(s, aspect) for s in scores], list(labels[aspect]))
        assert found["weighted_kappa"] > 0.6 and found["within_one"] > 0.8


def test_kappa_is_1_for_equal_and_about_0_for_unrelated_scores():
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 6, (2, 2_000))
    assert judges.agreement(a, a)["weighted_kappa"] == pytest.approx(1)
    assert abs(judges.agreement(a, b)["weighted_kappa"]) < 0.1
    assert judges.agreement([1, None, 3, 2], [1, 2, None, 4])["n"] == 2


# ------------------------------------------------------------------------------------- the chat judge


class Endpoint:
    """Speaks the protocol; `plan` says what the next replies are, then it answers 3."""

    def __init__(self):
        self.plan, self.requests, self.busy, self.most_busy = [], [], 0, 0
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                with lock:
                    endpoint.busy += 1
                    endpoint.most_busy = max(endpoint.busy, endpoint.most_busy)
                    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    endpoint.requests.append((self.path, self.headers["Authorization"], body))
                    what = endpoint.plan.pop(0) if endpoint.plan else "3"
                threading.Event().wait(0.02)
                try:
                    self.reply(what)
                finally:
                    with lock:
                        endpoint.busy -= 1

            def reply(self, what):
                if what == "drop":
                    self.close_connection = True
                    self.connection.close()
                    return
                code, _, text = what.partition(" ") if what.startswith(("429", "500", "401")) else ("200", "", what)
                message = {"role": "assistant", "content": text}
                chat = {"id": "x", "object": "chat.completion", "created": 0, "model": "m",
                        "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}  # fmt: skip
                data = (
                    b"<html>oops"
                    if what == "garbage"
                    else json.dumps(chat if code == "200" else {"error": {"message": "no"}}).encode()
                )
                self.send_response(int(code))
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if code == "429":
                    self.send_header("Retry-After", "0.05")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint(monkeypatch):
    endpoint = Endpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{endpoint.server.server_address[1]}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    yield endpoint
    endpoint.server.shutdown()


def test_scores_come_from_the_endpoint_and_are_paid_for_once(endpoint, tmp_path):
    judge = ChatJudge("judge-1", tmp_path / "answers.jsonl", concurrency=2)
    features = [ONE_TOKEN, [], PLACE]
    before = judge.estimate(features)
    assert before["requests"] == 4 and before["answered_before"] == 0 and before["input_tokens"] > 400
    assert judge.score(features) == [Score(3, 3), Score(None, None), Score(3, 3)]
    assert len(endpoint.requests) == 4 and endpoint.most_busy <= 2
    path, key, body = endpoint.requests[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "judge-1"
    prompts = [r[2]["messages"][0]["content"] for r in endpoint.requests]
    assert any("the increase <10>s" in prompt and judges.RUBRICS["complexity"][5] in prompt for prompt in prompts)
    again = ChatJudge("judge-1", tmp_path / "answers.jsonl")
    assert again.estimate(features)["requests"] == 0 and again.score(features)[2] == Score(3, 3)
    assert len(endpoint.requests) == 4
    ChatJudge("judge-2", tmp_path / "answers.jsonl").score([ONE_TOKEN])  # another judge is asked
    assert len(endpoint.requests) == 6


def test_rate_limits_errors_drops_and_garbage_are_tried_again(endpoint, tmp_path):
    endpoint.plan = ["429", "500", "drop", "garbage", "4", "429", "2"]
    judge = ChatJudge("m", tmp_path / "a.jsonl", concurrency=1)
    assert judge.score([ONE_TOKEN]) == [Score(4, 2)]
    assert len(endpoint.requests) == 7


def test_malformed_answers_are_counted_and_give_no_score(endpoint, tmp_path):
    endpoint.plan = ["4/5", "I think 2", "5", " 1\n"]
    judge = ChatJudge("m", tmp_path / "a.jsonl", concurrency=1)
    assert judge.score([ONE_TOKEN, PLACE]) == [Score(None, None), Score(5, 1)]
    assert judge.malformed == 2
    assert ChatJudge("another", tmp_path / "a.jsonl").malformed == 0


def test_what_was_answered_before_a_failure_is_kept(endpoint, tmp_path):
    endpoint.plan = ["5", "4", "401", "401"]
    judge = ChatJudge("m", tmp_path / "a.jsonl", concurrency=1)
    with pytest.raises(JudgeUnavailable, match="m does not answer .*2 answers are kept"):
        judge.score([ONE_TOKEN, PLACE])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    endpoint.plan = []
    assert ChatJudge("m", tmp_path / "a.jsonl").score([ONE_TOKEN, PLACE]) == [Score(5, 4), Score(3, 3)]
    answered = Counter(body["messages"][0]["content"] for *_, body in endpoint.requests)
    assert sorted(answered.values()) in ([1, 1, 1, 2], [1, 1, 2, 2])  # only what failed was asked again


def test_a_missing_key_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(JudgeUnavailable, match="OPENAI_API_KEY"):
        ChatJudge("m", tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("answer", "digit"), [("3", 3), (" 5\n", 5), ("0", None), ("6", None), ("4.", None), ("", None), ("33", None)]
)
def test_only_one_digit_is_an_answer(answer, digit):
    assert parse(answer) == digit
