"""A language model as judge, behind any OpenAI-compatible endpoint (W §5.1, App. E).

The endpoint and the key come from the environment: OPENAI_BASE_URL (unset: OpenAI's own) and OPENAI_API_KEY.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI, OpenAIError
from tqdm import tqdm

from lib.interpret.judges import ASPECTS, RUBRICS, Example, Score

QUESTIONS = {
    "complexity": "How complex is what the active tokens have in common?",
    "monosemanticity": "How consistently do the active tokens follow one pattern?",
}
GARBAGE_TRIES = 3  # answers that are not JSON; everything else that may pass is tried again by the client


class JudgeUnavailable(Exception):
    """Why a language model cannot judge, in one sentence."""


class ChatJudge:
    """Asks for one digit per feature and aspect; every answer is kept, so that nothing is paid for twice.

    Rate limits, server errors and dropped connections are tried again `retries` times with growing pauses. An answer
    that is not one digit from 1 to 5 is kept and counted as malformed, and gives no score. Raises `JudgeUnavailable`
    without a key, or where the endpoint does not answer in the end; answers until then are kept.
    """

    def __init__(self, model: str, answers: Path, concurrency: int = 8, retries: int = 6, timeout: float = 60) -> None:
        if not os.environ.get("OPENAI_API_KEY"):
            raise JudgeUnavailable(
                "set OPENAI_API_KEY (and OPENAI_BASE_URL for another endpoint) to judge by a language model."
            )
        self.name, self._answers_file, self._concurrency = model, answers, concurrency
        self._client = OpenAI(max_retries=retries, timeout=timeout)
        self._lock = threading.Lock()
        self._answers = dict(_read(answers, model))

    def estimate(self, features: Sequence[Sequence[Example]]) -> dict[str, int]:
        """What `score` would ask: requests, those already answered, and tokens (about four characters each)."""
        prompts = {prompt for examples in features if examples for _, prompt in _prompts(examples)}
        new = [prompt for prompt in prompts if self._key(prompt) not in self._answers]
        return {
            "requests": len(new),
            "answered_before": len(prompts) - len(new),
            "input_tokens": sum(len(prompt) for prompt in new) // 4,
            "output_tokens": 2 * len(new),
        }

    def score(self, features: Sequence[Sequence[Example]]) -> list[Score]:
        """Scores of all features; features without snippets get none."""
        wanted = [
            (k, aspect, prompt)
            for k, examples in enumerate(features)
            if examples
            for aspect, prompt in _prompts(examples)
        ]
        found: list[dict[str, int | None]] = [dict.fromkeys(ASPECTS) for _ in features]
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                answers = pool.map(self._answer, [prompt for _, _, prompt in wanted])
                watched = tqdm(answers, f"asking {self.name}", len(wanted), mininterval=5)
                for (k, aspect, _), answer in zip(wanted, watched):
                    found[k][aspect] = parse(answer)
            except (OpenAIError, ValueError) as error:
                pool.shutdown(cancel_futures=True)
                what = f"{type(error).__name__}: {str(error)[:200]}"
                kept = f"{len(self._answers)} answers are kept"
                raise JudgeUnavailable(f"{self.name} does not answer ({what}); {kept}.") from None
        return [Score(**scores) for scores in found]

    @property
    def malformed(self) -> int:
        """How many of the kept answers are not one digit from 1 to 5."""
        return sum(parse(answer) is None for answer in self._answers.values())

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([self.name, prompt]).encode()).hexdigest()

    def _answer(self, prompt: str) -> str:
        key = self._key(prompt)
        if key not in self._answers:
            answer = self._ask(prompt)
            with self._lock:
                self._answers[key] = answer
                self._answers_file.parent.mkdir(parents=True, exist_ok=True)
                with self._answers_file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"model": self.name, "key": key, "answer": answer}) + "\n")
        return self._answers[key]

    def _ask(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        for _ in range(GARBAGE_TRIES):
            try:
                reply = self._client.chat.completions.create(model=self.name, messages=messages)
                return (reply.choices[0].message.content or "")[:200]
            except (ValueError, AttributeError, TypeError, IndexError) as error:
                garbage = error
        raise ValueError(f"the reply is not a chat completion: {garbage}")


def _read(file: Path, model: str) -> Iterator[tuple[str, str]]:
    """Kept answers of one judge; a line that a kill cut off is left out."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
            if row["model"] == model:
                yield row["key"], row["answer"]
        except (ValueError, KeyError, TypeError):
            continue


def parse(answer: str) -> int | None:
    """The digit, or None for anything else: "4" and " 4\\n" are answers, "4/5", "4." and "I'd say 4" are not."""
    return int(answer) if re.fullmatch(r"\s*[1-5]\s*", answer) else None


def _prompts(examples: Sequence[Example]) -> list[tuple[str, str]]:
    strongest = max(max(example.activations) for example in examples)
    text = "\n".join(_line(example, strongest) for example in examples)
    return [(aspect, _prompt(aspect, text)) for aspect in ASPECTS]


def _prompt(aspect: str, text: str) -> str:
    scale = "\n".join(f"{score}: {meaning}" for score, meaning in sorted(RUBRICS[aspect].items(), reverse=True))
    return (
        "A feature of a neural network is active on some tokens of a text. Below are the passages where it is most "
        "active, one per line; each token is followed by its activation from 0 to 10 where that is not 0. "
        f"{QUESTIONS[aspect]} Use this scale:\n{scale}\n\n{text}\n\nAnswer with one digit and nothing else."
    )


def _line(example: Example, strongest: float) -> str:
    parts = []
    for token, activation in zip(example.tokens, example.activations, strict=True):
        level = round(10 * activation / strongest) if strongest > 0 else 0
        parts.append(token.replace("\n", "↵") + (f" <{level}>" if level else ""))
    return "".join(parts)
